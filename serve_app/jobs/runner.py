"""Runs jobs: each in its turn, its edits side by side, every step of its life stored before it is reported."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from serve_app.edits.deadline import too_late
from serve_app.edits.job import EXECUTION_TIMEOUT, JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, EditRequest, Pictures, Progress, SharedPictures
from serve_app.edits.service import EditService, OnProgress, all_or_none
from serve_app.errors import DeadlineExceeded, JobUnreadable, Overloaded, ServiceError, ServiceUnavailable
from serve_app.jobs.live import LiveJob
from serve_app.jobs.store_link import StoreLink
from serve_app.jobs.stores.store import Store

logger = logging.getLogger(__name__)


ROOM_POLL_S = 0.5
"""Between two attempts to hand an edit to editors that had no room; after the first one that died under it, too."""

MAX_LOSSES = 7
"""Attempts at an edit whose editors keep dying under it. The pauses between them double, half a minute in all: for so
long a sick replica may refuse before Serve has replaced it."""


class Runner:
    """Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        share: makes prepared pictures travel by reference.
        max_active: jobs that are with the editors at once; the others wait here.
        ended: called with each job after its end is stored.
    """

    def __init__(
        self,
        owner: str,
        service: EditService,
        store: StoreLink,
        share: Callable[[Pictures], SharedPictures],
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
        self._ending: set[LiveJob] = set()
        self._background: set[asyncio.Task[None]] = set()
        self.ends: Counter[JobState] = Counter()

    @property
    def num_open(self) -> int:
        return len(self.jobs)

    @property
    def jobs(self) -> list[LiveJob]:
        """All jobs that wait or run, or whose end is not stored yet."""
        return [*self._queue, *self._active, *self._ending]

    def enlist(self, spec: JobSpec, record: JobRecord, *, was_picked_up: bool = False) -> LiveJob:
        """Queue a stored job that this replica owns. One that another replica picked up has met its ttl."""
        job = LiveJob(spec, record, was_picked_up)
        self._queue.append(job)
        self._queue.sort(key=lambda waiting: waiting.rank)
        loop = asyncio.get_running_loop()
        limits = [] if was_picked_up else [loop.time() + self._left_s(record, spec.policy.ttl_s)]
        if spec.policy.timeout_s is not None:
            job.deadline = loop.time() + self._left_s(record, spec.policy.timeout_s - spec.policy.spent_s)
            limits.append(job.deadline)
        if limits:
            # Not by the clock at that moment: a timer may fire a little early.
            by_deadline = job.deadline == min(limits)
            job.expiry = loop.call_at(min(limits), lambda: self.spawn(self._expire(job, by_deadline)))
        self._start_next()
        return job

    def _left_s(self, record: JobRecord, limit_s: float) -> float:
        """What is left of a limit that counts from the job's arrival. A clock that was set back adds nothing to it."""
        return max(0.0, min(limit_s, record.created_at + limit_s - self._clock()))

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
        tasks = [*self._background, *(job.task for job in self.jobs if job.task is not None)]
        self._max_active = 0  # nothing starts any more
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
            await self._draw(job)
        except ServiceError as problem:
            await self._end(job, JobState.FAILED, str(problem), problem.code)
        except Exception:
            logger.exception("job %s failed", job.id)
            await self._end(job, JobState.FAILED, "Internal error; the server's log has the reason.")
        else:
            await self._end(job, JobState.COMPLETED, None)

    async def _draw(self, job: LiveJob) -> None:
        """All edits that are not finished yet: some may be, if an earlier owner died."""
        job.outcomes.update(await self._store.call_until_done(lambda store: store.outcomes(job.id), is_write=False))
        stored = await self._store.call_until_done(lambda store: store.pictures(job.id), is_write=False)
        if not stored:
            raise JobUnreadable("The job's stored pictures are missing; send the job again.")
        pictures = [self._share(each) for each in stored]
        await all_or_none(
            self._edit(job, index, edit, pictures[job.spec.pictures_of[index]])
            for index, edit in enumerate(job.spec.edits)
            if index not in job.outcomes
        )

    async def _edit(self, job: LiveJob, index: int, request: EditRequest, pictures: SharedPictures) -> None:
        outcome = await self._drawn_in_time(job, index, request, pictures)
        # No limit applies to storing: a picture that is drawn is kept, however long the store is away.
        if await self._store.call_until_done(lambda store: store.add_outcome(job.id, self._owner, index, outcome)):
            job.outcomes[index] = outcome
            job.progress.pop(index, None)
            job.notify()

    async def _drawn_in_time(
        self, job: LiveJob, index: int, request: EditRequest, pictures: SharedPictures
    ) -> EditOutcome:
        try:
            async with asyncio.timeout_at(job.draw_until) as limit:
                job.limits.add(limit)  # rescheduled at the job's pick-up
                try:
                    return await self._run_with_retries(request, pictures, partial(self._progress, job, index), limit)
                finally:
                    job.limits.discard(limit)
        except (TimeoutError, DeadlineExceeded) as problem:
            if isinstance(problem, DeadlineExceeded) or limit.expired():
                raise _too_late(job) from problem
            raise

    async def _run_with_retries(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, limit: asyncio.Timeout
    ) -> EditOutcome:
        """An accepted job waits for room as long as its policy lets it, and outlives the editors that die. It is
        rewritten once, however often it is drawn."""
        rewrite = await self._service.rewrite(request, pictures, on_progress)
        num_losses = 0
        while True:
            try:
                return await self._service.draw(request, rewrite, pictures, on_progress, left_s(limit))
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
        job.notify()

    def _pick_up(self, job: LiveJob) -> None:
        job.record = replace(job.record, state=JobState.IN_PROGRESS, started_at=self._clock())
        job.run_until = asyncio.get_running_loop().time() + job.spec.policy.execution_timeout_s
        for limit in job.limits:
            if not limit.expired():
                limit.reschedule(job.draw_until)
        self._forget_expiry(job)
        self.spawn(self._write_pick_up(job))

    async def _write_pick_up(self, job: LiveJob) -> None:
        async with job.writing:
            record = job.record
            if not record.state.final:
                await self._store.call_until_done(lambda store: store.update(job.id, self._owner, record))

    async def _expire(self, job: LiveJob, by_deadline: bool) -> None:
        if job.was_picked_up and await self._is_drawn(job):
            return  # An earlier owner died after the last picture: nothing is left but its end.
        if not job.waits or job in self._ending:
            return
        if job.task is not None:
            job.task.cancel()
        if by_deadline:
            problem = _too_late(job)
            await self._end(job, JobState.FAILED, str(problem), problem.code)
        else:
            await self._end(job, JobState.TIMED_OUT, "The job was not picked up within its ttl.")

    async def _is_drawn(self, job: LiveJob) -> bool:
        stored = await self._store.call_until_done(lambda store: store.outcomes(job.id), is_write=False)
        return len(stored) == len(job.spec.edits)

    async def _end(self, job: LiveJob, state: JobState, error: str | None, error_code: str | None = None) -> None:
        """Store the end, and only then report it. Where the job was ended or taken over by another, that holds.

        While the store is away, the job is neither running nor forgotten: it ends when the store is back.
        """
        self._ending.add(job)
        try:
            self._let_go(job)
            ended_at = self._clock()
            async with job.writing:
                record = replace(job.record, state=state, error=error, error_code=error_code, ended_at=ended_at)
                known = await self._store.call_until_done(partial(self._store_end, job, record))
        except Exception:
            # Its record is damaged, for one. Let go of it here: the next heartbeat takes it up, or ends it.
            logger.exception("the end of job %s could not be stored", job.id)
            known = None
        finally:
            self._ending.discard(job)
        self._conclude(job, known)

    async def _store_end(self, job: LiveJob, record: JobRecord, store: Store) -> JobRecord | None:
        if await store.update(job.id, self._owner, record):
            return record
        # Where the answer to an earlier attempt was lost, the store has this very end.
        stored = await store.record(job.id)
        return stored if stored == record else cancelled(stored)

    def _conclude(self, job: LiveJob, record: JobRecord | None) -> None:
        """Report the end once, whoever saw it first. A job that was taken over has its end elsewhere, not here."""
        if job.record.state.final:
            return
        if record is not None:
            job.record = record
            self.ends[record.state] += 1
        job.outcomes.clear()
        job.progress.clear()
        job.notify()
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


def left_s(limit: asyncio.Timeout) -> float | None:
    """Seconds until a timeout, or None where it has none."""
    when = limit.when()
    return None if when is None else max(0.0, when - asyncio.get_running_loop().time())


def _too_late(job: LiveJob) -> DeadlineExceeded:
    if job.spec.policy.timeout_s is not None and job.deadline == job.draw_until:
        return DeadlineExceeded(too_late(job.spec.policy.timeout_s))
    return DeadlineExceeded(EXECUTION_TIMEOUT)


def cancelled(record: JobRecord | None) -> JobRecord | None:
    """The record, if the job was cancelled: the one end that comes from others while the job is still its owner's."""
    return record if record is not None and record.state is JobState.CANCELLED else None


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.error("unexpected error in the background", exc_info=problem)
