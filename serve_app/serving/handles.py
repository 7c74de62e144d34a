"""Deployment handles as ports, with Ray's errors translated to ServiceErrors, and the state of deployments."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from ray import serve
from ray.exceptions import (
    ActorAlreadyExistsError,
    AuthenticationError,
    CrossLanguageError,
    ObjectLostError,
    ObjectRefStreamEndOfStreamError,
    OufOfBandObjectRefSerializationException,
    RayActorError,
    RayError,
    RayTaskError,
    StreamingGeneratorReplayInconsistentError,
    UnserializableException,
    UserCodeException,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    gRPCStatusError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator
from ray.serve.schema import ServeStatus

from serve_app.edits.job import JOBS_METHODS, JobSpec, JobsPort
from serve_app.edits.request import EditRequest, EditResult, Pictures, Rewrite, RewriteRequest, SharedPictures
from serve_app.edits.service import OnProgress, RewriterPort
from serve_app.errors import Overloaded, ServiceError, ServiceUnavailable
from serve_app.serving.cached_call import CachedCall
from serve_app.serving.shared import PutPictures, put

logger = logging.getLogger(__name__)

_SUCCESSOR_S = 60.0  # for a new Jobs replica, which runs some seconds after Serve has noticed that the old one is dead
_SUCCESSOR_POLL_S = 0.5  # between two attempts to reach it
_HEALTH_S = 2.0  # for the replicas' answers to a health check
_END_S = 5.0  # for the end of a call that has returned its result
_STATUS_S = 1.0  # how long Serve's status is cached
_ALL_S = 10.0  # for a call of all replicas, and for Serve's status

# Errors after which a later attempt may succeed; the first class that matches gives the message.
_UNAVAILABLE: dict[type[Exception], str] = {
    RayActorError: "The replica that worked on this died; try again.",
    DeploymentUnavailableError: "A part of the service did not start; try again later.",
    ObjectLostError: "The request's pictures were lost with the process that held them; try again.",
    RayError: "The service could not finish this; try again.",
    RayServeException: "The service could not finish this; try again.",
}
# Errors in code or configuration: a later attempt fails as well.
_LASTING = (
    ActorAlreadyExistsError,
    AuthenticationError,
    CrossLanguageError,
    ObjectRefStreamEndOfStreamError,
    OufOfBandObjectRefSerializationException,
    StreamingGeneratorReplayInconsistentError,
    UnserializableException,
    UserCodeException,
    gRPCStatusError,
)


class EditorHandle:
    """The Editor deployment as an EditorPort."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle.options(stream=True)

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        """Run an edit, and once more if its replica dies: the same seed draws the same picture."""
        try:
            return await self._edit(request, pictures, on_progress, timeout_s)
        except RayActorError:
            logger.warning("the replica that ran edit %s died; running it once more", request.request_id)
        with _translated_errors():
            return await self._edit(request, pictures, on_progress, timeout_s)

    async def _edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None
    ) -> EditResult:
        shared = cast(PutPictures, pictures)
        handle = self._handle.options(session_id=shared.key)
        events = cast("DeploymentResponseGenerator[Any]", handle.edit.remote(request, shared.reference, timeout_s))
        try:
            with _translated_errors(but=RayActorError):
                stream = aiter(events)
                async for event in stream:
                    if isinstance(event, EditResult):
                        await _read_to_end(stream)
                        return event
                    on_progress(event)
        finally:
            _cancel(events)  # If this task is cancelled, the edit is cancelled as well.
        raise ServiceUnavailable("The editor stopped before this edit was done; try again.")


async def _read_to_end(stream: AsyncIterator[Any]) -> None:
    """Wait for the end of a call whose result is here, at most `_END_S`. If it were cancelled now, its replica would
    log it as cancelled, or not at all."""
    with suppress(Exception), _translated_errors(but=RayActorError):
        async with asyncio.timeout(_END_S):
            async for _ in stream:
                pass


def _cancel(call: "DeploymentResponse[Any] | DeploymentResponseGenerator[Any]") -> None:
    with suppress(RayServeException):  # A call that Serve refused raises its error again.
        call.cancel()


