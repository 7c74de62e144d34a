"""The tiny app as a user runs it, `serve run configs/random-cpu.yaml`, on a free port. The tests share four services:
`service`, `narrow`, `on_redis` and `toy`; tests/units.py keeps the tests of each together.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from serve_app.config import TINY_FILE
from tests.conftest import RANDOM_FILE, ROOT
from tests.processes import RedisServer, free_port, starting
from tests.service.faulty import FAULT_VARIABLE
from tests.service.receiver import Receiver, receiving
from tests.units import unit_of

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
LOG_TIMEOUT_S = 20

SMALL = {"output_area_px": 128**2, "vae_area_px": 128**2, "condition_area_px": 64**2}
"""The sizes of edits in tests to which pictures do not matter: a quarter of the work."""


@dataclass(frozen=True)
class Service:
    """A running service: where it listens, what it has logged so far, and the API key that clients send, if any."""

    url: str
    log_file: Path
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}

    def with_key(self, key: str) -> "Service":
        """The same service, as another client sees it."""
        return replace(self, key=key)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def logged(self, pattern: str) -> list[Any]:
        """All matches of a pattern in the log, once there is one: Ray forwards the replicas' lines with a delay."""
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while not (found := re.findall(pattern, self.log)):
            assert time.monotonic() < deadline, f"the log never contained {pattern!r}"
            time.sleep(0.1)
        return found

    def run(self, **fields: Any) -> dict[str, Any]:
        """A job's envelope; anything but HTTP 200 fails the test."""
        response = self.post(fields)
        assert response.status_code == 200, response.text
        envelope: dict[str, Any] = response.json()
        return envelope

    def post(self, fields: dict[str, Any]) -> requests.Response:
        body = {"input": fields}
        return requests.post(f"{self.url}/v2/any/runsync", json=body, headers=self.headers, timeout=120)


@dataclass
class Host:
    """A Serve file, the service that runs it, and the service's process, which may be killed and started again."""

    file: Path
    service: Service
    program: str = "serve"
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    def start(self) -> None:
        with starting():
            self._process = serve_run(self.file, self.service.log_file, self.program, **self.environment)
            wait_until_ready(self.service, self._process)

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)


def host_in(
    folder: Path,
    port: int | None = None,
    program: str = "serve",
    environment: Mapping[str, str] | None = None,
    key: str | None = None,
    **settings: Any,
) -> Host:
    """The tiny app on a port, with its files in a folder; `settings` as for `tiny_file`."""
    port = free_port() if port is None else port
    file = tiny_file(folder / "tiny.yaml", port, **settings)
    return Host(file, Service(f"http://127.0.0.1:{port}", folder / "serve.log", key), program, environment or {})


@contextmanager
def running(
    folder: Path, port: int, jobs: dict[str, Any], environment: dict[str, str] | None = None, **settings: Any
) -> Iterator[Service]:
    """The tiny app on a port, until the end of the block; `settings` as for `tiny_file`."""
    host = host_in(folder, port, environment=environment, jobs=jobs, **settings)
    try:
        host.start()
        yield host.service
    finally:
        host.stop()


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def jobs_of(folder: Path, receiver: Receiver) -> dict[str, Any]:
    """The `jobs` settings of a test: its own store, and webhooks to the receiver with short pauses."""
    store = {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}
    return {"store": store, "webhook_origins": [receiver.origin], "webhook_gap_s": 0.2, "lease_s": 4}


SwitchTo = Callable[[Host], Host]

_started: list[Host] = []
"""The shared service that is running, if any."""


def stop_started() -> None:
    while _started:
        _started.pop().stop()


