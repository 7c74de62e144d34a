"""The child of `camera-edit run`; tests/service/test_failed_start.py starts it."""

import time
from pathlib import Path

import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from serve_app.tools import serve_run
from serve_app.tools.serve_run import exception_text, main, wait_for_start
from tests.conftest import RANDOM_FILE

NAME = "camera-edit"
BROKEN = (
    'The deployment failed.\nTraceback (most recent call last):\n  File "a.py"\n    load()\nConfigError: no LoRA here'
)


def status(application: str, message: str = "", **deployments: tuple[str, str]) -> ServeStatus:
    """Serve's status with one application; `deployments`: state and message of each."""
    details = {
        name: DeploymentStatusOverview(DeploymentStatus(state), DeploymentStatusTrigger.UNSPECIFIED, {}, text)
        for name, (state, text) in deployments.items()
    }
    overview = ApplicationStatusOverview(ApplicationStatus(application), message, 0.0, details)
    return ServeStatus(applications={NAME: overview})


class _Waiting(Exception):
    """Raised instead of a sleep, by a fake."""


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[ServeStatus | RayActorError]:
    """What Serve reports, in this order; an error is raised."""
    given: list[ServeStatus | RayActorError] = []

    def next_status() -> ServeStatus:
        following = given.pop(0)
        if isinstance(following, RayActorError):
            raise following
        return following

    monkeypatch.setattr(serve, "status", next_status)
    monkeypatch.setattr(serve_run, "_POLL_S", 0)
    return given


def test_a_start_that_succeeds_has_no_reason_and_is_not_watched_any_longer(
    statuses: list[ServeStatus | RayActorError],
) -> None:
    later = status("DEPLOY_FAILED", "of a later file")
    statuses += [ServeStatus(), status("DEPLOYING"), RayActorError(), status("RUNNING"), later]
    assert wait_for_start(NAME) is None
    assert statuses == [later]


def test_the_reason_is_that_of_the_broken_deployments(statuses: list[ServeStatus | RayActorError]) -> None:
    statuses.append(
        status("DEPLOY_FAILED", "Editor failed", Editor=("DEPLOY_FAILED", BROKEN), Jobs=("HEALTHY", "serves"))
    )
    assert wait_for_start(NAME) == "ConfigError: no LoRA here"


def test_without_deployments_the_reason_is_the_applications(statuses: list[ServeStatus | RayActorError]) -> None:
    statuses.append(status("DEPLOY_FAILED", BROKEN))
    assert wait_for_start(NAME) == "ConfigError: no LoRA here"


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The configs that were deployed, to no cluster, and the names of applications that were deleted."""
    calls: list[object] = []
    monkeypatch.setattr(ray, "init", lambda namespace: None)
    monkeypatch.setattr(serve_run, "deploy", calls.append)
    monkeypatch.setattr(serve, "delete", lambda name, _blocking: calls.append(name))
    return calls


def test_a_failed_first_start_ends_with_status_1_and_leaves_no_application(
    statuses: list[ServeStatus | RayActorError], deployed: list[object], tmp_path: Path
) -> None:
    statuses += [ServeStatus(), status("DEPLOY_FAILED", BROKEN)]
    assert main(RANDOM_FILE, tmp_path / "reason") == 1
    assert (tmp_path / "reason").read_text() == "ConfigError: no LoRA here"
    assert deployed[1:] == [NAME]


def test_an_application_that_the_cluster_has_already_is_not_watched(
    statuses: list[ServeStatus | RayActorError],
    deployed: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its new file fails, its former replicas serve."""

    def wait(seconds: float) -> None:
        raise _Waiting

    monkeypatch.setattr(time, "sleep", wait)
    statuses += [status("RUNNING"), status("DEPLOY_FAILED", BROKEN)]
    with pytest.raises(_Waiting):
        main(RANDOM_FILE, tmp_path / "reason")
    assert len(deployed) == 1
    assert not (tmp_path / "reason").exists()


def test_exception_text_is_the_exceptions_own_text_with_all_its_lines() -> None:
    message = (
        "The deployment failed.\nTraceback (most recent call last):\n  File a\n    x()\nRuntimeError: Traceback "
        "(most recent call last):\n  File b\n    y()\n    ^^^\n\nLoraAuditError: no home for\n  block.1\n  block.2"
    )
    assert exception_text(message) == "LoraAuditError: no home for\n  block.1\n  block.2"
    assert exception_text("The deployment\n  waits.") == "The deployment\n  waits."


def test_exception_text_of_chained_exceptions_is_the_last_ones() -> None:
    message = (
        "Traceback (most recent call last):\n  File a\n    x()\nFileNotFoundError: gone\n\nThe above exception was the "
        "direct cause of the following exception:\n\nray::ServeReplica:camera-edit:Editor.initialize() (pid=1)\n"
        "  File b\n    y()\nLoraAuditError: could not be read"
    )
    assert exception_text(message) == "LoraAuditError: could not be read"
