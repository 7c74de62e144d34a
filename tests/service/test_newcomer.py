"""A newcomer's first visit in a fresh clone: README's commands, with only the port changed."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import requests
from PIL import Image

from tests.conftest import ROOT
from tests.pages import ADDRESS, README, commands, inline, programs
from tests.pictures import photograph
from tests.processes import free_port, starting
from tests.tools.edit.running import HEEDS_CTRL_C
from tests.waiting import until

START_TIMEOUT_S = 280
SCRIPTS = Path(sys.executable).parent


@dataclass(frozen=True)
class Clone:
    """A copy of the repository's files, and the demo that was started in it and is kept running."""

    folder: Path
    address: str
    environment: dict[str, str]
    demo: "subprocess.Popen[str]"
    log: Path

    def run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def command_of_readme(start: str) -> str:
    """README's only command that begins so."""
    (command,) = {command for command in commands(README) if command.startswith(start)}
    return command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    folder, home = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("home")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CAMERA_EDIT_"))}
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as temporary:  # Ray's socket paths must be short
        environment = {
            **kept,
            "HOME": str(home),
            "RAY_TMPDIR": temporary,
            "PYTHONPATH": str(folder),
            "PYTHONWARNINGS": "ignore",
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "CAMERA_EDIT_URL": address,
        }
        command = command_of_readme("camera-edit demo --keep").replace("8000", str(port))
        log = home / "demo.log"
        with starting(), log.open("w") as out:
            demo = subprocess.Popen(
                [sys.executable, "-c", HEEDS_CTRL_C, *shlex.split(command)[1:]],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                until(lambda: demo.poll() is not None or "Ctrl-C ends it" in log.read_text(), START_TIMEOUT_S)
                assert demo.poll() is None, log.read_text()
            except BaseException:
                demo.terminate()
                raise
        yield Clone(folder, address, environment, demo, log)
        demo.send_signal(signal.SIGINT)
        demo.wait(60)


def test_first_picture(clone: Clone) -> None:
    for name in ("orbit-1", "instruction", "contact-sheet"):
        with Image.open(clone.folder / "demo-out" / f"{name}.png") as picture:
            picture.load()


def test_page(clone: Clone) -> None:
    (address,) = {text for text in inline(README) if text == f"{ADDRESS}/"}
    page = requests.get(address.replace(ADDRESS, clone.address), timeout=30)
    assert "<title>Camera edit</title>" in page.text
    assert address.replace(ADDRESS, clone.address) in clone.log.read_text()


@pytest.mark.parametrize("runner", [["bash", "-euo", "pipefail", "-c"], [sys.executable, "-c"]], ids=["curl", "sdk"])
def test_first_calls(clone: Clone, runner: list[str]) -> None:
    photograph("coffee").save(clone.folder / "room.jpg")
    for program in programs("bash" if runner[0] == "bash" else "python"):
        clone.run([*runner, program.replace(ADDRESS, clone.address)])
        with Image.open(clone.folder / "output.png") as picture:
            picture.load()
        (clone.folder / "output.png").unlink()


def test_first_orbit(clone: Clone) -> None:
    photograph("coffee").save(clone.folder / "room.jpg")
    clone.run(shlex.split(command_of_readme("camera-edit edit room.jpg")))
    assert len(list((clone.folder / "edited").glob("room*.png"))) == 8


def test_folder_of_pictures(clone: Clone) -> None:
    (clone.folder / "photos").mkdir()
    for name in ("astronaut", "coffee"):
        photograph(name).save(clone.folder / "photos" / f"{name}.jpg")
    printed = clone.run(shlex.split(command_of_readme("camera-edit edit photos")))
    assert re.search(r"\b2\b", printed)
    for name in ("astronaut", "coffee"):
        assert list((clone.folder / "edited").glob(f"{name}*.png")), printed


def test_stop(clone: Clone) -> None:
    """README: until Ctrl-C."""
    clone.demo.send_signal(signal.SIGINT)
    assert clone.demo.wait(60) == 0, clone.log.read_text()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(clone.address.rpartition(":")[2])), timeout=5)
