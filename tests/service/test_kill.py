"""`kill_all` removes Ray's record of the killed cluster, and no other."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray._common.utils import get_ray_address_file

from tests.service.kill import kill_all

# A parent whose child has a command line like that of Ray's processes.
PARENT = """
import subprocess, sys
command = [sys.executable, "-c", "input()", "--gcs-address=127.0.0.1:4321"]
child = subprocess.Popen(command, stdin=subprocess.PIPE)
print("started", flush=True)
child.wait()
"""


@pytest.mark.parametrize(("recorded", "is_left"), [("127.0.0.1:4321", False), ("127.0.0.1:5432", True)])
def test_the_record_of_a_killed_cluster_is_removed(
    recorded: str, is_left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    record = Path(get_ray_address_file(None))
    record.parent.mkdir()
    record.write_text(recorded)
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        kill_all(process)
    assert record.exists() == is_left
