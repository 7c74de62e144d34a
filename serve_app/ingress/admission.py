"""Admission: which jobs are accepted, what a full queue answers, and how long a rejected client should wait."""

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

from serve_app.edits.images import decode_base64
from serve_app.edits.job import JobCounts, JobSpec, JobsPort, Policy, RepeatKey
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import Deadline, EditorPort, OnProgress
from serve_app.errors import Overloaded, ServiceError, ServiceUnavailable, StoreFull
from serve_app.ingress.auth import CLIENT, KEY_NAME
from serve_app.ingress.backend import DRAINS, RETRY_AFTER_S, Backend
from serve_app.ingress.prepare import ParsedRequest

logger = logging.getLogger(__name__)

FULL_S = 0.1
"""For how long a queue that was full is assumed to be full."""

STORE_FULL_S = 1.0
"""For how long a store is assumed to be full for a client whose job it refused."""

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 300

WINDOW_S = 60.0
"""The time over which throughput is measured."""

COUNT_EVERY_S = 1.0
_COUNT_TIMEOUT_S = 10.0


class JobAdmission:
    """Turns parsed requests of either dialect into jobs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._places = QueuePlaces(backend.jobs)
        self._store_space = StoreSpace()

    async def find_or_submit(
        self,
        job_id: str,
        parsed: ParsedRequest,
        deadline: Deadline,
        policy: Policy,
        retention_s: float,
        *,
        key: str | None,
        fields: str,
        webhook: str | None = None,
        input_without_pictures: Mapping[str, Any] | None = None,
    ) -> JobSpec:
        """Submit a job, or find the one that the same Idempotency-Key made before. A known job is found before any
        picture is decoded, and also while the service drains or the queue is full: its client has no other way to the
        result.

        Args:
            job_id: of the job, if it is new.
            policy: of the job; the deadline is added here.
            key: the Idempotency-Key, or None.
            fields: the request without its pictures, as canonical JSON.
            webhook: as in JobSpec; so is `input_without_pictures`.

        Raises:
            ServiceError: the job was not accepted.
        """
        jobs = self._backend.jobs
        repeat_key = None if key is None else RepeatKey(key, await asyncio.to_thread(self._fingerprint, fields, parsed))
        if repeat_key is not None and (known := await jobs.find(repeat_key)) is not None:
            _log_accepted(known, repeated=True)
            return known
        if self._backend.draining.begun:
            raise ServiceUnavailable(DRAINS)
        self._store_space.require(CLIENT.get())
        async with self._places.take():
            prepared = await deadline.bound(self._backend.prepare(job_id, parsed))
        spec = JobSpec(
            id=job_id,
            edits=tuple(replace(edit, num_previews=0) for edit in prepared.edits),  # a job's previews are not stored
            pictures_of=prepared.pictures_of,
            seed=parsed.edits[0].sampling.seed,
            policy=replace(policy, timeout_s=deadline.timeout_s, spent_s=deadline.spent_s),
            retention_s=retention_s,
            webhook=webhook,
            input_without_pictures=input_without_pictures,
            repeat_key=repeat_key,
            client=CLIENT.get(),
        )
        with self._store_space.noting(spec.client):
            accepted = replace(spec, id=await deadline.bound(jobs.submit(spec, prepared.pictures)))
        _log_accepted(accepted, repeated=accepted.id != job_id)
        return accepted

    def _fingerprint(self, fields: str, parsed: ParsedRequest) -> str:
        return fingerprint_of(fields, parsed, self._backend.settings.limits.max_picture_bytes)


def fingerprint_of(fields: str, parsed: ParsedRequest, max_picture_bytes: int) -> str:
    """A hex digest that is equal for requests for the same edits, however they were encoded. Hashes all bytes of the
    pictures, so it must not run on an event loop.

    Args:
        fields: the request without its pictures, as canonical JSON.
        parsed: its pictures are hashed as bytes, so that the encoding of base64 and its line breaks do not count; a
            URL is hashed as text.

    Raises:
        InvalidInput: a picture is not valid base64, or too large.
    """
    digest = hashlib.sha256(fields.encode())
    for source in chain.from_iterable(parsed.picture_sets):
        content = source.content
        if isinstance(content, str):
            content = content.encode() if source.url else decode_base64(content, source.field, max_picture_bytes)
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _log_accepted(spec: JobSpec, *, repeated: bool) -> None:
    """Serve adds the request id of the HTTP request. The key's name is that of the current request."""
    size, key_name = spec.edits[0].size.final, KEY_NAME.get()
    logger.info(
        "job %s taken: num_edits=%d num_picture_sets=%d size=%dx%d num_steps=%d%s%s",
        spec.id,
        len(spec.edits),
        max(spec.pictures_of) + 1,
        size.width,
        size.height,
        spec.edits[0].sampling.num_inference_steps,
        " repeated=true" if repeated else "",
        f" key={key_name}" if key_name else "",
    )


