"""Throughput of edits, from which Retry-After is computed."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from serve_app.edits.job import JobCounts, JobsPort
from serve_app.errors import ServiceError

MIN_S, MAX_S = 1, 300
"""Bounds of what a client is told to wait."""

UNKNOWN_S = 5
"""What it is told while nothing has come through yet."""

WINDOW_S = 60.0
LOOK_EVERY_S = 1.0
_PATIENCE_S = 10.0


class ThroughputMeter:
    """What waits, over what was finished per second of late. Seconds per edit and the number that run at once are both
    in that rate, whatever the number of editors and the sizes of the edits. Lives on one event loop.

    Args:
        jobs: knows how many jobs wait and were finished.
        clock: seconds.

    Attributes:
        num_waiting: edits of this replica's own requests that no editor has taken up.
        num_running: those that are with one.
        num_done: those that were finished since the start.
    """

    def __init__(self, jobs: JobsPort, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_waiting = 0
        self.num_running = 0
        self.num_done = 0
        self._jobs = jobs
        self._clock = clock
        self._notes: deque[tuple[float, int]] = deque()
        self._waiting = 0
        self._looked_at = -math.inf
        self._look: asyncio.Task[None] | None = None

    def retry_after_s(self) -> int:
        """Seconds until what waits now is through, between `MIN_S` and `MAX_S`; `UNKNOWN_S` without a measure. It is
        told at once, from the last look at the jobs, and begins a new look where that is old."""
        self._look_again()
        if not self._notes:
            return UNKNOWN_S
        (began, before), (now, done) = self._notes[0], self._notes[-1]
        if done == before:
            return UNKNOWN_S
        return max(MIN_S, min(MAX_S, math.ceil(self._waiting * (now - began) / (done - before))))

    def _look_again(self) -> None:
        if self._clock() >= self._looked_at + LOOK_EVERY_S:
            self._looked_at = self._clock()
            self._look = asyncio.create_task(self.look())

    async def look(self) -> None:
        """Note how much is done by now. Where the jobs cannot be counted, the last measure holds."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                self._note(await self._jobs.counts())
        except (TimeoutError, ServiceError):
            return

    def _note(self, jobs: JobCounts) -> None:
        now, done = self._clock(), self.num_done + jobs.completed + jobs.failed
        self._waiting = self.num_waiting + jobs.in_queue
        is_idle = self._waiting + self.num_running + jobs.in_progress == 0
        # Idle time is no measure of speed, and a new Jobs replica counts from nothing.
        if is_idle or (self._notes and done < self._notes[-1][1]):
            self._notes.clear()
        self._notes.append((now, done))
        while self._notes[0][0] < now - WINDOW_S:
            self._notes.popleft()
