"""The tiny app as a user runs it: `serve run configs/tiny-cpu.yaml`, on a free port."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import ROOT, TINY_FILE

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60


@dataclass(frozen=True)
class Service:
    """A running service: where it listens, and what it has logged so far."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def run(self, **fields: Any) -> dict[str, Any]:
        """A job's envelope; anything but HTTP 200 fails the test."""
        response = self.post(fields)
        assert response.status_code == 200, response.text
        envelope: dict[str, Any] = response.json()
        return envelope

    def post(self, fields: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/v2/any/runsync", json={"input": fields}, timeout=120)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    port = free_port()
    running = Service(f"http://127.0.0.1:{port}", folder / "serve.log")
    process = serve_run(on_port(TINY_FILE, port, folder / "tiny.yaml"), running.log_file)
    try:
        wait_until_ready(running, process)
        yield running
    finally:
        stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_port(file: Path, port: int, copy: Path) -> Path:
    """A copy of a Serve file that differs in nothing but its port."""
    config = yaml.safe_load(file.read_text())
    config["http_options"]["port"] = port
    copy.write_text(yaml.safe_dump(config))
    return copy


def serve_run(file: Path, log_file: Path, **environment: str) -> subprocess.Popen[bytes]:
    """`serve run FILE` on a cluster of its own."""
    with log_file.open("wb") as log:
        return subprocess.Popen(
            [Path(sys.executable).parent / "serve", "run", file],
            cwd=ROOT,
            env={
                **os.environ,
                "RAY_ADDRESS": "local",
                "RAY_AUTH_MODE": "disabled",
                "PYTHONUNBUFFERED": "1",
                **environment,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_ready(service: Service, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(START_TIMEOUT_S):
        assert process.poll() is None, service.log
        try:
            if requests.get(f"{service.url}/health", timeout=5).json()["workers"]["ready"]:
                return
        except (requests.ConnectionError, requests.Timeout, KeyError, ValueError):
            pass  # Not listening yet, or not yet ours.
        time.sleep(1)
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s:\n{service.log}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
