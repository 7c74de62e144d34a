"""Runs jobs: each in its turn, its edits side by side, every step of its life in the store before it is told."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, EditRequest, Pictures, Progress
from serve_app.edits.service import EditService, Tell
from serve_app.edits.together import all_or_none
from serve_app.errors import Overloaded, ServiceError, ServiceUnavailable
from serve_app.jobs.live import LiveJob
from serve_app.jobs.store import Store

logger = logging.getLogger(__name__)

P = TypeVar("P")

ROOM_POLL_S = 0.5
"""Between two attempts to hand an edit to editors that had no room; after the first one that died under it, too."""

MAX_LOSSES = 7
"""Attempts at an edit whose editors keep dying under it. The pauses between them double, half a minute in all: for so
long a sick replica may refuse before Serve has replaced it."""


class Runner(Generic[P]):
    """Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        share: makes prepared pictures travel by reference.
        max_active: jobs that are with the editors at once; the others wait here.
        ended: told of each job after its end is stored.
    """

    def __init__(
        self,
        owner: str,
        service: EditService[P],
        store: Store,
        share: Callable[[Pictures], P],
        max_active: int,
        clock: Callable[[], float],
        ended: Callable[[LiveJob], None],
    ) -> None:
        self._owner = owner
        self._service = service
        self._store = store
        self._share = share
        self._max_active = max_active
        self._clock = clock
        self._ended = ended
        self._queue: list[LiveJob] = []
        self._active: set[LiveJob] = set()
        self._background: set[asyncio.Task[None]] = set()
        self.ends: Counter[JobState] = Counter()

    @property
    def num_open(self) -> int:
        return len(self._queue) + len(self._active)

    @property
    def jobs(self) -> list[LiveJob]:
        """All jobs that wait or run."""
        return [*self._queue, *self._active]

    def enlist(self, spec: JobSpec, record: JobRecord) -> LiveJob:
        """Queue a stored job that this replica owns."""
        job = LiveJob(spec, record)
        self._queue.append(job)
        self._queue.sort(key=lambda waiting: waiting.rank)
        left_s = record.created_at + spec.policy.ttl_s - self._clock()
        loop = asyncio.get_running_loop()
        job.expiry = loop.call_later(max(0.0, left_s), lambda: self.spawn(self._expire(job)))
        self._start_next()
        return job

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the jobs; what it raises is logged."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_log_failure)

    def stop(self, job: LiveJob, record: JobRecord | None) -> None:
        """Let go of a job that somebody else has ended or taken over; `record` is what the store has of it."""
        self._let_go(job)
        if job.task is not None:
            job.task.cancel()
        self._conclude(job, cancelled(record))

    async def close(self) -> None:
        """Let go of everything; the store keeps it for a successor."""
        tasks = [*self._background, *(job.task for job in self._active if job.task is not None)]
        for job in self.jobs:
            self._let_go(job)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_next(self) -> None:
        while self._queue and len(self._active) < self._max_active:
            job = self._queue.pop(0)
            self._active.add(job)
            job.task = asyncio.create_task(self._run(job))
            job.task.add_done_callback(_log_failure)

    async def _run(self, job: LiveJob) -> None:
        try:
            async with asyncio.timeout(None) as job.limit:
                await self._draw(job)
        except TimeoutError:
            await self._end(job, JobState.FAILED, "executionTimeout exceeded")
        except ServiceError as problem:
            await self._end(job, JobState.FAILED, str(problem), problem.code)
        except Exception:
            logger.exception("job %s failed", job.id)
            await self._end(job, JobState.FAILED, "Internal error; the server's log has the reason.")
        else:
            await self._end(job, JobState.COMPLETED, None)

    async def _draw(self, job: LiveJob) -> None:
        """All edits that are not finished yet: some may be, if an earlier owner died."""
        job.outcomes.update(await self._store.outcomes(job.id))
        pictures = [self._share(each) for each in await self._store.pictures(job.id)]
        await all_or_none(
            self._edit(job, index, edit, pictures[job.spec.pictures_of[index]])
            for index, edit in enumerate(job.spec.edits)
            if index not in job.outcomes
        )

    async def _edit(self, job: LiveJob, index: int, request: EditRequest, pictures: P) -> None:
        outcome = await self._insist(request, pictures, partial(self._progress, job, index))
        if await self._store.add_outcome(job.id, self._owner, index, outcome):
            job.outcomes[index] = outcome
            job.progress.pop(index, None)
            job.tell()

    async def _insist(self, request: EditRequest, pictures: P, tell: Tell) -> EditOutcome:
        """An accepted job waits for room as long as its policy lets it, and outlives the editors that die."""
        num_losses = 0
        while True:
            try:
                return await self._service.run(request, pictures, tell)
            except Overloaded:
                pause_s = ROOM_POLL_S
            except ServiceUnavailable:
                num_losses += 1
                if num_losses == MAX_LOSSES:
                    raise
                pause_s = ROOM_POLL_S * 2 ** (num_losses - 1)
            await asyncio.sleep(pause_s)

    def _progress(self, job: LiveJob, index: int, progress: Progress) -> None:
        job.progress[index] = replace(progress, preview=None)
        if job.waits:
            self._pick_up(job)
        job.tell()

    def _pick_up(self, job: LiveJob) -> None:
        job.record = replace(job.record, state=JobState.IN_PROGRESS, started_at=self._clock())
        if job.limit is not None:
            job.limit.reschedule(asyncio.get_running_loop().time() + job.spec.policy.execution_timeout_s)
        self._forget_expiry(job)
        self.spawn(self._write_pick_up(job))

    async def _write_pick_up(self, job: LiveJob) -> None:
        async with job.writing:
            if not job.record.state.final:
                await self._store.update(job.id, self._owner, job.record)

    async def _expire(self, job: LiveJob) -> None:
        if not job.waits:
            return
        self._let_go(job)
        if job.task is not None:
            job.task.cancel()
        await self._end(job, JobState.TIMED_OUT, "The job was not picked up within its ttl.")

    async def _end(self, job: LiveJob, state: JobState, error: str | None, error_code: str | None = None) -> None:
        """Store the end, and only then tell it. Where the job has been ended or taken by another, that holds."""
        async with job.writing:
            record = replace(job.record, state=state, error=error, error_code=error_code, ended_at=self._clock())
            stored = await self._store.update(job.id, self._owner, record)
            told = record if stored else cancelled(await self._store.record(job.id))
        self._let_go(job)
        self._conclude(job, told)

    def _conclude(self, job: LiveJob, record: JobRecord | None) -> None:
        """Tell the end once, whoever saw it first. A job that was taken over has its end elsewhere, not here."""
        if job.record.state.final:
            return
        if record is not None:
            job.record = record
            self.ends[record.state] += 1
        job.outcomes.clear()
        job.progress.clear()
        job.tell()
        self._ended(job)

    def _let_go(self, job: LiveJob) -> None:
        self._forget_expiry(job)
        self._active.discard(job)
        if job in self._queue:
            self._queue.remove(job)
        self._start_next()

    def _forget_expiry(self, job: LiveJob) -> None:
        if job.expiry is not None:
            job.expiry.cancel()


def cancelled(record: JobRecord | None) -> JobRecord | None:
    """The record, if the job was cancelled: the one end that comes from others while the job is still its owner's."""
    return record if record is not None and record.state is JobState.CANCELLED else None


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.error("unexpected error in the background", exc_info=problem)