@pytest.fixture(scope="session")
def switch_to() -> Iterator[SwitchTo]:
    """Stops the shared service that is running and starts the next one."""

    def switch(host: Host) -> Host:
        stop_started()
        _started.append(host)
        host.start()
        return host

    yield switch
    stop_started()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stops a service after its last test."""
    if nextitem is None or unit_of(nextitem.nodeid) != unit_of(item.nodeid):
        stop_started()


@pytest.fixture(scope="session")
def open_host(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, switch_to: SwitchTo) -> Host:
    folder = tmp_path_factory.mktemp("service")
    settings: dict[str, Any] = {"jobs": jobs_of(folder, receiver), "fetch": {"origins": [receiver.origin]}}
    settings["served_model_names"] = ["Qwen/Qwen-Image-Edit-2511", "Qwen-Image-Edit-2511", "gpt-image-qwen"]  # n8n's
    sizes = {**SMALL, "output_area_px": 256**2}  # as in the shipped file, for the tests of the documents' programs
    # Room for edits of several pictures to share a step.
    return switch_to(host_in(folder, editor={"max_pack_tokens": 4096}, sizes=sizes, **settings))


@pytest.fixture(scope="session")
def service(open_host: Host) -> Service:
    """A service that requires no API key."""
    return open_host.service


KEY, KEY_IN_FILE, OPERATOR_KEY = "planted-key-of-a-customer", "the-key", "planted-key-of-the-operator"
QUEUE = 8


@pytest.fixture(scope="session")
def narrow_host(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, switch_to: SwitchTo) -> Host:
    folder = tmp_path_factory.mktemp("narrow")
    keys = folder / "keys"
    keys.write_text(f"{KEY_IN_FILE}\n")
    environment = {"CAMERA_EDIT_API_KEYS": KEY, "CAMERA_EDIT_OPERATOR_KEYS": OPERATOR_KEY}
    # All places for any client, so that a test of a full queue does not depend on who came before.
    places = {"max_active_jobs": 1, "max_queued_jobs": QUEUE, "max_places_per_key": 1 + QUEUE}
    jobs = {**jobs_of(folder, receiver), **places}
    settings: dict[str, Any] = {"jobs": jobs, "fetch": {"origins": [receiver.origin]}, "api_keys_file": str(keys)}
    settings["sizes"] = SMALL
    return switch_to(host_in(folder, None, "camera-edit", environment, KEY, **settings))


@pytest.fixture(scope="session")
def narrow(narrow_host: Host) -> Service:
    """A service that requires an API key, runs one job and queues eight, started by `camera-edit run`."""
    return narrow_host.service


@dataclass(frozen=True)
class OnRedis:
    """A service that stores its jobs in its own Redis, on a device that fails on demand, with the receiver as its
    rewriter.

    Attributes:
        fault: creating this file makes the device fail once.
    """

    service: Service
    redis: RedisServer
    fault: Path
    process: "subprocess.Popen[bytes]"


@pytest.fixture(scope="session")
def on_redis(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, switch_to: SwitchTo) -> Iterator[OnRedis]:
    folder = tmp_path_factory.mktemp("redis")
    fault, redis = folder / "once", RedisServer(folder)
    jobs = {**jobs_of(folder, receiver), "store": {"kind": "redis", "url": redis.url}}
    environment = {FAULT_VARIABLE: str(fault)}
    redis.start()
    try:
        settings: dict[str, Any] = {
            "build": "tests.service.faulty:build",
            "jobs": jobs,
            "rewriter": {"endpoint": f"{receiver.origin}/v1", "model": "any"},
            "sizes": SMALL,
        }
        host = switch_to(host_in(folder, environment=environment, **settings))
        yield OnRedis(host.service, redis, fault, host.process)
    finally:
        redis.stop()


TOY_KEY = "k-1"
# Valid requests that schemathesis generates are drawn, too: small limits leave time for the invalid ones.
TOY_LIMITS = {"max_side_px": 128, "max_inference_steps": 4, "max_edits_per_request": 8}


@pytest.fixture(scope="session")
def toy_host(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, switch_to: SwitchTo) -> Host:
    folder = tmp_path_factory.mktemp("toy")
    environment = {"CAMERA_EDIT_API_KEYS": f"another, {TOY_KEY}", "CAMERA_EDIT_OPERATOR_KEYS": "operator-key"}
    settings: dict[str, Any] = {"jobs": jobs_of(folder, receiver), "limits": TOY_LIMITS, "shipped": TINY_FILE}
    return switch_to(host_in(folder, environment=environment, key=TOY_KEY, **settings))


@pytest.fixture(scope="session")
def toy(toy_host: Host) -> Service:
    """A service with the shipped tiny weights that requires an API key, with small limits."""
    return toy_host.service


def on_port(file: Path, port: int, copy: Path) -> Path:
    """A copy of a Serve file that differs in nothing but its port."""
    config = yaml.safe_load(file.read_text())
    config["http_options"]["port"] = port
    copy.write_text(yaml.safe_dump(config))
    return copy


def tiny_file(
    copy: Path, port: int, build: str = "serve_app.app:build", shipped: Path = RANDOM_FILE, **settings: Any
) -> Path:
    """A copy of a shipped file with another port and these settings of the application; `editor` has those that change.
    `rewriter=None`, or one with an endpoint, leaves the Rewriter out: the app starts sooner. `build` may name a faulty
    copy of the app."""
    config = yaml.safe_load(on_port(shipped, port, copy).read_text())
    application = config["applications"][0]
    application["import_path"] = build
    application["args"]["editor"] |= settings.pop("editor", {})
    application["args"].update(settings)
    names = set() if "source" in (application["args"]["rewriter"] or {}) else {"Rewriter"}
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
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready(service):
        assert process.poll() is None, service.log
        assert time.monotonic() < deadline, f"not ready after {START_TIMEOUT_S} s:\n{service.log}"
        time.sleep(0.5)


def is_ready(service: Service) -> bool:
    try:
        response = requests.get(f"{service.url}/health", headers=service.headers, timeout=5)
        # Before the routes are there, Serve's proxy answers 503, or 404 in plain text if it lacks our middleware.
        return bool(response.json()["workers"]["ready"])
    except (requests.ConnectionError, requests.Timeout, KeyError, ValueError):
        return False  # Not listening yet, or without the app's routes.


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
