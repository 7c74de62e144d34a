"""The command line without a running service: what it prints, where, and the exit status."""

import argparse
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import serve_app.tools.check
from serve_app.cli import build_parser, main
from serve_app.config import TINY_FILE
from tests.conftest import ROOT

HEAVY = {"diffusers", "httpx2", "numpy", "PIL", "pydantic", "ray", "rich", "torch", "transformers", "yaml"}
COMMANDS = next(action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
EXAMPLES = [
    line.strip()
    for command in COMMANDS.values()
    for line in str(command.epilog).splitlines()
    if line.strip().startswith("camera-edit ")
]
RUN_ELSEWHERE = {
    "check": "tests/tools/check/test_check.py",
    "bench engine": "tests/tools/bench/test_bench.py",
    "bench serve": "tests/tools/load/test_bench_serve.py",
    "demo": "tests/tools/demo/test_demo.py",
    "doctor": "tests/tools/doctor/test_doctor.py",
    "drain": "tests/tools/test_drain.py",
    "edit": "tests/tools/edit/test_edit.py",
    "generate": "tests/configs/test_kuberay.py",
    "plan": "tests/tools/plan/test_plan_command.py",
    "mcp": "tests/tools/test_mcp.py",
    "run": "tests/service/test_sigterm.py",
    "tiny --train": "tests/tools/training/test_training.py",
}
"""Examples that need a service, minutes or a clone, by their start, and the tests that run these commands."""

PRINT_HELP_AND_MODULES = """
import sys
from serve_app.cli import main
try:
    main(["--help"])
finally:
    print("MODULES", *sys.modules)
"""


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment after each test, since commands set variables."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_help_names_all_commands_and_imports_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", PRINT_HELP_AND_MODULES], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    text, modules = run.stdout.split("MODULES")
    assert all(f"    {command} " in text for command in COMMANDS)
    assert "argparse" in modules.split()
    assert not HEAVY & set(modules.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples_of_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"\nexamples:\n  camera-edit {name}" in capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_valid_command(example: str) -> None:
    words = shlex.split(example.partition(" > ")[0])[1:]
    build_parser().parse_args(words)
    files = [word for word in words if word.endswith(".yaml")]
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_runs_here_or_in_a_named_test(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = example.partition(" > ")[0].removeprefix("camera-edit ")
    elsewhere = [test for start, test in RUN_ELSEWHERE.items() if words.startswith(start)]
    if elsewhere:
        assert (ROOT / elsewhere[0]).is_file()
        return
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(words)) == 0
    assert capsys.readouterr().out


def test_the_shell_completes_commands_and_options() -> None:
    def completions(line: str) -> set[str]:
        environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        # The shell's hook opens descriptor 8 for the answers.
        command = [shutil.which("bash") or "bash", "-c", f"{sys.executable} -m serve_app.cli 8>&1 9>/dev/null"]
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, "_ARGCOMPLETE_IFS": " "}, capture_output=True, text=True
        )
        return {word.strip() for word in done.stdout.split()}

    assert {"edit", "demo"} <= completions("camera-edit ")
    assert "--elevation" in completions("camera-edit edit --el")
    assert completions("camera-edit edit --animate w") == {"webp"}


def test_without_a_command_the_usage_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_check_describes_a_good_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY_FILE)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{serve_app.tools.check.describe(TINY_FILE)}\n"
    assert output.err == ""


def test_check_prints_problems_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(TINY_FILE.read_text().replace("device: cpu", "devise: cpu", 1))
    assert main(["check", str(file)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "applications[0].args.editor.devise: unknown key (did you mean 'device'?)" in output.err
    assert "Traceback" not in output.err


def test_check_of_a_missing_file_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.yaml"
    assert main(["check", str(missing)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"camera-edit: {missing}: cannot be read: ")


def test_tiny_does_not_write_into_a_non_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    assert main(["tiny", str(tmp_path)]) == 1
    assert f"camera-edit: {tmp_path} is not empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine]


def test_demo_refuses_a_bad_picture_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "notes.png", tmp_path / "out"
    text.write_text("no picture")
    assert main(["demo", "--image", str(text), "--out", str(out)]) == 1
    assert (
        f"camera-edit: {text} is not a picture. Send a PNG, JPEG, WebP, GIF, HEIC or AVIF file."
        in capsys.readouterr().err
    )
    assert not out.exists()
    assert not ray.is_initialized()


def test_demo_names_a_missing_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.png"
    assert main(["demo", "--image", str(missing), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"camera-edit: {missing}: No such file or directory\n"


def test_demo_refuses_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--port", port, "--out", str(tmp_path / "out")]) == 1
    assert f"camera-edit: Port {port} is not available: " in capsys.readouterr().err
    assert not ray.is_initialized()


def test_demo_needs_the_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.tools.demo.server.TINY_FILE", tmp_path / "configs" / "tiny-cpu.yaml")
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert f"camera-edit: The demo needs {tmp_path / 'configs' / 'tiny-cpu.yaml'}. " in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve_app.tools.check, "describe", interrupted)
    assert main(["check", str(TINY_FILE)]) == 130
    assert capsys.readouterr() == ("", "")
