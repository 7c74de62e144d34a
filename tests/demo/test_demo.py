"""The demo as a user runs it for the first time: with a home folder that holds nothing."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from serve_app.demo.run import NOTICE
from serve_app.demo.sheet import WIDTH
from tests.conftest import ROOT

# Inputs of 640x480 and 512x512 pixels at 65,536 pixels, sides in multiples of 32.
SIZES = {
    "input-1.png": (640, 480),
    "input-2.png": (512, 512),
    "camera.png": (288, 224),
    "rewriting.png": (288, 224),
    "batch-1.png": (288, 224),
    "batch-2.png": (256, 256),
    "references.png": (288, 224),
}
CURL_LINE = re.compile(r"^  curl -s http://127\.0\.0\.1:(\d+)/runsync .* -d @(\S+) \| python3 -c \".*\"$", re.MULTILINE)


@dataclass(frozen=True)
class DemoRun:
    home: Path
    out: Path
    stdout: str
    stderr: str
    status: int


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    folder = tmp_path_factory.mktemp("demo")
    home, out = folder / "home", folder / "out"
    home.mkdir()
    command = [sys.executable, "-m", "serve_app.cli", "demo", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(home), capture_output=True, text=True, timeout=280)
    return DemoRun(home, out, done.stdout, done.stderr, done.returncode)


def _environment(home: Path) -> dict[str, str]:
    """Ours but for the home folder, a cluster that does not exist, and a terminal too narrow for what is printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CAMERA_EDIT_"))}
    return {**kept, "HOME": str(home), "RAY_ADDRESS": "192.0.2.1:6379", "COLUMNS": "40"}


def test_ends_well_and_keeps_the_libraries_off_the_terminal(demo: DemoRun) -> None:
    assert (demo.status, demo.stderr) == (0, "")
    assert "raylet" not in demo.stdout
    assert (demo.out / "service.log").is_file()


def test_tells_first_and_last_that_the_pictures_mean_nothing(demo: DemoRun) -> None:
    lines = demo.stdout.splitlines()
    assert lines[0] == lines[-1] == NOTICE


def test_says_that_it_built_the_checkpoint(demo: DemoRun) -> None:
    assert re.search(rf"^  {demo.home}/\.cache/\S+/tiny-\w+, built just now$", demo.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", SIZES)
def test_picture_is_whole_and_of_the_expected_size(demo: DemoRun, name: str) -> None:
    with Image.open(demo.out / name) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", SIZES[name])
    assert name.startswith("input") or str(demo.out / name) in demo.stdout


def test_modes_draw_different_pictures(demo: DemoRun) -> None:
    drawn = {(demo.out / name).read_bytes() for name in SIZES if not name.startswith("input")}
    assert len(drawn) == 5


def test_contact_sheet_has_a_row_for_each_mode(demo: DemoRun) -> None:
    with Image.open(demo.out / "contact-sheet.png") as sheet:
        assert sheet.size == (WIDTH, 1340)
    assert str(demo.out / "contact-sheet.png") in demo.stdout


def test_prints_a_curl_line_in_one_piece_for_each_payload(demo: DemoRun) -> None:
    found = CURL_LINE.findall(demo.stdout)
    assert [Path(file).name for _, file in found] == ["camera.json", "rewriting.json", "batch.json", "references.json"]
    assert len({port for port, _ in found}) == 1
    for _, file in found:
        assert json.loads(Path(file).read_text())["input"]["prompt"]


def test_tells_the_time_of_each_mode_and_what_the_rewriter_did(demo: DemoRun) -> None:
    for title in ("Camera", "Rewriting", "Batch", "Two references"):
        assert re.search(rf"^{title}: edited \(\d+\.\d s\)$", demo.stdout, re.MULTILINE), title
    assert re.search(r"^  (not rewritten, it ran as it was|rewritten as): \S", demo.stdout, re.MULTILINE)


def test_leaves_no_port_and_no_process_behind(demo: DemoRun) -> None:
    port = int(CURL_LINE.findall(demo.stdout)[0][0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    deadline = time.monotonic() + 20  # Ray's last processes end a moment after their driver
    while (left := _processes_at_home(demo.home)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def _processes_at_home(home: Path) -> list[str]:
    """All processes that inherited the demo's home folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home):
                found.append(process.name())
        except psutil.Error:
            continue  # ended meanwhile, or another user's
    return found
