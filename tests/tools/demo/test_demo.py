"""The demo as a user runs it for the first time: with a home folder that holds nothing."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
from PIL import Image

from serve_app.tiny.cyanotype import cyanotype
from serve_app.tiny.wishes import styled
from serve_app.tiny.world import Thing, psnr, render
from serve_app.tools.demo.modes import MODES, POSE, SCENES
from serve_app.tools.demo.run import NOTICE
from serve_app.tools.demo.sheet import WIDTH
from tests.conftest import ROOT
from tests.pictures import pixels_of
from tests.processes import free_port, starting

FIRST, SECOND = SCENES
# What each picture that comes back should show.
TRUTHS = {
    **{f"orbit-{number}": (FIRST, replace(POSE, azimuth=45 * number - 45)) for number in range(1, 9)},
    "camera-1": (FIRST, replace(POSE, elevation=-30)),
    "camera-2": (FIRST, replace(POSE, elevation=60)),
    "camera-3": (FIRST, replace(POSE, distance=0.6)),
    "camera-4": (FIRST, replace(POSE, distance=1.8)),
    "instruction": (replace(FIRST, light="night"), POSE),
    "rewriting": (replace(FIRST, light="sunset"), POSE),
    "batch-1": (replace(FIRST, subject=Thing("box", "purple")), POSE),
    "batch-2": (replace(FIRST, neighbour=None), POSE),
    "batch-3": (replace(SECOND, light="day"), POSE),
    "batch-4": (replace(SECOND, ground="grass"), POSE),
    "style": (styled(FIRST, SECOND), POSE),
    "adapter": (FIRST, replace(POSE, azimuth=45)),
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
    with TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as temporary:  # Ray's socket paths must be short
        record = Path(temporary) / "ray" / "ray_current_cluster"
        record.parent.mkdir()
        record.write_text(f"127.0.0.1:{free_port()}")
        environment = _environment(home, temporary)
        with starting():
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    return DemoRun(home, out, done.stdout, done.stderr, done.returncode)


def _environment(home: Path, temporary: str) -> dict[str, str]:
    """This process's environment with another home folder, a RAY_ADDRESS and a recorded cluster that do not exist, and
    a terminal narrower than the output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CAMERA_EDIT_"))}
    return {**kept, "HOME": str(home), "RAY_ADDRESS": "192.0.2.1:6379", "RAY_TMPDIR": temporary, "COLUMNS": "40"}


def test_ends_well_and_keeps_the_libraries_off_the_terminal(demo: DemoRun) -> None:
    assert (demo.status, demo.stderr) == (0, "")
    assert "raylet" not in demo.stdout
    assert (demo.out / "service.log").is_file()


def test_prints_first_and_last_what_the_weights_know(demo: DemoRun) -> None:
    lines = demo.stdout.splitlines()
    assert lines[0] == lines[-1] == NOTICE


@pytest.mark.parametrize("name", TRUTHS)
def test_picture_is_whole_listed_and_nearer_to_its_own_truth_than_to_any_other(demo: DemoRun, name: str) -> None:
    with Image.open(demo.out / f"{name}.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
        drawn = pixels_of(picture)
    truths = {each: render(*truth) for each, truth in TRUTHS.items()}
    truths["adapter"] = cyanotype(truths["adapter"])
    assert max(truths, key=lambda each: psnr(drawn, truths[each])) == name
    assert str(demo.out / f"{name}.png") in demo.stdout


def test_pictures_sent_are_the_scenes(demo: DemoRun) -> None:
    for number, scene in enumerate(SCENES, start=1):
        with Image.open(demo.out / f"input-{number}.png") as picture:
            assert np.array_equal(pixels_of(picture), render(scene, POSE))


def test_contact_sheet_is_whole(demo: DemoRun) -> None:
    with Image.open(demo.out / "contact-sheet.png") as sheet:
        sheet.load()
        assert sheet.size == (WIDTH, 1415)
    assert str(demo.out / "contact-sheet.png") in demo.stdout


def test_prints_a_curl_line_in_one_piece_for_each_payload(demo: DemoRun) -> None:
    found = CURL_LINE.findall(demo.stdout)
    assert [Path(file).name for _, file in found] == [f"{mode.name}.json" for mode in MODES]
    assert len({port for port, _ in found}) == 1
    inputs = [(demo.out / f"input-{number}.png").read_bytes() for number in (1, 2)]
    for mode, (_, file) in zip(MODES, found, strict=True):
        assert json.loads(Path(file).read_text()) == mode.payload(inputs)


def test_prints_the_time_of_each_mode_and_what_the_rewriter_did(demo: DemoRun) -> None:
    for mode in MODES:
        assert re.search(rf"^{mode.title}: edited \(\d+\.\d s\)$", demo.stdout, re.MULTILINE), mode.title
    assert "\n  rewritten as: make it sunset\n" in demo.stdout


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
