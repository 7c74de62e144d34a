"""RunPod's requests as jobs: accepted once they are stored, told from what the Jobs deployment knows."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel

from serve_app.edits.deadline import Deadline
from serve_app.edits.job import EXECUTION_TIMEOUT, JobSpec, Policy, RepeatKey
from serve_app.errors import DeadlineExceeded, InvalidInput
from serve_app.ingress.asked import default, within
from serve_app.ingress.backend import Backend
from serve_app.ingress.fingerprint import fingerprint_of
from serve_app.ingress.job_line import describe
from serve_app.ingress.room import Room
from serve_app.ingress.runpod.answers import envelope, stream
from serve_app.ingress.runpod.parse import given_pictures, parse_input
from serve_app.ingress.runpod.request import RunPodInput, RunPodPolicy, RunPodRequest
from serve_app.net.origins import origin_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_POLICY_MS = 7 * 86_400_000
_PICTURES = {"image", "images"}


class RunPodJobs:
    """What stands behind RunPod's routes. All answers that are no errors are HTTP 200."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._jobs = backend.jobs
        self._room = Room(backend.jobs)

    async def submit(self, request: RunPodRequest, repeat_key: str | None, *, sync: bool) -> str:
        """Store and queue a job; its id.

        Raises:
            ServiceError: the job was not accepted.
        """
        settings = self._backend.settings
        policy = request.policy or RunPodPolicy(executionTimeout=None, ttl=None, lowPriority=None)
        asked = parse_input(request.input, settings.limits, low_priority=bool(policy.lowPriority))
        webhook = _checked_webhook(request.webhook, settings.jobs.webhook_origins)
        deadline = Deadline.after(asked.timeout_s)
        timing = _policy(policy, settings.limits.request_timeout_s)
        key = None if repeat_key is None else RepeatKey(repeat_key, await asyncio.to_thread(self._fingerprint, request))
        if key is not None and (known := await self._jobs.find(key)) is not None:
            logger.info("%s", describe(known.id, replace(known, id="")))
            return known.id
        self._backend.draining.require_open()
        job_id = f"{'sync-' if sync else ''}{uuid.uuid4()}-u1"
        async with self._room.place():
            prepared = await deadline.bound(self._backend.prepare(job_id, asked))
        spec = JobSpec(
            id=job_id,
            edits=prepared.edits,
            pictures_of=prepared.pictures_of,
            seed=asked.edits[0].sampling.seed,
            policy=replace(timing, timeout_s=deadline.timeout_s, spent_s=deadline.spent_s),
            retention_s=settings.jobs.sync_retention_s if sync and key is None else settings.jobs.async_retention_s,
            webhook=webhook,
            input_without_pictures=_without_pictures(request.input),
            repeat_key=key,
        )
        kept_id = await deadline.bound(self._jobs.submit(spec, prepared.pictures))
        logger.info("%s", describe(kept_id, spec))
        return kept_id

    def _fingerprint(self, request: RunPodRequest) -> str:
        fields = request.model_dump_json(exclude={"input": _PICTURES}, exclude_none=True)
        pictures = given_pictures(request.input)
        return fingerprint_of(fields, pictures, self._backend.settings.limits.max_picture_bytes)

    async def run(self, request: RunPodRequest, repeat_key: str | None, wait_ms: int) -> Response:
        """Run a job and answer as `told` does.

        Raises:
            InvalidInput: the job was not accepted, or the editor found a fault in the request.
            DeadlineExceeded: the job was not done in time, and its time was not set by an executionTimeout, whose end
                is a FAILED job.
            ServiceError: the job was not accepted.
        """
        job = await self._jobs.wait(await self.submit(request, repeat_key, sync=True), wait_ms / 1000)
        if job.record.error_code == InvalidInput.code:
            raise InvalidInput(str(job.record.error))
        is_late = job.record.error_code == DeadlineExceeded.code
        if is_late and not (_sets_execution_timeout(request.policy) and job.record.error == EXECUTION_TIMEOUT):
            raise DeadlineExceeded(str(job.record.error))
        return await asyncio.to_thread(_json, envelope, job)

    async def told(self, job_id: str, wait_ms: int) -> Response:
        """The job's envelope at its end, or as it stands after the wait."""
        return await asyncio.to_thread(_json, envelope, await self._jobs.wait(job_id, wait_ms / 1000))

    async def news(self, job_id: str, wait_ms: int) -> Response:
        """What is new in the job."""
        news = await self._jobs.news(job_id, wait_ms / 1000)
        return await asyncio.to_thread(_json, stream, news)


def _json(render: Callable[[T], BaseModel], told: T) -> Response:
    """Rendered off the event loop: pictures in base64 take their time."""
    return Response(render(told).model_dump_json(exclude_none=True), media_type="application/json")


def _policy(given: RunPodPolicy, request_timeout_s: float) -> Policy:
    timeout_ms = within(
        default(given.executionTimeout, round(request_timeout_s * 1000)), 1, MAX_POLICY_MS, "policy.executionTimeout"
    )
    ttl_ms = within(default(given.ttl, round(Policy().ttl_s * 1000)), 1, MAX_POLICY_MS, "policy.ttl")
    return Policy(timeout_ms / 1000, ttl_ms / 1000)


def _sets_execution_timeout(policy: RunPodPolicy | None) -> bool:
    return policy is not None and policy.executionTimeout is not None


def _checked_webhook(url: str | None, origins: tuple[str, ...]) -> str | None:
    if url is None or origin_of(url) in origins:
        return url
    raise InvalidInput(
        "webhook is a URL that this server may not call. Ask its operator to allow its origin.", "webhook"
    )


def _without_pictures(given: RunPodInput) -> dict[str, Any]:
    return given.model_dump(mode="json", exclude=_PICTURES, exclude_none=True)
