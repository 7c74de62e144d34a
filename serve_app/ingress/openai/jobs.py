"""Requests with an Idempotency-Key, which are jobs.

A client sends a key so that it can repeat the request when its connection broke. So the edits go on without it, and
the repeated request finds the same job.
"""

import asyncio
import logging
import uuid
from dataclasses import replace

from serve_app.edits.deadline import Deadline
from serve_app.edits.job import Job, JobSpec, JobsPort, JobState, Policy, RepeatKey
from serve_app.errors import DeadlineExceeded, EditCancelled, EditFailed, ServiceError, error_class
from serve_app.ingress.asked import ParsedRequest
from serve_app.ingress.backend import Backend
from serve_app.ingress.fingerprint import fingerprint_of
from serve_app.ingress.job_line import describe
from serve_app.ingress.openai.body import OpenAIBody
from serve_app.ingress.openai.drawing import DrawResult, OnEvent
from serve_app.ingress.openai.events import Finished

logger = logging.getLogger(__name__)


WAIT_S = 60.0
"""For one call to Jobs; how long a job may take is its policy's matter."""

END_MARGIN_S = 10.0
"""From a job's deadline until its end must have been reported."""

# A repeat may want its answer in another form.
_NOT_ASKED = {"stream", "partial_images"}
_PICTURES = {"image", "images", "url"}

_ENDS: dict[JobState, type[ServiceError]] = {
    JobState.FAILED: EditFailed,
    JobState.CANCELLED: EditCancelled,
    JobState.TIMED_OUT: DeadlineExceeded,
}


async def find_or_submit(
    backend: Backend, repeat_key: str, posted: OpenAIBody, asked: ParsedRequest, deadline: Deadline
) -> JobSpec:
    """The job that the key belongs to already, or a new one. A known one is found before any picture is decoded, and
    also while the service drains or its queue is full: for its client there is no other way to the result.

    Raises:
        ServiceError: the job was not accepted.
    """
    fields = posted.edit.model_dump_json(exclude=_NOT_ASKED | _PICTURES, exclude_none=True)
    fingerprint = await asyncio.to_thread(
        fingerprint_of, fields, posted.pictures, backend.settings.limits.max_picture_bytes
    )
    key = RepeatKey(repeat_key, fingerprint)
    known = await backend.jobs.find(key)
    if known is not None:
        logger.info("%s", describe(known.id, replace(known, id="")))
        return known
    backend.draining.require_open()
    return await deadline.bound(_submit(backend, key, asked, deadline))


async def _submit(backend: Backend, key: RepeatKey, asked: ParsedRequest, deadline: Deadline) -> JobSpec:
    job_id = f"img-{uuid.uuid4()}"
    prepared = await backend.prepare(job_id, asked)
    spec = JobSpec(
        id=job_id,
        edits=tuple(replace(edit, num_previews=0) for edit in prepared.edits),  # nobody keeps a job's previews
        pictures_of=prepared.pictures_of,
        seed=asked.edits[0].sampling.seed,
        policy=Policy(
            backend.settings.limits.request_timeout_s, timeout_s=deadline.timeout_s, spent_s=deadline.spent_s
        ),
        retention_s=backend.settings.jobs.async_retention_s,
        repeat_key=key,
    )
    kept_id = await backend.jobs.submit(spec, prepared.pictures)
    logger.info("%s", describe(kept_id, spec))
    return replace(spec, id=kept_id)


async def draw_as_job(jobs: JobsPort, job_id: str, deadline: Deadline, put: OnEvent) -> DrawResult:
    """Wait for a job's end; where this is cancelled, the job goes on. The job's event feed is consumed once, so
    pictures are sent only at the end.

    Raises:
        DeadlineExceeded: the job's end was not reported in time, as while the job store is away.
        ServiceError: how the job ended, unless it is COMPLETED.
    """
    job = await deadline.later(END_MARGIN_S).bound(_ended(jobs, job_id))
    if job.record.state is not JobState.COMPLETED:
        raise _error_of(job)
    for index, outcome in enumerate(job.outcomes):
        put(Finished(index, outcome))
    return DrawResult(job.outcomes, _ended_at(job))


async def _ended(jobs: JobsPort, job_id: str) -> Job:
    while not (job := await jobs.wait(job_id, WAIT_S)).record.state.final:
        pass
    return job


def _error_of(job: Job) -> ServiceError:
    """What the edit failed with, as the request without a key would have failed with it."""
    kind = error_class(job.record.error_code) or _ENDS[job.record.state]
    return kind(job.record.error or f"The job {job.id} is {job.record.state}.")


def _ended_at(job: Job) -> float:
    return job.record.created_at if job.record.ended_at is None else job.record.ended_at
