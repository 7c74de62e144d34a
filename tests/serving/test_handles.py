"""Deployment handles as ports: methods, retries, and the error for each of Ray's. The handles are fakes."""

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.exceptions
import ray.serve.exceptions
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve import Application
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.app import build
from serve_app.config import AppSettings
from serve_app.edits.job import JOBS_METHODS, JobsPort
from serve_app.edits.request import EditRequest, EditResult, Rewrite, RewriteRequest, SharedPictures
from serve_app.edits.service import EditService
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import EditFailed, InvalidInput, Overloaded, ServiceError, ServiceUnavailable
from serve_app.serving import handles
from serve_app.serving.handles import EditorHandle, RewriterHandle, jobs_port
from serve_app.serving.shared import PutPictures
from tests import fakes
from tests.jobs.replicas import spec

JOB = RewriteRequest("id", "a wish")
PICTURES = SharedPictures(PutPictures("a reference", "a key"))
ANSWER_OF_JAVA = SimpleNamespace(language=1, formatted_exception_string="x")
RESULT = EditResult(b"x", "image/png", fakes.TIMINGS, fakes.TOKENS, worker_id="w")
LOST = ("00ff", None, "")

# One error of each class, and its translation. None: a later attempt fails as well, so the error stays a 500.
RAY_ERRORS: list[tuple[type[Exception], tuple[Any, ...], type[ServiceError] | None]] = [
    (ray.exceptions.RayError, ("x",), ServiceUnavailable),
    (ray.exceptions.TaskCancelledError, (), ServiceUnavailable),
    (ray.exceptions.LocalRayletDiedError, (), ServiceUnavailable),
    (ray.exceptions.WorkerCrashedError, (), ServiceUnavailable),
    (ray.exceptions.RayActorError, (), ServiceUnavailable),
    (ray.exceptions.ActorDiedError, (), ServiceUnavailable),
    (ray.exceptions.ActorUnavailableError, ("x", None), ServiceUnavailable),
    (ray.exceptions.RaySystemError, ("x",), ServiceUnavailable),
    (ray.exceptions.ObjectStoreFullError, ("x",), ServiceUnavailable),
    (ray.exceptions.OutOfDiskError, ("x",), ServiceUnavailable),
    (ray.exceptions.OutOfMemoryError, ("x",), ServiceUnavailable),
    (ray.exceptions.NodeDiedError, ("x",), ServiceUnavailable),
    (ray.exceptions.ObjectLostError, LOST, ServiceUnavailable),
    (ray.exceptions.ObjectFetchTimedOutError, LOST, ServiceUnavailable),
    (ray.exceptions.ReferenceCountingAssertionError, LOST, ServiceUnavailable),
    (ray.exceptions.ObjectFreedError, LOST, ServiceUnavailable),
    (ray.exceptions.OwnerDiedError, LOST, ServiceUnavailable),
    (ray.exceptions.ObjectReconstructionFailedError, ("00ff",), ServiceUnavailable),
    (ray.exceptions.RpcError, ("x",), ServiceUnavailable),
    (ray.exceptions.GetTimeoutError, ("x",), ServiceUnavailable),
    (ray.exceptions.PlasmaObjectNotAvailable, ("x",), ServiceUnavailable),
    (ray.exceptions.AsyncioActorExit, ("x",), ServiceUnavailable),
    (ray.exceptions.RuntimeEnvSetupError, ("x",), ServiceUnavailable),
    (ray.exceptions.TaskPlacementGroupRemoved, ("x",), ServiceUnavailable),
    (ray.exceptions.ActorPlacementGroupRemoved, ("x",), ServiceUnavailable),
    (ray.exceptions.PendingCallsLimitExceeded, ("x",), ServiceUnavailable),
    (ray.exceptions.TaskUnschedulableError, ("x",), ServiceUnavailable),
    (ray.exceptions.ActorUnschedulableError, ("x",), ServiceUnavailable),
    (ray.exceptions.RayChannelError, ("x",), ServiceUnavailable),
    (ray.exceptions.RayChannelTimeoutError, ("x",), ServiceUnavailable),
    (ray.exceptions.RayCgraphCapacityExceeded, ("x",), ServiceUnavailable),
    (ray.exceptions.RayDirectTransportError, ("x",), ServiceUnavailable),
    (ray.exceptions.ActorHandleNotFoundError, ("x",), ServiceUnavailable),
    (ray.exceptions.ActorAlreadyExistsError, ("x",), None),
    (ray.exceptions.AuthenticationError, ("x",), None),
    (ray.exceptions.CrossLanguageError, (ANSWER_OF_JAVA,), None),
    (ray.exceptions.ObjectRefStreamEndOfStreamError, ("x",), None),
    (ray.exceptions.OufOfBandObjectRefSerializationException, ("x",), None),
    (ray.exceptions.StreamingGeneratorReplayInconsistentError, ("x",), None),
    (ray.exceptions.UnserializableException, ("x",), None),
    (ray.exceptions.UserCodeException, ("x",), None),
    (ray.serve.exceptions.RayServeException, ("x",), ServiceUnavailable),
    (ray.serve.exceptions.BackPressureError, (1, 1), Overloaded),
    (ray.serve.exceptions.RequestCancelledError, ("x",), ServiceUnavailable),
    (ray.serve.exceptions.DeploymentUnavailableError, (DeploymentID("Rewriter"),), ServiceUnavailable),
    (ray.serve.exceptions.ReplicaUnavailableError, ("x",), ServiceUnavailable),
    (ray.serve.exceptions.gRPCStatusError, (ValueError("x"),), None),
]
BY_NAME = pytest.mark.parametrize(
    ("problem", "translated"),
    [(kind(*arguments), translated) for kind, arguments, translated in RAY_ERRORS],
    ids=[kind.__name__ for kind, _, _ in RAY_ERRORS],
)


