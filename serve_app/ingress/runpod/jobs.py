"""RunPod's requests as jobs, and their responses, made from what the Jobs deployment returns."""

import asyncio
import uuid
from functools import partial

from fastapi import Response
from pydantic import BaseModel

from serve_app.edits.job import EXECUTION_TIMEOUT, Job, JobEnd, JobRecord, JobSpec, JobState, Policy
from serve_app.edits.service import Deadline
from serve_app.errors import DeadlineExceeded, InvalidInput
from serve_app.ingress.admission import JobAdmission
from serve_app.ingress.backend import Backend
from serve_app.ingress.parsing.bodies import LateResponse
from serve_app.ingress.parsing.validation import default, within
from serve_app.ingress.runpod.answers import RunPodAccepted, envelope, plain_envelope, stream
from serve_app.ingress.runpod.parse import parse_input, pictures_of
from serve_app.ingress.runpod.request import RunPodPolicy, RunPodRequest
from serve_app.net.origins import origin_of

MAX_POLICY_MS = 7 * 86_400_000
_PICTURES = {"image", "images"}


class RunPodJobs:
    """The work of RunPod's routes. All responses that are not errors are HTTP 200."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._settings = backend.settings
        self._jobs = backend.jobs
        self._bodies = backend.job_bodies
        self.admission = JobAdmission(backend)

    async def accept(self, request: RunPodRequest, repeat_key: str | None) -> RunPodAccepted:
        """Store and queue a job. A repeated request gets the state of its job.

        Raises:
            ServiceError: the job was not accepted.
        """
        new_id = self._new_id()
        retention_s = self._settings.jobs.async_retention_s
        job_id = (await self._submit(new_id, request, repeat_key, retention_s)).id
        state = JobState.IN_QUEUE if job_id == new_id else (await self._jobs.wait(job_id, 0)).state
        return RunPodAccepted(id=job_id, status=state)

    def _new_id(self) -> str:
        return f"{uuid.uuid4()}-{self._settings.jobs.cell}"

    async def _submit(self, new_id: str, request: RunPodRequest, repeat_key: str | None, retention_s: float) -> JobSpec:
        """Store and queue a job under a new id; returns it, or the job that a request repeats.

        Raises:
            ServiceError: the job was not accepted.
        """
        limits, jobs = self._settings.limits, self._settings.jobs
        policy = request.policy or RunPodPolicy(executionTimeout=None, ttl=None, lowPriority=None)
        fields = request.model_dump_json(exclude={"input": _PICTURES}, exclude_none=True)
        try:
            parsed = parse_input(request.input, limits, self._backend.loras, low_priority=bool(policy.lowPriority))
            checked_policy = _policy(policy, limits.request_timeout_s)
            webhook = _checked_webhook(request.webhook, jobs.webhook_origins)
        except InvalidInput:
            known = await self.admission.find_invalid(repeat_key, fields, pictures_of(request.input))
            if known is None:
                raise
            return known
        deadline = Deadline.after(parsed.timeout_s)
        return await self.admission.find_or_submit(
            new_id,
            parsed,
            deadline,
            checked_policy,
            retention_s,
            key=repeat_key,
            fields=fields,
            webhook=webhook,
            input_without_pictures=request.input.model_dump(mode="json", exclude=_PICTURES, exclude_none=True),
        )

    async def run(self, request: RunPodRequest, repeat_key: str | None, wait_ms: int) -> Response:
        """Submit a job and respond as `status` does, later.

        Raises:
            InvalidInput: the job was not accepted, or, later, the editor found a fault in the request.
            DeadlineExceeded: later, the job was not done in time. The end of an executionTimeout that the client set is
                a FAILED job instead.
            ServiceError: the job was not accepted.
        """
        jobs = self._settings.jobs
        retention_s = jobs.sync_retention_s if repeat_key is None else jobs.async_retention_s
        new_id = f"sync-{self._new_id()}"
        spec = await self._submit(new_id, request, repeat_key, retention_s)
        sets_execution_timeout = request.policy is not None and request.policy.executionTimeout is not None
        return LateResponse(partial(self._end_of_run, spec, spec.id == new_id, wait_ms, sets_execution_timeout))

    async def _end_of_run(self, spec: JobSpec, is_new: bool, wait_ms: int, sets_execution_timeout: bool) -> Response:
        end = await self._wait(spec.id, is_new, wait_ms / 1000)
        record, outcomes = end.record, end.outcomes
        if record.error_code == InvalidInput.code:
            raise InvalidInput(str(record.error))
        is_late = record.error_code == DeadlineExceeded.code
        if is_late and not (sets_execution_timeout and record.error == EXECUTION_TIMEOUT):
            raise DeadlineExceeded(str(record.error))
        given = [Job(spec.id, record, spec.seed, outcomes, spec.input_without_pictures)] if outcomes else []
        del end, outcomes  # so that only the list has the pictures
        return await self._answer(spec.id, record, given)

    async def _wait(self, job_id: str, is_new: bool, wait_s: float) -> JobEnd:
        """A job's end, or its state after the wait; with its pictures if they can be rendered at once."""
        if not is_new:
            # All repeats may wait at once, and the pictures of one job for each of them would fill the memory.
            return JobEnd(await self._jobs.wait(job_id, wait_s))
        end = await self._jobs.wait_for_pictures(job_id, wait_s)
        return end if self._bodies.renders_at_once else JobEnd(end.record)

    async def status(self, job_id: str, wait_ms: int) -> Response:
        """The job's envelope at its end, or its current one after the wait."""
        return await self._answer(job_id, await self._jobs.wait(job_id, wait_ms / 1000))

    async def _answer(self, job_id: str, record: JobRecord, given: list[Job] | None = None) -> Response:
        if record.state is not JobState.COMPLETED:
            return _json(_dump(plain_envelope(job_id, record)))
        return _json(await self._bodies.body(job_id, "runpod", lambda job: _dump(envelope(job)), given))

    async def stream(self, job_id: str, wait_ms: int) -> Response:
        """What is new in the job."""
        news = await self._jobs.news(job_id, wait_ms / 1000)
        # Off the event loop, since encoding pictures in base64 takes time.
        return _json(await asyncio.to_thread(lambda: _dump(stream(news))))


def _dump(answer: BaseModel) -> bytes:
    return answer.model_dump_json(exclude_none=True).encode()


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _policy(policy: RunPodPolicy, request_timeout_s: float) -> Policy:
    timeout_ms = default(policy.executionTimeout, round(request_timeout_s * 1000))
    ttl_ms = default(policy.ttl, round(Policy().ttl_s * 1000))
    return Policy(
        within(timeout_ms, 1, MAX_POLICY_MS, "policy.executionTimeout") / 1000,
        within(ttl_ms, 1, MAX_POLICY_MS, "policy.ttl") / 1000,
    )


def _checked_webhook(url: str | None, origins: tuple[str, ...]) -> str | None:
    if url is None or origin_of(url) in origins:
        return url
    raise InvalidInput(
        "webhook is a URL that this server may not call. Ask its operator to allow its origin.", "webhook"
    )
