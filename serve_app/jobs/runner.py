"""Runs jobs in the order of the queue, the edits of each concurrently. Every change is stored before it is reported."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from serve_app.edits.fairness import Slots
from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome, EditRequest, Pictures, Progress, SharedPictures
from serve_app.edits.service import EditService, OnProgress, all_or_none
from serve_app.errors import DeadlineExceeded, JobUnreadable, Overloaded, ServiceError, ServiceUnavailable
from serve_app.jobs.live import LiveJob
from serve_app.jobs.store_link import StoreLink
from serve_app.jobs.stores.store import Store

logger = logging.getLogger(__name__)


EDITOR_RETRY_S = 0.5
"""Pause before an edit is offered to the editors again: each time while they are full, and after the first editor that
died during it."""

MAX_LOSSES = 7
"""Attempts at an edit whose editors keep dying. The pauses between them double, half a minute in all: Serve may take
that long to replace a failing replica."""


class Runner:
    """Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        share: makes prepared pictures travel by reference.
        max_active: jobs that are with the editors at once; the others wait here, clients in turn.
        on_end: called with each job after its end is stored.
    """

    def __init__(
        self,
        owner: str,
        service: EditService,
        store: StoreLink,
        share: Callable[[Pictures], SharedPictures],
        max_active: int,
        clock: Callable[[], float],
        on_end: Callable[[LiveJob], None],
    ) -> None:
        self._owner = owner
        self._service = service
        self._store = store
        self._share = share
        self._clock = clock
        self._on_end = on_end
        self._slots = Slots[LiveJob](max_active, clock)
        self._is_held = False
        self._ending: set[LiveJob] = set()
        self._background: set[asyncio.Task[None]] = set()
        self.ends: Counter[JobState] = Counter()

    @property
    def jobs(self) -> list[LiveJob]:
        """All jobs that wait, run, or have an end that is not stored yet, each once."""
        return [*dict.fromkeys((*self._slots.waiting, *self._slots.served, *self._ending))]

    def enlist(
        self, spec: JobSpec, record: JobRecord, pictures: Sequence[Pictures] = (), *, was_picked_up: bool = False
    ) -> LiveJob:
        """Queue a stored job that this replica owns. Its ttl does not apply if another replica picked it up.

        Args:
            pictures: of a new job. Unless it starts at once, they are dropped and later read from the store: those of
                all jobs that wait would fill the memory.
        """
        job = LiveJob(spec, record, was_picked_up)
        self._slots.waiting.add(job)
        loop = asyncio.get_running_loop()
        limits = [] if was_picked_up else [loop.time() + self._remaining_s(record, spec.policy.ttl_s)]
        if spec.policy.timeout_s is not None:
            job.deadline = loop.time() + self._remaining_s(record, spec.policy.timeout_s - spec.policy.spent_s)
            limits.append(job.deadline)
        if limits:
            # Decided now, not when the timer fires, which may be a little early.
            by_deadline = job.deadline == min(limits)
            job.expiry = loop.call_at(min(limits), lambda: self.spawn(self._expire(job, by_deadline)))
        self._start_next()
        if job.task is not None:
            job.pictures = pictures
        return job

    def _remaining_s(self, record: JobRecord, limit_s: float) -> float:
        """Seconds left of a limit that starts at the job's arrival. A clock that was set back does not extend it."""
        return max(0.0, min(limit_s, record.created_at + limit_s - self._clock()))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Start no job meanwhile: of many that are enlisted one after the other, the first ones should not start only
        because they were read first."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self._start_next()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background; errors are logged."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_log_failure)

    def stop(self, job: LiveJob, record: JobRecord | None) -> None:
        """Drop a job that another replica has ended or taken over. `record`: the stored one, if there is one."""
        self._release(job)
        if job.task is not None:
            job.task.cancel()
        self._conclude(job, _cancelled(record))

    async def close(self) -> None:
        """Stop all work; the store keeps the jobs for a successor."""
        tasks = [*self._background, *(job.task for job in self.jobs if job.task is not None)]
        self._slots.num = 0  # nothing starts any more
        for job in self.jobs:
            self._release(job)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_next(self) -> None:
        while not self._is_held and (job := self._slots.start_next()) is not None:
            job.task = asyncio.create_task(self._run(job), context=job.context)
            job.task.add_done_callback(_log_failure)

    async def _run(self, job: LiveJob) -> None:
        try:
            await self._draw(job)
        except asyncio.CancelledError as cancelled:
            # The job refers to its task, which keeps this error, whose traceback would keep the pictures.
            raise cancelled.with_traceback(None) from None
        except ServiceError as problem:
            await self._end(job, JobState.FAILED, str(problem), problem.code)
        except Exception:
            logger.exception("job %s failed", job.id)
            await self._end(job, JobState.FAILED, "Internal error; the server's log has the reason.")
        else:
            await self._end(job, JobState.COMPLETED, None)

    async def _draw(self, job: LiveJob) -> None:
        """Draw all edits that are not finished yet; some are, if an earlier owner died."""
        if not job.pictures:
            job.outcomes.update(await self._store.call_until_done(lambda store: store.outcomes(job.id), is_write=False))
        pictures = await self._shared_pictures(job)
        await all_or_none(
            self._edit(job, index, edit, pictures[job.spec.pictures_of[index]])
            for index, edit in enumerate(job.spec.edits)
            if index not in job.outcomes
        )

    async def _shared_pictures(self, job: LiveJob) -> list[SharedPictures]:
        own, job.pictures = job.pictures, ()
        own = own or await self._store.call_until_done(lambda store: store.pictures(job.id), is_write=False)
        if not own:
            raise JobUnreadable("The job's stored pictures are missing; send the job again.")
        return [self._share(each) for each in own]

    async def _edit(self, job: LiveJob, index: int, request: EditRequest, pictures: SharedPictures) -> None:
        outcome = await self._drawn_in_time(job, index, request, pictures)
        if len(job.outcomes) == len(job.spec.edits) - 1:
            job.last = index, outcome  # stored with the job's end
            return
        # No limit applies to storing: a finished picture is kept, however long the store is away.
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
                raise job.deadline_error() from problem
            raise

    async def _run_with_retries(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, limit: asyncio.Timeout
    ) -> EditOutcome:
        """Retry while the editors are full, and up to `MAX_LOSSES` times if they die. The prompt is rewritten once."""
        rewrite = await self._service.rewrite(request, pictures, on_progress)
        num_losses = 0
        while True:
            try:
                return await self._service.draw(request, rewrite, pictures, on_progress, _left_s(limit))
            except Overloaded:
                pause_s = EDITOR_RETRY_S
            except ServiceUnavailable:
                num_losses += 1
                if num_losses == MAX_LOSSES:
                    raise
                pause_s = EDITOR_RETRY_S * 2 ** (num_losses - 1)
            await asyncio.sleep(pause_s)

    def _progress(self, job: LiveJob, index: int, progress: Progress) -> None:
        before = job.progress.get(index)
        if progress.preview is None and before is not None:
            progress = replace(progress, preview=before.preview)
        job.progress[index] = progress
        if job.waits:
            self._pick_up(job)
        job.notify()

    def _pick_up(self, job: LiveJob) -> None:
        job.record = replace(job.record, state=JobState.IN_PROGRESS, started_at=self._clock())
        job.run_until = asyncio.get_running_loop().time() + job.spec.policy.execution_timeout_s
        for limit in job.limits:
            if not limit.expired():
                limit.reschedule(job.draw_until)
        job.cancel_expiry()
        self.spawn(self._write_pick_up(job))

    async def _write_pick_up(self, job: LiveJob) -> None:
        async with job.writing:
            record = job.record
            if not record.state.final:
                await self._store.call_until_done(lambda store: store.update(job.id, self._owner, record))

    async def _expire(self, job: LiveJob, by_deadline: bool) -> None:
        if job.was_picked_up and await self._is_drawn(job):
            return  # An earlier owner died after the last picture: only the end is missing.
        if not job.waits or job in self._ending:
            return
        if job.task is not None:
            job.task.cancel()
        if by_deadline:
            problem = job.deadline_error()
            await self._end(job, JobState.FAILED, str(problem), problem.code)
        else:
            await self._end(job, JobState.TIMED_OUT, "The job was not picked up within its ttl.")

    async def _is_drawn(self, job: LiveJob) -> bool:
        stored = await self._store.call_until_done(lambda store: store.outcomes(job.id), is_write=False)
        return len(stored) == len(job.spec.edits)

    async def _end(self, job: LiveJob, state: JobState, error: str | None, error_code: str | None = None) -> None:
        """Store the end, then report it. If another replica ended the job or took it over, that stands.

        While the store is away, the job keeps its place; it ends when the store is back. With a picture that is not
        stored yet, it also keeps its slot: else all jobs of the queue could be drawn meanwhile and fill the memory.
        """
        self._ending.add(job)
        job.cancel_expiry()
        if job.last is None:
            self._release(job)
        try:
            ended_at = self._clock()
            async with job.writing:
                record = replace(job.record, state=state, error=error, error_code=error_code, ended_at=ended_at)
                known = await self._store.call_until_done(partial(self._store_end, job, record))
        except Exception:
            # For example, its record is damaged. The next heartbeat takes the job up again or ends it.
            logger.exception("the end of job %s could not be stored", job.id)
            known = None
        finally:
            self._ending.discard(job)
            self._release(job)
        self._conclude(job, known)

    async def _store_end(self, job: LiveJob, record: JobRecord, store: Store) -> JobRecord | None:
        if record.state is JobState.COMPLETED and job.last is not None:
            is_stored = await store.complete(job.id, self._owner, record, *job.last)
        else:
            is_stored = await store.update(job.id, self._owner, record)
        if is_stored:
            return record
        # If the answer to an earlier attempt was lost, the store has this same record.
        stored = await store.record(job.id)
        return stored if stored == record else _cancelled(stored)

    def _conclude(self, job: LiveJob, record: JobRecord | None) -> None:
        """Report the end once. `record` is None for a job that ends at another replica."""
        if job.record.state.final:
            return
        if record is not None:
            job.record = record
            self.ends[record.state] += 1
        if job.last is not None:
            job.outcomes.update([job.last])
        job.pictures, job.last = (), None
        job.drop_outcomes()
        job.progress.clear()
        job.notify()
        self._on_end(job)

    def _release(self, job: LiveJob) -> None:
        job.cancel_expiry()
        self._slots.discard(job)
        self._start_next()


def _left_s(limit: asyncio.Timeout) -> float | None:
    """Seconds until a timeout, or None where it has none."""
    when = limit.when()
    return None if when is None else max(0.0, when - asyncio.get_running_loop().time())


def _cancelled(record: JobRecord | None) -> JobRecord | None:
    """The record of a cancelled job, else None: only a cancellation can end a job that still belongs to its owner."""
    return record if record is not None and record.state is JobState.CANCELLED else None


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.error("unexpected error in the background", exc_info=problem)