def in_replica(cause: Exception) -> Exception:
    """An exception of a replica as its handle raises it."""
    untyped: Any = RayTaskError
    problem: Exception = untyped("rewrite", "a traceback", cause, "replica", 1, "127.0.0.1").as_instanceof_cause()
    return problem


async def at_once() -> None:
    pass


@dataclass
class FakeHandle:
    """A DeploymentHandle whose calls return or raise what `answer` does.

    Attributes:
        chosen: the options that were set last.
        arguments: of each call.
    """

    answer: Callable[[], Awaitable[Any]]
    end: Callable[[], Awaitable[None]] = at_once
    responses: list["FakeResponse"] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)
    arguments: list[tuple[object, ...]] = field(default_factory=list)

    def options(self, **options: object) -> "FakeHandle":
        self.chosen = options
        return self

    def __getattr__(self, name: str) -> "FakeHandle":
        return self

    def remote(self, *args: object) -> "FakeResponse":
        self.arguments.append(args)
        self.responses.append(FakeResponse(self.answer, self.end))
        return self.responses[-1]


@dataclass
class FakeResponse:
    """Once Serve has refused the call, cancelling it raises the error again. A stream has the answer and then `end`."""

    answer: Callable[[], Awaitable[Any]]
    end: Callable[[], Awaitable[None]] = at_once
    is_cancelled: bool = False
    has_ended: bool = False
    refusal: RayServeException | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answered().__await__()

    async def _answered(self) -> Any:
        try:
            return await self.answer()
        except RayServeException as problem:
            self.refusal = problem
            raise

    async def __aiter__(self) -> AsyncIterator[Any]:
        yield await self._answered()
        await self.end()
        self.has_ended = True

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.refusal is not None:
            raise self.refusal


def raising(*problems: BaseException) -> FakeHandle:
    """A handle whose calls raise these errors in turn, and then the last one again and again."""
    left: Iterator[BaseException] = iter(problems)

    async def answer() -> Any:
        raise next(left, problems[-1])

    return FakeHandle(answer)


def answering(result: object, end: Callable[[], Awaitable[None]] = at_once) -> FakeHandle:
    async def answer() -> Any:
        return result

    return FakeHandle(answer, end)


def as_handle(fake: FakeHandle) -> DeploymentHandle[Any]:
    return cast("DeploymentHandle[Any]", fake)


def edit(handle: FakeHandle) -> EditResult:
    editor = EditorHandle(as_handle(handle))
    return asyncio.run(editor.edit(fakes.edit_request(), PICTURES, lambda progress: None))


def rewrite(handle: FakeHandle, timeout_s: float = 60) -> Rewrite:
    return asyncio.run(RewriterHandle(as_handle(handle), timeout_s).rewrite(JOB, PICTURES))


def test_the_table_holds_every_error_of_ray() -> None:
    known = {
        cls
        for module in (ray.exceptions, ray.serve.exceptions)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, (RayError, RayServeException))
    }
    assert {kind for kind, _, _ in RAY_ERRORS} == known - {RayTaskError}


def test_pictures_go_by_reference_and_the_editors_router_gets_their_key() -> None:
    editor, rewriter = (
        answering(RESULT),
        answering(Rewrite("x")),
    )
    edit(editor)
    rewrite(rewriter)
    assert editor.chosen == {"session_id": "a key"}
    assert [call[1] for call in (*editor.arguments, *rewriter.arguments)] == ["a reference"] * 2


