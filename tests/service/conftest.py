"""The tiny app as a user runs it: `serve run configs/random-cpu.yaml`, on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import RANDOM_FILE, ROOT
from tests.processes import free_port
from tests.service.receiver import Receiver, receiving

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
LOG_TIMEOUT_S = 20


@dataclass(frozen=True)
class Service:
    """A running service: where it listens, and what it has logged so far."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def logged(self, pattern: str) -> list[Any]:
        """What the log holds of a pattern, once it holds any: Ray brings the replicas' lines with a delay."""
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while not (found := re.findall(pattern, self.log)):
            assert time.monotonic() < deadline, f"the log never held {pattern!r}"
            time.sleep(0.1)
        return found

    def run(self, **fields: Any) -> dict[str, Any]:
        """A job's envelope; anything but HTTP 200 fails the test."""
        response = self.post(fields)
        assert response.status_code == 200, response.text
        envelope: dict[str, Any] = response.json()
        return envelope

    def post(self, fields: dict[str, Any]) -> requests.Response:
        return requests.post(f"{self.url}/v2/any/runsync", json={"input": fields}, timeout=120)


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with running(folder, free_port(), jobs_of(folder, receiver), fetch={"origins": [receiver.origin]}) as service:
        yield service


def jobs_of(folder: Path, receiver: Receiver) -> dict[str, Any]:
    """Settings of jobs for a test: a store of its own, and webhooks to the receiver without long pauses."""
    store = {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}
    return {"store": store, "webhook_origins": [receiver.origin], "webhook_gap_s": 0.2, "lease_s": 4}


@contextmanager
def running(
    folder: Path, port: int, jobs: dict[str, Any], environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[Service]:
    """The tiny app on a port, until the end of the block; `settings` as for `tiny_file`."""
    service = Service(f"http://127.0.0.1:{port}", folder / "serve.log")
    file = tiny_file(folder / "tiny.yaml", port, jobs=jobs, **settings)
    process = serve_run(file, service.log_file, **(environment or {}))
    try:
        wait_until_ready(service, process)
        yield service
    finally:
        stop(process)


def on_port(file: Path, port: int, copy: Path) -> Path:
    """A copy of a Serve file that differs in nothing but its port."""
    config = yaml.safe_load(file.read_text())
    config["http_options"]["port"] = port
    copy.write_text(yaml.safe_dump(config))
    return copy


def tiny_file(
    copy: Path, port: int, build: str = "serve_app.app:build", shipped: Path = RANDOM_FILE, **settings: Any
) -> Path:
    """A copy of a shipped file with another port and these settings of the application. `rewriter=None` leaves the
    Rewriter out: the app starts sooner. `build` may name a faulty copy of the app."""
    config = yaml.safe_load(on_port(shipped, port, copy).read_text())
    application = config["applications"][0]
    application["import_path"] = build
    application["args"].update(settings)
    names = {"Rewriter"} if application["args"]["rewriter"] is None else set()
    application["deployments"] = [each for each in application["deployments"] if each["name"] not in names]
    copy.write_text(yaml.safe_dump(config))
    return copy


def serve_run(file: Path, log_file: Path, program: str = "serve", **environment: str) -> "subprocess.Popen[bytes]":
    """`serve run FILE`, or `camera-edit run FILE`, on a cluster of its own."""
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [Path(sys.executable).parent / program, "run", file],
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
            response = requests.get(f"{service.url}/health", timeout=5)
            # Before the routes are there, Serve's proxy answers 404 in plain text.
            if response.status_code == 401 or response.json()["workers"]["ready"]:
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
