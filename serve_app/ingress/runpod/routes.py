"""RunPod's routes. They stand at the root, as RunPod's local server has them, and under any endpoint's id."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from serve_app.edits.job import JobState
from serve_app.ingress.backend import Backend
from serve_app.ingress.edit_fields import RepeatKeyHeader
from serve_app.ingress.runpod.answers import (
    RunPodAccepted,
    RunPodEnvelope,
    RunPodError,
    RunPodHealth,
    RunPodPurged,
    RunPodStream,
)
from serve_app.ingress.runpod.docs import JOB_EXAMPLES
from serve_app.ingress.runpod.jobs import RunPodJobs
from serve_app.ingress.runpod.lenient import LenientRoute
from serve_app.ingress.runpod.request import RunPodRequest

NewJob = Annotated[RunPodRequest, Body(openapi_examples=JOB_EXAMPLES)]
WaitMs = Annotated[int, Query(ge=1_000, le=300_000, description="Milliseconds to wait for the job's end.")]
StreamWaitMs = Annotated[int, Query(ge=0, le=300_000, description="Milliseconds to wait for something new.")]
_ERRORS = {status: {"model": RunPodError} for status in (400, 401, 413, 429, 500, 503, 504)}
_REPEATED = {422: {"model": RunPodError, "description": "The Idempotency-Key came with another body before."}}
_OPERATORS = {403: {"model": RunPodError, "description": "The request does not come from an operator."}}
_UNKNOWN = {404: {"model": RunPodError, "description": "No such job, or it is no longer kept."}}


def runpod_router(backend: Backend) -> APIRouter:
    """All routes of the dialect, without a prefix."""
    router = APIRouter(route_class=LenientRoute, tags=["RunPod"], responses=_ERRORS)  # type: ignore[arg-type]
    jobs = RunPodJobs(backend)
    _add_submitting(router, jobs)
    _add_watching(router, jobs)
    _add_steering(router, backend)
    return router


def _add_submitting(router: APIRouter, jobs: RunPodJobs) -> None:
    @router.post("/runsync", response_model=RunPodEnvelope, responses=_REPEATED)  # type: ignore[arg-type]
    async def runsync(request: NewJob, wait: WaitMs = 90_000, repeat_key: RepeatKeyHeader = None) -> Response:
        """Run a job and answer with its end, or after the wait as it stands; it goes on then."""
        return await jobs.run(request, repeat_key, wait)

    @router.post("/run", responses=_REPEATED)  # type: ignore[arg-type]
    async def run(request: NewJob, repeat_key: RepeatKeyHeader = None) -> RunPodAccepted:
        """Queue a job and answer at once."""
        return RunPodAccepted(id=await jobs.submit(request, repeat_key, sync=False), status=JobState.IN_QUEUE)


def _add_watching(router: APIRouter, jobs: RunPodJobs) -> None:
    @router.get("/status/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)  # type: ignore[arg-type]
    async def status(job_id: str) -> Response:
        """The job as it stands."""
        return await jobs.told(job_id, 0)

    @router.post("/status/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)  # type: ignore[arg-type]
    async def status_by_post(job_id: str) -> Response:
        """The same by POST."""
        return await jobs.told(job_id, 0)

    @router.get("/status-sync/{job_id}", response_model=RunPodEnvelope, responses=_UNKNOWN)  # type: ignore[arg-type]
    async def status_sync(job_id: str, wait: WaitMs = 90_000) -> Response:
        """The job at its end, or after the wait as it stands."""
        return await jobs.told(job_id, wait)

    @router.get("/stream/{job_id}", response_model=RunPodStream, responses=_UNKNOWN)  # type: ignore[arg-type]
    async def stream(job_id: str, wait: StreamWaitMs = 8_000) -> Response:
        """What is new since the last call: each picture once, when it is done, and how far the others are."""
        return await jobs.news(job_id, wait)


def _add_steering(router: APIRouter, backend: Backend) -> None:
    jobs = backend.jobs

    @router.post("/cancel/{job_id}", responses=_UNKNOWN)  # type: ignore[arg-type]
    async def cancel(job_id: str) -> RunPodAccepted:
        """Cancel a job; one that has ended stays as it is."""
        job = await jobs.cancel(job_id)
        return RunPodAccepted(id=job.id, status=job.record.state)

    @router.post("/retry/{job_id}", responses=_UNKNOWN)  # type: ignore[arg-type]
    async def retry(job_id: str) -> RunPodAccepted:
        """Queue a FAILED or TIMED_OUT job again, under its id."""
        job = await jobs.retry(job_id, uuid.uuid4().hex)
        return RunPodAccepted(id=job.id, status=job.record.state)

    @router.post("/purge-queue", responses=_OPERATORS)  # type: ignore[arg-type]
    async def purge_queue() -> RunPodPurged:
        """Cancel all jobs that wait."""
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