def test_an_edits_call_is_read_to_its_end_so_that_its_replica_logs_it_as_done() -> None:
    handle = answering(RESULT)
    assert edit(handle) == RESULT
    assert handle.responses[0].has_ended


def test_a_result_stands_whatever_comes_of_the_rest_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies() -> None:
        raise RayActorError()

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def is_cancelled() -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("serve_app.serving.handles._END_S", 0.01)
    for end in (dies, hangs, is_cancelled):
        handle = answering(RESULT, end)
        assert edit(handle) == RESULT
        assert len(handle.responses) == 1
        assert handle.responses[0].is_cancelled


@BY_NAME
def test_an_edit_translates_an_error_of_ray(problem: Exception, translated: type[ServiceError] | None) -> None:
    with pytest.raises(translated or type(problem)) as caught:
        edit(raising(problem))
    assert type(caught.value) is (translated or type(problem))


@BY_NAME
def test_the_same_error_inside_a_replica_is_translated_alike(
    problem: Exception, translated: type[ServiceError] | None
) -> None:
    for raised in (in_replica(problem), in_replica(in_replica(problem))):
        with pytest.raises(translated or RayTaskError):
            edit(raising(raised))


def test_a_service_error_of_a_replica_stays_as_it_was_raised() -> None:
    for depth in (in_replica, lambda cause: in_replica(in_replica(cause))):
        with pytest.raises(InvalidInput) as caught:
            edit(raising(depth(InvalidInput("too long", "prompt"))))
        assert (type(caught.value), caught.value.message, caught.value.field) == (InvalidInput, "too long", "prompt")


def test_an_unexpected_exception_of_an_editor_stays_unexpected() -> None:
    with pytest.raises(RayTaskError):
        edit(raising(in_replica(ZeroDivisionError("a bug"))))


def test_an_edit_whose_replica_died_is_run_once_more() -> None:
    died = raising(RayActorError(), EditFailed("second"))
    with pytest.raises(EditFailed, match="second"):
        edit(died)
    assert len(died.responses) == 2


def test_a_request_that_was_cancelled_in_the_replica_is_no_cancellation_of_the_caller() -> None:
    """Serve raises CancelledError for both."""
    with pytest.raises(ServiceUnavailable):
        edit(raising(asyncio.CancelledError()))
    with pytest.raises(ServiceUnavailable):
        rewrite(raising(asyncio.CancelledError()))


@pytest.mark.parametrize("port", ["edit", "rewrite"])
def test_a_caller_that_is_cancelled_stays_cancelled_and_cancels_the_request(port: str) -> None:
    async def cancelled() -> FakeHandle:
        begun = asyncio.Event()

        async def answer() -> None:
            begun.set()
            await asyncio.Event().wait()

        handle = FakeHandle(answer)
        editor, rewriter = EditorHandle(as_handle(handle)), RewriterHandle(as_handle(handle), 60)
        work: dict[str, Coroutine[Any, Any, object]] = {
            "edit": editor.edit(fakes.edit_request(), PICTURES, lambda progress: None),
            "rewrite": rewriter.rewrite(JOB, PICTURES),
        }
        task = asyncio.create_task(work.pop(port))
        for other in work.values():
            other.close()
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return handle

    (response,) = asyncio.run(cancelled()).responses
    assert response.is_cancelled


@BY_NAME
def test_no_error_of_ray_leaves_the_rewriter_as_anything_but_a_service_error(
    problem: Exception, translated: type[ServiceError] | None
) -> None:
    for raised in (problem, in_replica(problem)):
        with pytest.raises(ServiceError) as caught:
            rewrite(raising(raised))
        assert type(caught.value) is (translated or ServiceUnavailable)


