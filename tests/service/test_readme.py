"""README's programs, run as they are with only the service's address changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.pages import ADDRESS, programs
from tests.pictures import photograph
from tests.service.conftest import Service

PROGRAMS = [
    *([sys.executable, "-c", text] for text in programs("python")),
    *(["bash", "-euo", "pipefail", "-c", text] for text in programs("bash")),
]


@pytest.mark.parametrize("command", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_draws_a_picture(command: list[str], service: Service, tmp_path: Path) -> None:
    photograph("coffee").save(tmp_path / "room.jpg")
    *program, text = command
    done = subprocess.run(
        [*program, text.replace(ADDRESS, service.url)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(tmp_path / "output.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (320, 224))
