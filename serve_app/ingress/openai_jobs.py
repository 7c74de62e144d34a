"""Requests with an Idempotency-Key, which are jobs.

A client sends a key in order to ask again when its connection broke. So what it asked for goes on without it, and who
comes back with the key finds the job as far as it is by then.
"""

import asyncio
import hashlib
import logging
import uuid
from dataclasses import replace
from typing import TypeVar

from serve_app.edits.images import decode_base64
from serve_app.edits.job import Job, JobSpec, JobsPort, JobState, Policy, RepeatKey
from serve_app.errors import DeadlineExceeded, EditCancelled, EditFailed, InvalidInput, ServiceError
from serve_app.ingress.asked import Asked
from serve_app.ingress.backend import Backend
from serve_app.ingress.job_line import describe
from serve_app.ingress.openai_body import Posted
from serve_app.ingress.openai_drawing import Drawn, Put
from serve_app.ingress.openai_events import Finished
from serve_app.ingress.prepare import Prepared

logger = logging.getLogger(__name__)

P = TypeVar("P")

WAIT_S = 60.0
"""For one call to Jobs; how long a job may take is its policy's matter."""

# A repeat may want the answer told in another way.
_NOT_ASKED = {"stream", "partial_images"}
_PICTURES = {"image", "images", "url"}

_ENDS: dict[JobState, type[ServiceError]] = {
    JobState.FAILED: EditFailed,
    JobState.CANCELLED: EditCancelled,
    JobState.TIMED_OUT: DeadlineExceeded,
}


def new_job_id() -> str:
    return f"img-{uuid.uuid4()}"


async def submit(
    backend: Backend[P], job_id: str, repeat_key: str, posted: Posted, asked: Asked, prepared: Prepared
) -> str:
    """Store and queue a job; its id, or that of the job that the key belongs to.

    Raises:
        ServiceError: the job was not accepted.
    """
    fingerprint = await asyncio.to_thread(fingerprint_of, posted, backend.settings.limits.max_picture_bytes)
    spec = JobSpec(
        id=job_id,
        edits=tuple(replace(edit, num_previews=0) for edit in prepared.edits),  # nobody keeps a job's previews
        pictures_of=prepared.pictures_of,
        seed=asked.sampling.seed,
        policy=Policy(),
        retention_s=backend.settings.jobs.async_retention_s,
        repeat_key=RepeatKey(repeat_key, fingerprint),
    )
    kept_id = await backend.jobs.submit(spec, prepared.pictures)
    logger.info("%s", describe(kept_id, spec))
    return kept_id


async def draw_as_job(jobs: JobsPort, job_id: str, put: Put) -> Drawn:
    """Wait for a job's end; where this is cancelled, the job goes on. Its news are told but once to all who listen,
    so each picture is told at the end.

    Raises:
        ServiceError: how the job ended, unless it is COMPLETED.
    """
    job = await jobs.wait(job_id, WAIT_S)
    while not job.record.state.final:
        job = await jobs.wait(job_id, WAIT_S)
    problem = InvalidInput if job.record.error_code == InvalidInput.code else _ENDS.get(job.record.state)
    if problem is not None:
        raise problem(job.record.error or f"The job {job_id} is {job.record.state}.")
    for index, outcome in enumerate(job.outcomes):
        put(Finished(index, outcome))
    return Drawn(job.outcomes, _ended_at(job))


def _ended_at(job: Job) -> float:
    return job.record.created_at if job.record.ended_at is None else job.record.ended_at


def fingerprint_of(posted: Posted, max_picture_bytes: int) -> str:
    """The same for requests that ask for the same, however they were encoded; a random seed is not asked for."""
    fields = posted.edit.model_dump_json(exclude=_NOT_ASKED | _PICTURES, exclude_none=True)
    digest = hashlib.sha256(fields.encode())
    for picture in posted.pictures:
        content = picture.content
        if isinstance(content, str):
            is_url = content.lower().startswith(("http://", "https://"))
            content = content.encode() if is_url else decode_base64(content, picture.field, max_picture_bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