class QueuePlaces:
    """Limits the number of requests that are prepared at once to the free places in the queue of jobs. The queue is
    called when the places that it returned are used up, and every `FULL_S` while it is full. Several instances,
    as in several replicas, may together admit too many; `JobsPort.submit` rejects those. Lives on one event loop."""

    def __init__(self, jobs: JobsPort, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._num_free = 0
        self._num_preparing = 0
        self._full_until = -math.inf
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold a place while a request is prepared, until just before it is submitted.

        Raises:
            Overloaded: no place is free.
        """
        async with self._lock:
            if self._num_free <= 0 and self._clock() >= self._full_until:
                self._num_free = await self._jobs.room() - self._num_preparing
                self._full_until = self._clock() + (FULL_S if self._num_free <= 0 else 0)
            if self._num_free <= 0:
                raise Overloaded("The queue of jobs is full; try again later.")
            self._num_free -= 1
        self._num_preparing += 1
        try:
            yield
        except BaseException:
            self._num_free += 1  # It will not be submitted.
            raise
        finally:
            self._num_preparing -= 1


class StoreSpace:
    """Rejects jobs of clients for whom the store was full a moment ago, before their pictures are prepared."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused: dict[str, tuple[float, str]] = {}

    def require(self, client: str) -> None:
        """
        Raises:
            StoreFull: the store refused a job of this client less than `STORE_FULL_S` ago.
        """
        until, message = self._refused.get(client, (-math.inf, ""))
        if self._clock() < until:
            raise StoreFull(message)

    @contextmanager
    def noting(self, client: str) -> Iterator[None]:
        """Remember a StoreFull that is raised meanwhile."""
        try:
            yield
        except StoreFull as problem:
            self._refused[client] = self._clock() + STORE_FULL_S, problem.message
            raise


class ThroughputMeter:
    """Computes Retry-After: the number of waiting edits divided by the edits finished per second. That rate already
    depends on the number of editors, the seconds per edit and the sizes of the edits. Lives on one event loop.

    Args:
        jobs: counts waiting and finished jobs.
        clock: seconds.

    Attributes:
        num_waiting: edits of this replica's own requests that no editor has started.
        num_running: those that an editor runs.
        num_done: those that finished since the start.
    """

    def __init__(self, jobs: JobsPort, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_waiting = 0
        self.num_running = 0
        self.num_done = 0
        self._jobs = jobs
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._waiting = 0
        self._counted_at = -math.inf
        self._counting: asyncio.Task[None] | None = None

    def retry_after_s(self) -> int:
        """Seconds until all that waits now is done, within `MIN_RETRY_AFTER_S` and `MAX_RETRY_AFTER_S`;
        `RETRY_AFTER_S` without a measurement. Returns at once, and starts a new count of the jobs if the last one is
        older than `COUNT_EVERY_S`."""
        if self._clock() >= self._counted_at + COUNT_EVERY_S:
            self._counted_at = self._clock()
            self._counting = asyncio.create_task(self.count())
        if not self._samples:
            return RETRY_AFTER_S
        (began, before), (now, done) = self._samples[0], self._samples[-1]
        if done == before:
            return RETRY_AFTER_S
        wait_s = math.ceil(self._waiting * (now - began) / (done - before))
        return max(MIN_RETRY_AFTER_S, min(MAX_RETRY_AFTER_S, wait_s))

    async def count(self) -> None:
        """Sample the number of finished edits. If the jobs cannot be counted, the last sample stays valid."""
        try:
            async with asyncio.timeout(_COUNT_TIMEOUT_S):
                self._add_sample(await self._jobs.counts())
        except (TimeoutError, ServiceError):
            return

    def _add_sample(self, jobs: JobCounts) -> None:
        now, done = self._clock(), self.num_done + jobs.completed + jobs.failed
        self._waiting = self.num_waiting + jobs.in_queue
        is_idle = self._waiting + self.num_running + jobs.in_progress == 0
        # Idle time says nothing about throughput, and a new Jobs replica counts from zero.
        if is_idle or (self._samples and done < self._samples[-1][1]):
            self._samples.clear()
        self._samples.append((now, done))
        while self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()


class MeteredEditor:
    """Wraps an EditorPort and counts waiting, running and finished edits in a ThroughputMeter."""

    def __init__(self, editor: EditorPort, meter: ThroughputMeter) -> None:
        self._editor = editor
        self._meter = meter

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        """As the editor's; the first progress means that the edit has started."""
        started = False

        def count_and_report(progress: Progress) -> None:
            nonlocal started
            if not started:
                started = True
                self._meter.num_waiting -= 1
                self._meter.num_running += 1
            on_progress(progress)

        self._meter.num_waiting += 1
        try:
            result = await self._editor.edit(request, pictures, count_and_report, timeout_s)
            self._meter.num_done += 1
            return result
        finally:
            if started:
                self._meter.num_running -= 1
            else:
                self._meter.num_waiting -= 1
