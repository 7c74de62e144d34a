"""`camera-edit edit` against the real service: stopped in the middle and started again, it makes each picture once."""

import signal
from pathlib import Path

import pytest
import requests

from tests.service.conftest import Service
from tests.tools.edit.running import start_command
from tests.tools.edit.test_edit import POSES, made, save_photographs
from tests.waiting import until

QUICK = ("--size", "64x64", "--steps", "2", "--prompt")


def num_completed(service: Service) -> int:
    counts = requests.get(f"{service.url}/v2/any/health", headers=service.headers, timeout=30).json()
    return int(counts["jobs"]["completed"])


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_continues(blow: signal.Signals, service: Service, tmp_path: Path) -> None:
    save_photographs(tmp_path / "in", 4)
    (tmp_path / "in" / "photo-01.jpg").write_bytes(b"broken")
    # The prompt makes the keys of each test its own.
    arguments = ("in", *POSES, *QUICK, f"Stopped by {blow.name}", "--url", service.url, "--jobs", "1")
    before = num_completed(service)
    command = start_command(tmp_path, *arguments)
    until(lambda: (tmp_path / "edited").exists() and made(tmp_path / "edited"))
    command.send_signal(blow)
    assert "Traceback" not in command.communicate(timeout=60)[1]
    assert command.returncode == (130 if blow is signal.SIGINT else -blow)
    assert 1 <= len(made(tmp_path / "edited")) < 6

    again = start_command(tmp_path, *arguments)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 1, err
    assert [line.partition(": it is not a picture")[0] for line in out.splitlines()[1:]] == [
        "  failed: in/photo-01.jpg"
    ] * 2
    assert len(made(tmp_path / "edited")) == 6
    assert num_completed(service) - before == 6
