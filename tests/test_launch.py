"""`camera-edit run` before it starts anything; tests/service/test_doors.py has it run and stop."""

import os
import signal
import sys
from pathlib import Path

import pytest
import yaml

from serve_app import launch
from serve_app.check import check_file
from serve_app.errors import ConfigError
from serve_app.launch import run, url_of
from tests.conftest import RANDOM_FILE


@pytest.mark.parametrize(
    ("options", "prefix", "url"),
    [
        ({}, "/", "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 80}, "/", "http://127.0.0.1:80"),
        ({"host": "::"}, "/edit", "http://[::1]:8000/edit"),
        ({"host": "10.0.0.7", "root_path": "/gpu"}, "/edit", "http://10.0.0.7:8000/gpu/edit"),
    ],
)
def test_where_the_service_is_asked_to_drain(
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
    """On a signal. `serve run` is played by a program that waits."""
    config = yaml.safe_load(RANDOM_FILE.read_text())
    config["applications"][0]["args"].update(operator_keys_file="/operator-keys", api_keys_file="/api-keys")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    serve = tmp_path / "serve"
    serve.write_text(f"#!/bin/sh\nkill -TERM {os.getpid()}\nexec sleep 60\n")
    serve.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    drained: list[object] = []
    monkeypatch.setattr(launch, "drain", lambda url, grace_s, say, keys_file: drained.append((url, grace_s, keys_file)))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert run(file, 7, print) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert drained == [("http://127.0.0.1:8000", 7, "/operator-keys")]
