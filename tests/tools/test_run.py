"""`camera-edit run` before it starts anything; tests/service/test_sigterm.py runs and stops it."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray._common.utils import get_ray_address_file

from serve_app.errors import ConfigError, StartupError
from serve_app.tools import run as launch
from serve_app.tools.check import check_file
from serve_app.tools.drain import Print
from serve_app.tools.run import run, url_of
from tests.conftest import RANDOM_FILE
from tests.processes import free_port


@pytest.mark.parametrize(
    ("options", "prefix", "url"),
    [
        ({}, "/", "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 80}, "/", "http://127.0.0.1:80"),
        ({"host": "::"}, "/edit", "http://[::1]:8000/edit"),
        ({"host": "10.0.0.7", "root_path": "/gpu"}, "/edit", "http://10.0.0.7:8000/gpu/edit"),
    ],
)
def test_url_of_the_service_that_is_drained(
    options: dict[str, object], prefix: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_EDIT_API_KEYS", "a-key")
    config = yaml.safe_load(RANDOM_FILE.read_text())
    config["http_options"].update(options)
    config["applications"][0]["route_prefix"] = prefix
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    assert url_of(check_file(file).serve) == url


def test_a_file_that_does_not_pass_the_check_is_not_started(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(RANDOM_FILE.read_text().replace("num_replicas", "num_replica"))
    with pytest.raises(ConfigError, match="num_replica: unknown key"):
        run(file, 1, print)


def test_the_drain_at_the_end_gets_the_files_operator_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a signal. The child is played by a program that waits."""
    config = yaml.safe_load(RANDOM_FILE.read_text())
    config["applications"][0]["args"].update(operator_keys_file="/operator-keys", api_keys_file="/api-keys")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nkill -TERM {os.getpid()}\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    drained: list[object] = []
    monkeypatch.setattr(
        launch, "drain", lambda url, grace_s, print_line, keys_file: drained.append((url, grace_s, keys_file))
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert run(file, 7, print) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert drained == [("http://127.0.0.1:8000", 7, "/operator-keys")]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray records its latest cluster, in a temporary folder of the test's own."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = Path(get_ray_address_file(None))
    path.parent.mkdir()
    return path


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in the place of the child that writes the RAY_ADDRESS that it gets to this file, and a reason for
    `run`."""
    seen = tmp_path / "seen"
    replace_child(f'printf %s "${{RAY_ADDRESS-unset}}" > {seen}; printf "it is a fake" > "$4"', tmp_path, monkeypatch)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield seen
    for number, handler in handlers.items():
        signal.signal(number, handler)


def replace_child(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bin" / "python"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def run_child(print_line: Print) -> None:
    """Run the fixture's program to its end."""
    with pytest.raises(StartupError, match=r"^The service did not start: it is a fake$"):
        run(RANDOM_FILE, 1, print_line)


@pytest.mark.parametrize("status", [0, 15])
@pytest.mark.usefixtures("child")
def test_a_child_that_ends_without_a_reason_is_an_error(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_child(f"exit {status}", tmp_path, monkeypatch)
    with pytest.raises(StartupError, match=f"ended with status {status}. Its output is above"):
        run(RANDOM_FILE, 1, print)


@pytest.mark.parametrize("dead", [None, "", "no address", "127.0.0.1:", "127.0.0.1:99999999", "no.such.host.test:1"])
def test_a_record_of_a_cluster_that_is_gone_is_not_followed(dead: str | None, record: Path, child: Path) -> None:
    record.write_text(f"127.0.0.1:{free_port()}" if dead is None else dead)
    lines: list[str] = []
    run_child(lines.append)
    assert child.read_text() == "local"
    assert lines == [f"{record} names a cluster that does not answer: starting a new one with RAY_ADDRESS=local"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_cluster_that_answers_is_joined(host: str, record: Path, child: Path) -> None:
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        record.write_text(f"{host}:{listening.getsockname()[1]}\n")
        run_child(lines.append)
    assert (child.read_text(), lines) == ("unset", [])


def test_without_a_record_nothing_is_set(record: Path, child: Path) -> None:
    lines: list[str] = []
    run_child(lines.append)
    assert (child.read_text(), lines) == ("unset", [])


def test_an_address_in_the_environment_goes_before_the_record(
    record: Path, child: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write_text(f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    lines: list[str] = []
    run_child(lines.append)
    assert (child.read_text(), lines) == ("10.0.0.7:6379", [])
