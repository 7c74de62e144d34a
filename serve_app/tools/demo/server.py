"""The service on a Ray of its own, in this process, for as long as the demo needs it."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import ray
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

from serve_app.config import TINY_FILE
from serve_app.errors import StartupError
from serve_app.tools.check import ServeFile, check_file
from serve_app.tools.demo.terminal import Print, Reporter

HOST = "127.0.0.1"

_POLL_S = 0.5
_START_LIMIT_S = 300.0
_ROUTE_LIMIT_S = 30.0
_NUM_CPUS = 2  # what the tiny deployments and Serve's own actors share, on machines with one core too
_OBJECT_STORE_BYTES = 200 * 2**20
_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")  # a deployment's states; its enumeration is not public
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def read_config() -> ServeFile:
    """The shipped file for a machine without a GPU, checked.

    Raises:
        StartupError: the package was installed without the folder that holds it.
    """
    if not TINY_FILE.is_file():
        raise StartupError(f"The demo needs {TINY_FILE}. Clone the repository and install it there: pip install -e .")
    return check_file(TINY_FILE)


def choose_port(wanted: int | None) -> int:
    """The port asked for, or a free one.

    Raises:
        StartupError: the port cannot be had.
    """
    with socket.socket() as probe:
        # As the server will: a port that a closed connection still holds counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except (OSError, OverflowError) as problem:
            raise StartupError(f"Port {wanted} cannot be had: {problem}. Name another one with --port.") from problem
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(config: ServeDeploySchema, port: int, reporter: Reporter) -> Iterator[str]:
    """Start the application on the port, give its URL, and stop everything at the end, whatever that is.

    Raises:
        StartupError: it did not come up; the message says why.
    """
    with TemporaryDirectory() as folder:
        try:
            with reporter.step("Starting Ray", "Ray started"):
                log_folder = _start_ray()
            with reporter.step("Loading", "Service loaded") as say:
                _deploy(_with_own_jobs(config, Path(folder)), port)
                _wait_until_loaded(config.applications[0].name, log_folder, say)
                _wait_until_routed(f"http://{HOST}:{port}/health")
            yield f"http://{HOST}:{port}"
        finally:
            with reporter.step("Stopping", "Stopped"):
                if ray.is_initialized():  # else Serve would start or seek a Ray to shut down
                    serve.shutdown()
                ray.shutdown()


def _start_ray() -> Path:
    """Start a Ray of our own; the folder of its logs."""
    context = ray.init(
        address="local",
        num_cpus=_NUM_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    address: dict[str, str] = context.address_info  # type: ignore[attr-defined] # a RayContext has it, its base not
    return Path(address["session_dir"]) / "logs" / "serve"


def _with_own_jobs(config: ServeDeploySchema, folder: Path) -> ServeDeploySchema:
    """The same with its jobs in this folder: those of a service that the user runs are not the demo's to take up."""
    application = config.applications[0]
    store = {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}
    args = {**application.args, "jobs": {**application.args.get("jobs", {}), "store": store}}
    return config.model_copy(update={"applications": [application.model_copy(update={"args": args})]})


def _deploy(config: ServeDeploySchema, port: int) -> None:
    """Deploy the file as `serve run FILE` does, on another port. Ray has no public call for it."""
    http_options = config.http_options.model_copy(update={"host": HOST, "port": port})
    client = serve_start(
        http_options=http_options.model_dump(),
        proxy_location=config.proxy_location,
        controller_options=config.controller_options,
    )
    client.deploy_apps(config.model_copy(update={"http_options": http_options}))


def _wait_until_loaded(name: str, log_folder: Path, say: Print) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        application = serve.status().applications.get(name)
        if application is not None:
            if application.status == ApplicationStatus.RUNNING:
                return
            if application.status in _FAILED:
                raise StartupError(f"The service did not start: {_reason(application)}\nIts logs lie in {log_folder}")
            say(_states(application))
        time.sleep(_POLL_S)
    raise StartupError(f"The service did not start within {_START_LIMIT_S:g} s. Its logs lie in {log_folder}")


def _wait_until_routed(url: str) -> None:
    """The proxy learns its routes a moment after the application runs; until then it answers 404 or 503."""
    deadline = time.monotonic() + _ROUTE_LIMIT_S
    with httpx2.Client(trust_env=False) as client:
        while (answer := client.get(url)).status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.SERVICE_UNAVAILABLE):
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
    if answer.status_code != httpx2.codes.OK:
        raise StartupError(f"The service runs, but {url} answers {answer.status_code}: {answer.text}")


def _states(application: ApplicationStatusOverview) -> str:
    """Such as `Editor STARTING, Ingress HEALTHY`."""
    parts = []
    for name, deployment in sorted(application.deployments.items()):
        states = [str(state) for state in deployment.replica_states]  # plain words, whatever their annotation says
        parts.append(f"{name} {'/'.join(states) or deployment.status.value}")
    return ", ".join(parts) or application.status.value


def _reason(application: ApplicationStatusOverview) -> str:
    """What the broken deployments say, or else the application."""
    broken = [each.message for each in application.deployments.values() if each.status.value in _BROKEN]
    return "\n".join(last_words(message) for message in broken or [application.message])


def last_words(message: str) -> str:
    """The exception's own text where a message ends in a traceback; any other message as it is."""
    _, found, traceback = message.rpartition("Traceback (most recent call last):")
    lines = dropwhile(lambda line: not line or line.startswith(" "), traceback.splitlines())
    return "\n".join(lines) if found else message
