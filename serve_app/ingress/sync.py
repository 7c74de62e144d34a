"""A synchronous job: decode its pictures, run its edits side by side, wrap what came of them."""

import asyncio
import base64
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.config import AppSettings
from serve_app.edits.images import decode_base64, prepare, read_picture
from serve_app.edits.request import EditOutcome, EditRequest, Pictures
from serve_app.edits.service import EditService
from serve_app.edits.sizes import Size, output_size
from serve_app.errors import EditFailed, ServiceError
from serve_app.ingress.parse import Item, ParsedInput, check_output_size, parse_input
from serve_app.ingress.runpod import RunPodEnvelope, RunPodRequest, completed, failed

P = TypeVar("P")


@dataclass
class JobCounts:
    """Jobs of this ingress replica since its start, but for `in_progress`."""

    completed: int = 0
    failed: int = 0
    in_progress: int = 0


@dataclass
class Backend(Generic[P]):
    """What the routes need from the world.

    Attributes:
        service: runs edits.
        share: makes prepared pictures travel by reference; called once for each edit.
        workers: RunPod's worker counts by state.
    """

    settings: AppSettings
    service: EditService[P]
    share: Callable[[Pictures], P]
    workers: Callable[[], Awaitable[dict[str, int]]]
    counts: JobCounts = field(default_factory=JobCounts)


class RunSync(Generic[P]):
    """What stands behind `/runsync`."""

    def __init__(self, backend: Backend[P]) -> None:
        self._backend = backend
        self._limits = backend.settings.limits
        # Bounded: each decode may hold a whole photograph.
        self._decoders = ThreadPoolExecutor(self._limits.num_decode_threads, thread_name_prefix="decode")

    async def __call__(self, request: RunPodRequest) -> RunPodEnvelope:
        """Run a job to its end.

        Raises:
            ServiceError: the job was not accepted; an accepted one that fails is an envelope that says so.
        """
        began = time.monotonic()
        job_id = f"sync-{uuid.uuid4()}-u1"
        parsed = parse_input(request.input, self._limits)
        prepared = await asyncio.gather(*(self._prepare(job_id, index, parsed) for index in range(len(parsed.items))))
        counts = self._backend.counts
        counts.in_progress += 1
        try:
            outcomes = await self._run_all(prepared)
            images = await asyncio.to_thread(_to_base64, outcomes)
        except EditFailed as problem:
            counts.failed += 1
            return failed(job_id, str(problem), time.monotonic() - began)
        finally:
            counts.in_progress -= 1
        counts.completed += 1
        return completed(job_id, parsed.sampling.seed, outcomes, images, time.monotonic() - began)

    async def _prepare(self, job_id: str, index: int, parsed: ParsedInput) -> tuple[EditRequest, Pictures]:
        item = parsed.items[index]
        pictures, source = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, item)
        size = output_size(parsed.width, parsed.height, source, self._backend.settings.sizes)
        check_output_size(size, self._limits)
        request = EditRequest(
            request_id=job_id if len(parsed.items) == 1 else f"{job_id}/{index}",
            prompt=item.prompt,
            camera=parsed.camera,
            rewrite_prompt=parsed.rewrite_prompt,
            sampling=parsed.sampling,
            size=size,
            output=parsed.output,
        )
        return request, pictures

    def _decode(self, item: Item) -> tuple[Pictures, Size]:
        """Pictures at the model's sizes, and the first one's own size. Runs on a decoder thread."""
        opened = [
            read_picture(
                decode_base64(given.base64, given.field, self._limits.max_picture_bytes), given.field, self._limits
            )
            for given in item.pictures
        ]
        return tuple(prepare(picture, self._backend.settings.sizes) for picture in opened), Size(*opened[0].size)

    async def _run_all(self, prepared: list[tuple[EditRequest, Pictures]]) -> list[EditOutcome]:
        """All edits side by side. One envelope has one end: where an edit fails, the others are cancelled."""
        run, share = self._backend.service.run, self._backend.share
        tasks = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(request, share(pictures))) for request, pictures in prepared]
        except* ServiceError as problems:
            raise problems.exceptions[0] from None
        return [task.result() for task in tasks]


def _to_base64(outcomes: list[EditOutcome]) -> list[str]:
    return [base64.b64encode(outcome.result.data).decode("ascii") for outcome in outcomes]
