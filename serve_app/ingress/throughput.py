"""How fast edits are finished, and so how long a rejected client should wait: the Retry-After of responses."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from serve_app.edits.job import JobCounts, JobsPort
from serve_app.edits.request import EditRequest, EditResult, Progress, SharedPictures
from serve_app.edits.service import EditorPort, OnProgress
from serve_app.errors import ServiceError
from serve_app.ingress.backend import RETRY_AFTER_S

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 300

WINDOW_S = 60.0
"""The time over which throughput is measured."""

COUNT_EVERY_S = 1.0
_COUNT_TIMEOUT_S = 10.0


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
