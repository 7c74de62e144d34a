"""RunPod's requests as jobs, and their responses, made from what the Jobs deployment returns."""

import asyncio
import uuid
from collections.abc import Callable
from typing import TypeVar

from fastapi import Response
from pydantic import BaseModel

from serve_app.edits.job import EXECUTION_TIMEOUT, Policy
from serve_app.edits.service import Deadline
from serve_app.errors import DeadlineExceeded, InvalidInput
from serve_app.ingress.admission import JobAdmission
from serve_app.ingress.backend import Backend
from serve_app.ingress.runpod.answers import envelope, stream
from serve_app.ingress.runpod.parse import parse_input
from serve_app.ingress.runpod.request import RunPodPolicy, RunPodRequest
from serve_app.ingress.validation import default, within
from serve_app.net.origins import origin_of

T = TypeVar("T")

MAX_POLICY_MS = 7 * 86_400_000
_PICTURES = {"image", "images"}


class RunPodJobs:
    """The work of RunPod's routes. All responses that are not errors are HTTP 200."""

    def __init__(self, backend: Backend) -> None:
        self._settings = backend.settings
        self._jobs = backend.jobs
        self._admission = JobAdmission(backend)

    async def submit(self, request: RunPodRequest, repeat_key: str | None, *, sync: bool) -> str:
        """Store and queue a job; its id.

        Raises:
            ServiceError: the job was not accepted.
        """
        limits, jobs = self._settings.limits, self._settings.jobs
        policy = request.policy or RunPodPolicy(executionTimeout=None, ttl=None, lowPriority=None)
        parsed = parse_input(request.input, limits, low_priority=bool(policy.lowPriority))
        webhook = _checked_webhook(request.webhook, jobs.webhook_origins)
        deadline = Deadline.after(parsed.timeout_s)
        spec = await self._admission.find_or_submit(
            f"{'sync-' if sync else ''}{uuid.uuid4()}-u1",
            parsed,
            deadline,
            _policy(policy, limits.request_timeout_s),
            jobs.sync_retention_s if sync and repeat_key is None else jobs.async_retention_s,
            key=repeat_key,
            fields=request.model_dump_json(exclude={"input": _PICTURES}, exclude_none=True),
            webhook=webhook,
            input_without_pictures=request.input.model_dump(mode="json", exclude=_PICTURES, exclude_none=True),
        )
        return spec.id

    async def run(self, request: RunPodRequest, repeat_key: str | None, wait_ms: int) -> Response:
        """Run a job and respond as `status` does.

        Raises:
            InvalidInput: the job was not accepted, or the editor found a fault in the request.
            DeadlineExceeded: the job was not done in time. The end of an executionTimeout that the client set is a
                FAILED job instead.
            ServiceError: the job was not accepted.
        """
        job = await self._jobs.wait(await self.submit(request, repeat_key, sync=True), wait_ms / 1000)
        if job.record.error_code == InvalidInput.code:
            raise InvalidInput(str(job.record.error))
        is_late = job.record.error_code == DeadlineExceeded.code
        if is_late and not (_sets_execution_timeout(request.policy) and job.record.error == EXECUTION_TIMEOUT):
            raise DeadlineExceeded(str(job.record.error))
        return await asyncio.to_thread(_json, envelope, job)

    async def status(self, job_id: str, wait_ms: int) -> Response:
        """The job's envelope at its end, or its current one after the wait."""
        return await asyncio.to_thread(_json, envelope, await self._jobs.wait(job_id, wait_ms / 1000))

    async def stream(self, job_id: str, wait_ms: int) -> Response:
        """What is new in the job."""
        return await asyncio.to_thread(_json, stream, await self._jobs.news(job_id, wait_ms / 1000))


def _json(render: Callable[[T], BaseModel], value: T) -> Response:
    """Runs off the event loop, since encoding pictures in base64 takes time."""
    return Response(render(value).model_dump_json(exclude_none=True), media_type="application/json")


def _policy(policy: RunPodPolicy, request_timeout_s: float) -> Policy:
    timeout_ms = default(policy.executionTimeout, round(request_timeout_s * 1000))
    ttl_ms = default(policy.ttl, round(Policy().ttl_s * 1000))
    return Policy(
        within(timeout_ms, 1, MAX_POLICY_MS, "policy.executionTimeout") / 1000,
        within(ttl_ms, 1, MAX_POLICY_MS, "policy.ttl") / 1000,
    )


def _sets_execution_timeout(policy: RunPodPolicy | None) -> bool:
    return policy is not None and policy.executionTimeout is not None


def _checked_webhook(url: str | None, origins: tuple[str, ...]) -> str | None:
    if url is None or origin_of(url) in origins:
        return url
    raise InvalidInput(
        "webhook is a URL that this server may not call. Ask its operator to allow its origin.", "webhook"
    )
