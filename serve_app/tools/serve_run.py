"""`python -m serve_app.tools.serve_run FILE REASON_FILE`: `serve run FILE`, which ends if the service does not start.

The child process of `camera-edit run`. `serve run` itself keeps running after its application has failed. Only the
process that deploys the application knows the address of its cluster, so this process reads Serve's status.
"""

import sys
import time
from itertools import dropwhile
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.api import serve_start
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.config import gRPCOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

_POLL_S = 1.0
_BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")  # a deployment's states; its enumeration is not public


def main(file: Path, reason_file: Path) -> int:
    """Deploy the file's only application and wait for a signal. If its first start fails, write the reason to the
    other file, delete the application, and return 1."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    name = config.applications[0].name
    ray.init(namespace=SERVE_NAMESPACE)
    # On a cluster that has the application, replicas of the former version may still serve.
    is_first = name not in serve.status().applications
    deploy(config)
    print(f"{file}: deploying {name}", flush=True)
    reason = wait_for_start(name) if is_first else None
    if reason is not None:
        reason_file.write_text(reason)
        serve.delete(name, _blocking=False)  # On a cluster that goes on, the next start is a first one again.
        return 1
    while True:
        time.sleep(3600)


def deploy(config: ServeDeploySchema) -> None:
    """Give Serve the config as `serve run FILE` does, and return at once. Ray has no public function for this."""
    client = serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=config.proxy_location,
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
        controller_options=config.controller_options,
    )
    client.deploy_apps(config)


def wait_for_start(name: str) -> str | None:
    """Wait until the application runs, however long it loads; returns None, or why its start failed."""
    while True:
        try:
            application = serve.status().applications.get(name)
        except RayError:
            application = None  # The controller restarts.
        if application is not None and application.status == ApplicationStatus.RUNNING:
            return None
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            return reason_of_failure(application)
        time.sleep(_POLL_S)


def reason_of_failure(application: ApplicationStatusOverview) -> str:
    """The messages of the broken deployments, or else the application's."""
    broken = [each.message for each in application.deployments.values() if each.status.value in _BROKEN]
    return "\n".join(exception_text(message) for message in broken or [application.message])


def exception_text(message: str) -> str:
    """The exception's text if a message ends in a traceback; any other message unchanged."""
    # The last frame: between chained exceptions, Ray puts a line of its own instead of "Traceback".
    _, found, frame = message.rpartition("\n  File ")
    lines = dropwhile(lambda line: not line or line.startswith(" "), frame.splitlines()[1:])
    return "\n".join(lines) if found else message


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
