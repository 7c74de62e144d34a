"""Runs the service on a local Ray cluster of its own, driven by this process."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

from serve_app.config import TINY_FILE
from serve_app.errors import StartupError
from serve_app.tools.check import ServeFile, check_file
from serve_app.tools.demo.terminal import Print, Reporter
from serve_app.tools.serve_run import deploy, reason_of_failure

HOST = "127.0.0.1"

_POLL_S = 0.5
_START_LIMIT_S = 300.0
_ROUTE_LIMIT_S = 30.0
_NUM_CPUS = 2  # logical CPUs, enough for the tiny deployments and Serve's actors, also on a machine with one core
_OBJECT_STORE_BYTES = 200 * 2**20
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def read_config() -> ServeFile:
    """Check and return the shipped file for a machine without a GPU.

    Raises:
        StartupError: the package was installed without the folder of that file.
    """
    if not TINY_FILE.is_file():
        raise StartupError(f"The demo needs {TINY_FILE}. Clone the repository and install it there: pip install -e .")
    return check_file(TINY_FILE)


def choose_port(wanted: int | None) -> int:
    """Return the wanted port if it is free, or any free port if None.

    Raises:
        StartupError: the port is not available.
    """
    with socket.socket() as probe:
        # As the server does: a port that only a closed connection still holds counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except (OSError, OverflowError) as problem:
            raise StartupError(f"Port {wanted} is not available: {problem}. Choose another with --port.") from problem
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def running(config: ServeDeploySchema, port: int, reporter: Reporter) -> Iterator[str]:
    """Start the application on the port, yield its URL, and stop Serve and Ray at the end in any case.

    Raises:
        StartupError: it did not start; the message contains the reason.
    """
    with TemporaryDirectory() as folder:
        try:
            with reporter.step("Starting Ray", "Ray started"):
                log_folder = _start_ray()
            with reporter.step("Loading", "Service loaded") as show_status:
                deploy(_on_port(_with_temporary_jobs(config, Path(folder)), port))
                _wait_until_loaded(config.applications[0].name, log_folder, show_status)
                _wait_until_routed(f"http://{HOST}:{port}/health")
            yield f"http://{HOST}:{port}"
        finally:
            with reporter.step("Stopping", "Stopped"):
                if ray.is_initialized():  # else Serve would start or look for a cluster to shut down
                    serve.shutdown()
                ray.shutdown()


def _start_ray() -> Path:
    """Start a local Ray cluster and return the folder of Serve's logs."""
    context = ray.init(
        address="local",
        num_cpus=_NUM_CPUS,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    address: dict[str, str] = context.address_info  # type: ignore[attr-defined] # RayContext has it, its base class does not
    return Path(address["session_dir"]) / "logs" / "serve"


def _with_temporary_jobs(config: ServeDeploySchema, folder: Path) -> ServeDeploySchema:
    """The config with its jobs in this folder, so that the demo does not take over jobs of another service."""
    application = config.applications[0]
    store = {"kind": "sqlite", "path": str(folder / "jobs.sqlite3")}
    args = {**application.args, "jobs": {**application.args.get("jobs", {}), "store": store}}
    return config.model_copy(update={"applications": [application.model_copy(update={"args": args})]})


def _on_port(config: ServeDeploySchema, port: int) -> ServeDeploySchema:
    http_options = config.http_options.model_copy(update={"host": HOST, "port": port})
    return config.model_copy(update={"http_options": http_options})


def _wait_until_loaded(name: str, log_folder: Path, show_status: Print) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        application = serve.status().applications.get(name)
        if application is not None:
            if application.status == ApplicationStatus.RUNNING:
                return
            if application.status in _FAILED:
                raise StartupError(
                    f"The service did not start: {reason_of_failure(application)}\nIts logs are in {log_folder}"
                )
            show_status(_states(application))
        time.sleep(_POLL_S)
    raise StartupError(f"The service did not start within {_START_LIMIT_S:g} s. Its logs are in {log_folder}")


def _wait_until_routed(url: str) -> None:
    """Wait for the proxy, which learns the routes after the application runs and answers 404 or 503 until then."""
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
        states = [str(state) for state in deployment.replica_states]  # strings, despite their annotation
        parts.append(f"{name} {'/'.join(states) or deployment.status.value}")
    return ", ".join(parts) or application.status.value