class RewriterHandle:
    """The Rewriter deployment as a RewriterPort.

    Args:
        timeout_s: for an answer; longer than the rewriter's own timeout.
    """

    def __init__(self, handle: "DeploymentHandle[Any]", timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def rewrite(self, request: RewriteRequest, pictures: SharedPictures) -> Rewrite:
        """Every failure is a ServiceError, so that the edit goes on with the user's prompt.

        Raises:
            ServiceUnavailable: there was no answer within the timeout, or the rewriter failed.
        """
        try:
            with _translated_errors():
                return await self._rewrite(request, pictures)
        except ServiceError:
            raise
        except Exception as problem:
            logger.exception("rewriting failed for %s", request.request_id)
            raise ServiceUnavailable("The rewriter failed; the server's log has the reason.") from problem

    async def _rewrite(self, request: RewriteRequest, pictures: SharedPictures) -> Rewrite:
        response = self._handle.rewrite.remote(request, cast(PutPictures, pictures).reference)
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                rewrite: Rewrite = await response
        except TimeoutError as problem:
            if not limit.expired():
                raise
            raise ServiceUnavailable(f"The rewriter did not answer within {self._timeout_s:g} s.") from problem
        finally:
            _cancel(response)  # no effect after its end
        return rewrite


OpenRewriter = Callable[["DeploymentHandle[Any] | None"], RewriterPort | None]
"""Makes a replica's port to the rewriter from the handle of its deployment; the handle is None if there is no such
deployment."""


def jobs_port(handle: "DeploymentHandle[Any]") -> JobsPort:
    """The Jobs deployment as a JobsPort.

    A call that waits longer than its own `wait_s` and `_SUCCESSOR_S` for a replica raises ServiceUnavailable.
    """
    return cast(JobsPort, _JobsHandle(handle))


class _JobsHandle:
    """Makes each call to the one replica of Jobs, and to its successor where it dies. The port's methods are
    idempotent: a job has its id before it is stored, and a retry has a name."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        # Ray resolves a reference only where it is an argument of its own.
        job_id: str = await self._call("submit", 0.0, spec, *(put(each) for each in pictures))
        return job_id

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Every other method of JobsPort."""
        if name not in JOBS_METHODS:
            raise AttributeError(name)
        signature = inspect.signature(getattr(JobsPort, name))

        def call(*args: Any, **options: Any) -> Awaitable[Any]:
            bound = signature.bind(self, *args, **options)
            return self._call(name, bound.arguments.get("wait_s", 0.0), *bound.args[1:])

        return call

    async def _call(self, method: str, wait_s: float, *args: Any) -> Any:
        limit = asyncio.timeout(wait_s + _SUCCESSOR_S)
        try:
            async with limit:
                while True:
                    with suppress(RayActorError), _translated_errors(but=RayActorError):
                        return await getattr(self._handle, method).remote(*args)
                    await asyncio.sleep(_SUCCESSOR_POLL_S)
        except TimeoutError as problem:
            if not limit.expired():
                raise
            raise ServiceUnavailable("The jobs are not available right now; try again.") from problem


async def worker_counts(application: str, deployment: str, busy: int) -> dict[str, int]:
    """Replicas of a deployment by RunPod's states; `busy` jobs occupy as many of the ready ones."""
    replicas = await _replicas(application, deployment)
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


async def _replicas(application: str, deployment: str) -> Mapping[Any, int]:
    """Number of replicas by the name of Serve's state (Ray's annotation says ReplicaState). While Serve deploys an
    application, its status may lack the application or the deployment: then there are none."""
    status = await _serve_status()
    app = status.applications.get(application)
    found = None if app is None else app.deployments.get(deployment)
    return {} if found is None else found.replica_states


async def _status_in_thread() -> ServeStatus:
    try:
        return await asyncio.wait_for(asyncio.to_thread(serve.status), _ALL_S)
    except TimeoutError as problem:
        raise ServiceUnavailable("Serve's controller does not answer right now; try again.") from problem


# One call takes 30 to 60 ms of CPU time.
_serve_status = CachedCall(_status_in_thread, _STATUS_S)


async def fault(application: str, deployment: str, handle: "DeploymentHandle[Any]") -> str | None:
    """Why no replica of a deployment would work, or None: one healthy replica is enough."""
    counts = await worker_counts(application, deployment, 0)
    if counts["ready"] == 0:
        return f"no {deployment} is up; {counts['initializing']} starting"
    try:
        answers = await handle.broadcast("check_health").results_async(timeout_s=_HEALTH_S, return_exceptions=True)
    except TimeoutError:
        return None  # One replica is slow to answer. If it is dead, Serve's own health checks find out.
    except (DeploymentUnavailableError, RayActorError):
        answers = []
    is_healthy = any(not isinstance(answer, BaseException) for answer in answers)
    return None if is_healthy else f"no {deployment} is healthy"


async def call_all(application: str, deployment: str, method: str, *args: Any) -> list[Any]:
    """Call a method on all running replicas of a deployment; returns their results.

    Raises:
        ServiceUnavailable: one of them did not answer.
    """
    handle = await asyncio.to_thread(serve.get_deployment_handle, deployment, application)
    try:
        with _translated_errors():
            return await handle.broadcast(method, *args).results_async(timeout_s=_ALL_S)
    except (TimeoutError, DeploymentUnavailableError) as problem:
        raise ServiceUnavailable(f"Not every {deployment} answers right now; try again.") from problem


@contextmanager
def _translated_errors(but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Translate Ray's errors, except `but`, to ServiceErrors. An unexpected exception of a replica stays a
    RayTaskError."""
    try:
        yield
    except but:
        raise
    except asyncio.CancelledError:
        # A DeploymentResponse raises this also if the replica's task was cancelled and not the caller's.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ServiceUnavailable(_UNAVAILABLE[RayError]) from None
    except (RayError, RayServeException) as problem:
        translated = _translated(_cause(problem))
        if translated is None:
            raise
        # A RayTaskError's text has a traceback; its cause is the error that was raised.
        raise translated from (None if isinstance(problem, RayTaskError) else problem)


def _cause(problem: BaseException) -> BaseException:
    """What a replica raised, or a replica that it called; else the error itself."""
    while isinstance(problem, RayTaskError):
        problem = problem.cause
    return problem


def _translated(problem: BaseException) -> ServiceError | None:
    """The error for the caller, or None for an unexpected one."""
    if isinstance(problem, ServiceError):
        return problem
    if isinstance(problem, BackPressureError):
        return Overloaded("Too many requests are waiting; try again later.")
    if isinstance(problem, _LASTING):
        return None
    message = next((text for kind, text in _UNAVAILABLE.items() if isinstance(problem, kind)), None)
    if message is None:
        return None
    logger.warning("a call to a deployment failed with %s: %s", type(problem).__name__, problem)
    return ServiceUnavailable(message)
