"""Requests with an Idempotency-Key run as jobs.

A client sends a key so that it can repeat the request after its connection broke. So the edits go on without the
client, and the repeated request finds the same job.
"""

import uuid
from dataclasses import replace

from serve_app.edits.job import Job, JobRecord, JobSpec, JobsPort, JobState, Policy
from serve_app.edits.service import Deadline
from serve_app.errors import DeadlineExceeded, EditCancelled, EditFailed, InvalidInput, ServiceError, error_class
from serve_app.ingress.admission import JobAdmission
from serve_app.ingress.backend import Backend
from serve_app.ingress.limits.job_bodies import JobBodies
from serve_app.ingress.openai.answers import Finished
from serve_app.ingress.openai.body import OpenAIBody
from serve_app.ingress.openai.parse import parse_body
from serve_app.ingress.openai.stream import DrawResult, OnEvent

WAIT_S = 60.0
"""For one call of the Jobs deployment; the job's policy limits how long it may take."""

END_MARGIN_S = 10.0
"""From a job's deadline until its end must have been reported."""

# Not compared: a repeat may request the response in another form, and pictures are compared by their bytes.
_NOT_COMPARED = {"stream", "partial_images", "image", "images", "url"}

_ERRORS: dict[JobState, type[ServiceError]] = {
    JobState.FAILED: EditFailed,
    JobState.CANCELLED: EditCancelled,
    JobState.TIMED_OUT: DeadlineExceeded,
}


async def find_or_submit(
    backend: Backend, admission: JobAdmission, key: str, body: OpenAIBody
) -> tuple[JobSpec, Deadline]:
    """The job of the key, or a new one, and the request's deadline.

    Raises:
        ServiceError: the job was not accepted.
    """
    settings = backend.settings
    fields = body.edit.model_dump_json(exclude=_NOT_COMPARED, exclude_none=True)
    try:
        parsed = parse_body(body, settings, backend.loras)
    except InvalidInput:
        known = await admission.find_invalid(key, fields, body.pictures)
        if known is None:
            raise
        return known, Deadline.after(settings.limits.request_timeout_s)
    deadline = Deadline.after(parsed.timeout_s)
    job = await admission.find_or_submit(
        f"img-{uuid.uuid4()}",
        # Its stream has no previews, since a job's event feed is consumed once.
        replace(parsed, edits=tuple(replace(each, num_previews=0) for each in parsed.edits)),
        deadline,
        Policy(settings.limits.request_timeout_s),
        settings.jobs.async_retention_s,
        key=key,
        fields=fields,
    )
    return job, deadline


async def draw_as_job(
    jobs: JobsPort, bodies: JobBodies, job_id: str, deadline: Deadline, on_event: OnEvent
) -> DrawResult:
    """Wait for a job's end. When this is cancelled, the job goes on. The job's event feed is consumed once, so pictures
    are sent only at the end.

    Raises:
        ServiceError: as `wait_for_end`, or the pictures were not fetched.
    """
    await wait_for_end(jobs, job_id, deadline)
    job = await bodies.job(job_id)
    for index, outcome in enumerate(job.outcomes):
        on_event(Finished(index, outcome))
    return result_of(job)


def result_of(job: Job) -> DrawResult:
    return DrawResult(job.outcomes, job.record.created_at if job.record.ended_at is None else job.record.ended_at)


async def wait_for_end(jobs: JobsPort, job_id: str, deadline: Deadline) -> None:
    """Return when a job is COMPLETED.

    Raises:
        DeadlineExceeded: the job's end was not reported in time, as while the job store is away.
        ServiceError: how the job ended, unless it is COMPLETED.
    """
    record = await deadline.later(END_MARGIN_S).bound(_ended(jobs, job_id))
    if record.state is not JobState.COMPLETED:
        raise _error_of(job_id, record)


async def _ended(jobs: JobsPort, job_id: str) -> JobRecord:
    while not (record := await jobs.wait(job_id, WAIT_S)).state.final:
        pass
    return record


def _error_of(job_id: str, record: JobRecord) -> ServiceError:
    """The error that the same request without a key would have ended with."""
    kind = error_class(record.error_code) or _ERRORS[record.state]
    return kind(record.error or f"The job {job_id} is {record.state}.")
