"""The replicas of a deployment by Serve's status, which is a fake."""

import asyncio
from typing import Any, cast

import pytest
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus

from serve_app.serving import handles
from serve_app.serving.cached_call import CachedCall
from serve_app.serving.handles import fault, worker_counts

NOTHING = {"idle": 0, "initializing": 0, "ready": 0, "running": 0, "throttled": 0, "unhealthy": 0}


def application(**deployments: dict[str, int]) -> Any:
    overviews = {
        name: DeploymentStatusOverview("HEALTHY", "", states, "")  # type: ignore[arg-type]
        for name, states in deployments.items()
    }
    return ApplicationStatusOverview("RUNNING", "", 0.0, overviews)  # type: ignore[arg-type]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> ServeStatus:
    """Serve's status, which a test may fill."""
    status = ServeStatus()
    monkeypatch.setattr("ray.serve.status", lambda: status)
    monkeypatch.setattr(handles, "_serve_status", CachedCall(handles._status_in_thread, 0.0))
    return status


def test_replicas_by_state(status: ServeStatus) -> None:
    status.applications["app"] = application(Editor={"RUNNING": 3, "STARTING": 1, "RECOVERING": 1, "STOPPING": 7})
    counts = asyncio.run(worker_counts("app", "Editor", 2))
    assert counts == {**NOTHING, "idle": 1, "initializing": 2, "ready": 3, "running": 2}


def test_during_a_rollout_nothing_is_up(status: ServeStatus) -> None:
    for applications in (
        {},
        {"other": application()},
        {"app": application()},
        {"app": application(Jobs={"RUNNING": 1})},
    ):
        status.applications = applications
        assert asyncio.run(worker_counts("app", "Editor", 1)) == NOTHING
        assert asyncio.run(fault("app", "Editor", cast(Any, None))) == "no Editor is up; 0 starting"


def test_serves_status_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    num_calls, now_s = 0, 0.0

    def count() -> ServeStatus:
        nonlocal num_calls
        num_calls += 1
        return ServeStatus()

    monkeypatch.setattr("ray.serve.status", count)
    cached = CachedCall(handles._status_in_thread, handles._STATUS_S, lambda: now_s)
    monkeypatch.setattr(handles, "_serve_status", cached)

    async def read() -> None:
        await asyncio.gather(*(worker_counts("app", name, 0) for name in ("Editor", "Jobs", "Editor")))
        await fault("app", "Editor", cast(Any, None))

    asyncio.run(read())
    assert num_calls == 1
    now_s += 1.0
    asyncio.run(read())
    assert num_calls == 2
