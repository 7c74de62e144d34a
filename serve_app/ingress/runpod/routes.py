"""RunPod's routes. They exist at the root, as on RunPod's local server, and under any endpoint's id."""

import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.openapi.models import Example
from fastapi.routing import APIRoute

from serve_app.ingress.backend import Backend
from serve_app.ingress.openapi import SAMPLE, error_responses
from serve_app.ingress.parsing.bodies import BodyReader, read_model
from serve_app.ingress.parsing.fields import RepeatKeyHeader
from serve_app.ingress.runpod.answers import (
    RunPodAccepted,
    RunPodEnvelope,
    RunPodError,
    RunPodHealth,
    RunPodPurged,
    RunPodStream,
)
from serve_app.ingress.runpod.jobs import RunPodJobs
from serve_app.ingress.runpod.request import RunPodRequest


def _example(summary: str, fields: dict[str, Any], **more: Any) -> Example:
    return Example(summary=summary, value={"input": fields, **more})


_JOB_EXAMPLES: dict[str, Example] = {
    "edit": _example("One edit", {"image": SAMPLE, "prompt": "Make it sunset"}),
    "camera": _example("The camera moved", {"image": SAMPLE, "azimuth": 45, "elevation": 30, "distance": 1.0}),
    "views": _example("All round, one picture each", {"image": SAMPLE, "views": "orbit", "elevation": 30}),
    "batch": _example(
        "A batch: each picture with its own prompt",
        {"images": [SAMPLE, SAMPLE], "prompt": ["Make it sunset", "Remove the car"]},
    ),
    "references": _example(
        "Several references of one edit",
        {"images": [SAMPLE, SAMPLE], "prompt": "Draw picture 1 in the style of picture 2"},
    ),
    "rewriting": _example("A vague wish", {"image": SAMPLE, "prompt": "make it better", "rewrite_prompt": True}),
    "policy": _example(
        "Deadlines and a webhook",
        {"image": SAMPLE, "prompt": "Make it sunset"},
        policy={"executionTimeout": 60_000, "ttl": 600_000, "lowPriority": True},
        webhook="https://example.com/done",
    ),
}

NewJob = Annotated[RunPodRequest, Body(openapi_examples=_JOB_EXAMPLES)]
WaitMs = Annotated[int, Query(ge=1_000, le=300_000, description="Milliseconds to wait for the job's end.")]
StreamWaitMs = Annotated[int, Query(ge=0, le=300_000, description="Milliseconds to wait for something new.")]
_ERRORS = error_responses(RunPodError, 400, 401, 403, 408, 413, 414, 415, 429, 431, 500, 503, 504)
_REPEATED = error_responses(RunPodError, 422, description="The Idempotency-Key came with another body before.")
_OPERATORS = error_responses(RunPodError, 403, description="The request does not come from an operator.")
_UNKNOWN = error_responses(RunPodError, 404, description="No such job, or it is no longer kept.")


def _checked_route(jobs: RunPodJobs, bodies: BodyReader, max_body_bytes: int) -> type[APIRoute]:
    """A class of routes that read and check their bodies by `bodies`; all of them are jobs. FastAPI takes a model as it
    is.

    Bodies are JSON whatever their Content-Type says: curl calls all data a URL-encoded form, and browsers call a text
    text/plain.
    """

    class CheckedRequest(Request):
        async def json(self) -> RunPodRequest:
            await jobs.admission.refuse_early(self.headers.get("idempotency-key"))
            return await bodies.read(self, partial(read_model, RunPodRequest), max_body_bytes)

    class CheckedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_checked(request: Request) -> Response:
                headers = [each for each in request.scope["headers"] if each[0] != b"content-type"]
                return await handle(CheckedRequest({**request.scope, "headers": headers}, request.receive))

            return handle_checked

    return CheckedRoute


def runpod_router(backend: Backend) -> APIRouter:
    """All routes of the dialect, without a prefix."""
    jobs = RunPodJobs(backend)
    route = _checked_route(jobs, backend.bodies, backend.settings.limits.max_body_bytes)
    router = APIRouter(route_class=route, tags=["RunPod"], responses=_ERRORS)
    _add_submitting(router, jobs)
    _add_reading(router, jobs)
    _add_changing(router, backend)
    return router


def _add_submitting(router: APIRouter, jobs: RunPodJobs) -> None:
    @router.post("/runsync", response_model=RunPodEnvelope, responses=_REPEATED)
    async def runsync(request: NewJob, wait: WaitMs = 90_000, repeat_key: RepeatKeyHeader = None) -> Response:
        """Run a job and return it at its end; or its current state after the wait, and it goes on."""
        return await jobs.run(request, repeat_key, wait)

    @router.post("/run", responses=_REPEATED)
    async def run(request: NewJob, repeat_key: RepeatKeyHeader = None) -> RunPodAccepted:
        """Queue a job and return at once."""
        return await jobs.accept(request, repeat_key)


def _add_reading(router: APIRouter, jobs: RunPodJobs) -> None:
    @router.get("/status/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)
    async def status(job_id: str) -> Response:
        """The job's current state."""
        return await jobs.status(job_id, 0)

    @router.post("/status/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)
    async def status_by_post(job_id: str) -> Response:
        """The same by POST."""
        return await jobs.status(job_id, 0)

    @router.get("/status-sync/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)
    async def status_sync(job_id: str, wait: WaitMs = 90_000) -> Response:
        """The job at its end, or its current state after the wait."""
        return await jobs.status(job_id, wait)

    @router.get("/stream/{job_id}", response_model=RunPodStream, responses=_UNKNOWN)
    async def stream(job_id: str, wait: StreamWaitMs = 8_000) -> Response:
        """What is new since the last call: each picture once, when it is done, and how far the others are."""
        return await jobs.stream(job_id, wait)


def _add_changing(router: APIRouter, backend: Backend) -> None:
    jobs = backend.jobs

    @router.post("/cancel/{job_id}", responses=_UNKNOWN)
    async def cancel(job_id: str) -> RunPodAccepted:
        """Cancel a job; one that has ended stays as it is."""
        record = await jobs.cancel(job_id)
        return RunPodAccepted(id=job_id, status=record.state)

    @router.post("/retry/{job_id}", responses=_UNKNOWN)
    async def retry(job_id: str) -> RunPodAccepted:
        """Queue a FAILED or TIMED_OUT job again, under its id."""
        record = await jobs.retry(job_id, uuid.uuid4().hex)
        return RunPodAccepted(id=job_id, status=record.state)

    @router.post("/purge-queue", responses=_OPERATORS)
    async def purge_queue() -> RunPodPurged:
        """Cancel all waiting jobs."""
        return RunPodPurged(removed=await jobs.purge())

    @router.get("/health")
    async def health() -> RunPodHealth:
        """Jobs and workers by state."""
        counts = await jobs.counts()
        return RunPodHealth(
            jobs={
                "completed": counts.completed,
                "failed": counts.failed,
                "inProgress": counts.in_progress,
                "inQueue": counts.in_queue,
                "retried": counts.retried,
            },
            workers=await backend.workers(counts.in_progress),
        )