@pytest.mark.parametrize(
    "problem",
    [in_replica(ZeroDivisionError("a bug")), in_replica(TimeoutError("a bug")), RuntimeError("a bug")],
    ids=lambda problem: type(problem).__name__,
)
def test_an_unexpected_failure_of_the_rewriter_is_logged_and_the_edit_goes_on(
    problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    size = Size(64, 64)
    request = EditRequest(request_id="the-id", prompt="a wish", rewrite_prompt=True, size=OutputSize(size, size))
    editor, rewriter = fakes.FakeEditor(), RewriterHandle(as_handle(raising(problem)), 60)
    service = EditService(editor, rewriter)
    with caplog.at_level(logging.ERROR):
        outcome = asyncio.run(service.run(request, PICTURES))
    reason = "the rewriter is not available: The rewriter failed; the server's log has the reason."
    assert (outcome.final_prompt, outcome.rewrite) == ("a wish", Rewrite(None, reason))
    (record,) = [record for record in caplog.records if record.name == "serve_app.serving.handles"]
    assert "the-id" in record.message
    assert record.exc_info is not None
    assert record.exc_info[1] is problem


def test_a_rewriter_that_does_not_answer_in_time_is_an_error() -> None:
    async def answer() -> None:
        await asyncio.Event().wait()

    handle = FakeHandle(answer)
    with pytest.raises(ServiceUnavailable, match=r"did not answer within 0\.01 s"):
        rewrite(handle, timeout_s=0.01)
    assert handle.responses[0].is_cancelled


def test_the_rewriters_answer_is_returned() -> None:
    assert rewrite(answering(Rewrite("a precise wish"))) == Rewrite("a precise wish")


def test_both_callers_wait_longer_than_the_rewriter_itself(tiny_settings: AppSettings) -> None:
    assert tiny_settings.rewriter is not None
    for arguments in callers_arguments(tiny_settings):
        (open_rewriter,) = (each for each in arguments if isinstance(each, partial))
        port = open_rewriter(as_handle(answering(None)))
        assert isinstance(port, RewriterHandle)
        assert port._timeout_s > tiny_settings.rewriter.timeout_s


def callers_arguments(settings: AppSettings) -> list[tuple[Any, ...]]:
    """The arguments of the deployments that call the rewriter."""
    ingress = build(settings)._bound_deployment
    parts = [each._bound_deployment for each in ingress.init_args if isinstance(each, Application)]
    return [ingress.init_args, *(part.init_args for part in parts if part.name == "Jobs")]


def test_without_a_rewriter_there_is_no_port_to_one(tiny_settings: AppSettings) -> None:
    for arguments in callers_arguments(tiny_settings.model_copy(update={"rewriter": None})):
        (open_rewriter,) = (each for each in arguments if isinstance(each, partial))
        assert open_rewriter(None) is None


@dataclass
class FakeJobs:
    """The handle of Jobs. Its replica dies in each of the first `num_deaths` calls; later ones return their method."""

    num_deaths: float = 0
    calls: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> SimpleNamespace:
        async def answer(*args: object) -> str:
            self.calls.append((name, args))
            if len(self.calls) <= self.num_deaths:
                raise RayActorError()
            return name

        return SimpleNamespace(remote=answer)

    @property
    def as_handle(self) -> DeploymentHandle[Any]:
        return cast("DeploymentHandle[Any]", self)


@pytest.mark.parametrize("method", sorted(JOBS_METHODS - {"submit"}))
def test_a_method_of_the_jobs_port_is_called_on_the_deployment(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts_s: list[float] = []
    timeout = asyncio.timeout

    def recorded(delay: float) -> asyncio.Timeout:
        timeouts_s.append(delay)
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", recorded)
    names = list(inspect.signature(getattr(JobsPort, method)).parameters)[1:]
    jobs, arguments = FakeJobs(), tuple(7.0 if name == "wait_s" else name for name in names)
    assert asyncio.run(getattr(jobs_port(jobs.as_handle), method)(*arguments)) == method
    assert jobs.calls == [(method, arguments)]
    # A method that waits by itself has as much longer.
    assert timeouts_s == [handles._SUCCESSOR_S + (7.0 if 7.0 in arguments else 0.0)]


def test_an_argument_of_the_jobs_port_may_be_named() -> None:
    jobs = FakeJobs()
    asyncio.run(jobs_port(jobs.as_handle).wait(wait_s=7.0, job_id="job"))
    assert jobs.calls == [("wait", ("job", 7.0))]


def test_a_job_is_sent_to_the_successor_with_the_same_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "_SUCCESSOR_POLL_S", 0.0)
    monkeypatch.setattr(handles, "put", lambda pictures: ("shared", pictures))
    jobs, job, sets = FakeJobs(num_deaths=1), spec("job"), [(fakes.picture(),), (fakes.picture(), fakes.picture())]
    assert asyncio.run(jobs_port(jobs.as_handle).submit(job, sets)) == "submit"
    assert jobs.calls == [("submit", (job, *(("shared", each) for each in sets)))] * 2


def test_jobs_that_do_not_come_back_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "_SUCCESSOR_POLL_S", 0.0)
    monkeypatch.setattr(handles, "_SUCCESSOR_S", 0.05)
    jobs = FakeJobs(num_deaths=math.inf)
    with pytest.raises(ServiceUnavailable, match="The jobs are not available right now"):
        asyncio.run(jobs_port(jobs.as_handle).counts())
    assert len(jobs.calls) > 1


def test_the_jobs_port_has_no_other_methods() -> None:
    with pytest.raises(AttributeError):
        _ = jobs_port(FakeJobs().as_handle).drop  # type: ignore[attr-defined]
