"""`camera-edit doctor`: what it prints, its exit status, and what it reads of this machine."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from serve_app.cli import main
from serve_app.tools.doctor import machine as reading
from serve_app.tools.doctor.installed import check_packages, check_python, missing
from tests.conftest import ROOT
from tests.tools.doctor.machines import machine, serve_file

WITH_PYTHON_3_10 = """
import sys
sys.version_info = (3, 10, 4, "final", 0)
from serve_app.cli import main
try:
    main(["doctor"])
finally:
    print("MODULES", *sys.modules)
"""


@pytest.fixture(autouse=True)
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees a healthy machine, not the one of the tests."""
    monkeypatch.setattr(reading, "read_machine", lambda: machine(tmp_path))


def test_without_a_problem_each_line_is_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(serve_file(tmp_path))]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "no problems"
    assert all(line.startswith("ok       ") for line in lines)
    checks = [line.removeprefix("ok       ").partition(":")[0] for line in lines]
    assert checks[:10] == [
        *("Python", "packages", "Serve file", "torch", "driver", "memory", "/dev/shm", "Ray", "port", "keys"),
    ]


def test_a_problem_is_printed_with_its_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", str(serve_file(tmp_path, host="0.0.0.0"))])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("PROBLEM  keys: No API keys are set"))
    assert lines[at + 1] == '         fix: export CAMERA_EDIT_API_KEYS="$(openssl rand -hex 32)"'
    assert lines[-1] == "1 problem"


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--json", str(tmp_path / "none.yaml")])
    assert caught.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert [each["check"] for each in report["findings"] if each["fix"] is not None] == ["Serve file"]
    assert main(["doctor", "--json", "--deep", str(serve_file(tmp_path))]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_a_wrong_usage_has_the_exit_status_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--shallow"])
    assert caught.value.code == 2


def test_a_wrong_python_is_reported_without_the_libraries_that_it_lacks() -> None:
    run = subprocess.run([sys.executable, "-c", WITH_PYTHON_3_10], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    text, modules = run.stdout.split("MODULES")
    assert "PROBLEM  Python: 3.10.4 is not supported, <3.13,>=3.11 is" in text
    assert "fix: python3.11 -m venv .venv && . .venv/bin/activate && pip install -e ." in text
    assert text.endswith("1 problem\n")
    assert not {"pydantic", "ray", "torch"} & set(modules.split())


@pytest.mark.parametrize(
    ("running", "is_ok"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 12, 9), True), ((3, 13, 0), False)]
)
def test_versions_of_python(running: tuple[int, ...], is_ok: bool) -> None:
    assert check_python(running, ">=3.11,<3.13").ok is is_ok


def test_packages_that_differ_from_their_pins() -> None:
    installed = {"torch": "2.14.1+cpu", "ray": "2.59.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    pins = {"torch": "2.14.1", "ray": "2.60.0", "redis": "8.1.0"}
    found = check_packages(pins, version)
    assert found.message == "ray is 2.59.0, not 2.60.0; redis 8.1.0 is not installed"
    assert found.fix == "pip install -e ."
    assert missing(pins, version) == ["redis"]


def test_this_machine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = reading.read_machine()
    assert (found.torch.version, found.torch.cuda) == (str(torch.__version__), torch.version.cuda)
    assert found.hub.cache == Path(constants.HF_HUB_CACHE)
    assert found.memory_bytes > 0
    assert found.object_store_bytes > 0
    # Of a folder that does not exist yet.
    assert found.disk_of(tmp_path / "a" / "b").total_bytes == found.disk_of(tmp_path).total_bytes
