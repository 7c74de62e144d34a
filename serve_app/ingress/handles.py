"""Deployment handles as the ports that EditService knows."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import ray
from ray import ObjectRef, serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_app.edits.request import EditJob, EditResult, Pictures, Rewrite, RewriteJob
from serve_app.errors import Overloaded, ServiceError, ServiceUnavailable

T = TypeVar("T")


def share(pictures: Pictures) -> "ObjectRef[Pictures]":
    """Put pictures into the object store, so that each deployment reads them there."""
    return ray.put(pictures)


class EditorHandle:
    """The Editor deployment as an EditorPort."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def edit(self, job: EditJob, pictures: "ObjectRef[Pictures]") -> EditResult:
        result: EditResult = await _call(self._handle.edit.remote(job, pictures))
        return result


class RewriterHandle:
    """The Rewriter deployment as a RewriterPort."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def rewrite(self, job: RewriteJob, pictures: "ObjectRef[Pictures]") -> Rewrite:
        rewrite: Rewrite = await _call(self._handle.rewrite.remote(job, pictures))
        return rewrite


async def worker_counts(application: str, deployment: str, busy: int) -> dict[str, int]:
    """Replicas of a deployment by RunPod's states; `busy` jobs occupy as many of the ready ones."""
    status = await asyncio.to_thread(serve.status)
    # Ray's annotation says ReplicaState; what comes are the states' names.
    replicas: Mapping[Any, int] = status.applications[application].deployments[deployment].replica_states
    ready = replicas.get("RUNNING", 0)
    running = min(ready, busy)
    return {
        "idle": ready - running,
        "initializing": replicas.get("STARTING", 0) + replicas.get("RECOVERING", 0),
        "ready": ready,
        "running": running,
        "throttled": 0,
        "unhealthy": 0,
    }


async def _call(response: Awaitable[T]) -> T:
    """Await a handle's response with Ray's errors turned into ours."""
    try:
        return await response
    except RayTaskError as problem:
        # A RayTaskError's own text carries a traceback; its cause is the clean error that was raised.
        if isinstance(problem.cause, ServiceError):
            raise problem.cause from None
        raise
    except BackPressureError as problem:
        raise Overloaded("Too many edits are waiting; try again later.") from problem
    except RayActorError as problem:
        raise ServiceUnavailable("The replica that ran this edit died; try again.") from problem
