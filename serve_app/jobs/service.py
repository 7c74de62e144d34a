"""Jobs as the ingress knows them: submit, wait, listen, cancel, retry, purge. Takes over the jobs of dead replicas."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobCounts, JobNews, JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.edits.service import EditService
from serve_app.errors import ConfigError, InvalidInput, JobNotFound, JobUnreadable, Overloaded, ServiceUnavailable
from serve_app.jobs.live import Feed, LiveJob
from serve_app.jobs.runner import Runner
from serve_app.jobs.store import Store
from serve_app.jobs.store_link import ADD_TIMEOUT_S, RETRY_S, StoreLink
from serve_app.jobs.webhook import notify_webhook

logger = logging.getLogger(__name__)

P = TypeVar("P")

STORE_POLL_S = 0.5
"""How soon changes of a job that another replica runs are noticed."""

PROGRESS_INTERVAL_S = 1.0
"""A listener who waits for pictures is not woken for single steps more often than that."""

START_S = 5.0
"""For the first heartbeat, before the replica starts without its store."""

UNREADABLE = "The stored job cannot be read; send it again."


class JobService(Generic[P]):
    """The JobsPort. Lives on one event loop.

    Args:
        service: runs edits.
        share: makes prepared pictures travel by reference.
        webhook_body: what a webhook receives at a job's end.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        settings: JobSettings,
        service: EditService[P],
        store: Store,
        share: Callable[[Pictures], P],
        webhook_body: Callable[[JobSpec, Job], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = StoreLink(store)
        self._webhook_body = webhook_body
        self._clock = clock
        self._owner = str(uuid.uuid4())
        self._runner = Runner(self._owner, service, self._store, share, settings.max_active_jobs, clock, self._ended)
        self._live: dict[str, LiveJob] = {}
        self._feeds: dict[str, Feed] = {}
        self._most = settings.max_active_jobs + settings.max_queued_jobs
        self._adding: Counter[str] = Counter()
        self._notifying: set[str] = set()
        self._num_retried = 0
        self.webhook_ends: Counter[str] = Counter()

    async def start(self) -> None:
        """Take over what was left behind, and start the heartbeat. Returns after a while where the store is away.

        Raises:
            ConfigError: the store cannot be used as configured.
        """
        first = asyncio.create_task(self._heartbeat())
        done, _ = await asyncio.wait({first}, timeout=START_S)
        if done and isinstance(problem := first.exception(), ConfigError):
            raise problem
        self._runner.spawn(self._heartbeat_loop(first))

    async def close(self) -> None:
        await self._runner.close()
        await self._store.close()

    async def room(self) -> int:
        self._require_store()
        return self._num_places

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        if self._num_places == 0:
            # A job that was accepted before is there however full the queue is.
            known = await self._store.call(lambda store: store.find(spec.id, spec.repeat_key))
            if known is not None:
                return known
        with self._place(spec.id):
            record = JobRecord(JobState.IN_QUEUE, self._clock(), webhook_pending=spec.webhook is not None)
            job_id = await self._store.call(
                lambda store: store.add(spec, pictures, record, self._owner), timeout_s=ADD_TIMEOUT_S
            )
            # An ingress that heard no answer sends a job again, maybe to a successor: it runs where it was stored.
            is_new = job_id == spec.id and await self._stored_record(job_id) == record
            if is_new and job_id not in self._live:
                self._enlist(spec, record)
        return job_id

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        job_id = await self._store.call(lambda store: store.find(None, repeat_key))
        return None if job_id is None else await self._store.call(lambda store: store.spec(job_id))

    async def wait(self, job_id: str, wait_s: float) -> Job:
        deadline = _now() + wait_s
        while True:
            live = self._live.get(job_id)
            changed = live.changed() if live is not None else None
            try:
                record = await self._record(job_id)
                if record.state.final or _now() >= deadline:
                    return await self._job(job_id, record)
            except ServiceUnavailable:
                if _now() >= deadline:
                    raise
                changed = None  # the store may be back before the job changes
            await _pause(changed, deadline)

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        began = _now()
        feed = self._feeds.setdefault(job_id, Feed())
        while True:
            live = self._live.get(job_id)
            changed = live.changed() if live is not None else None
            record = await self._record(job_id)
            news = await self._news(job_id, feed, record.state)
            steps_are_due = news.progress and _now() >= began + PROGRESS_INTERVAL_S
            if news.outcomes or record.state.final or steps_are_due or _now() >= began + wait_s:
                feed.pictures.update(news.outcomes)
                feed.progress.update(news.progress)
                return news
            until = began + (min(wait_s, PROGRESS_INTERVAL_S) if news.progress else wait_s)
            await _pause(changed, until)

    async def cancel(self, job_id: str) -> Job:
        await self._record(job_id)
        await self._cancel(job_id)
        return await self.wait(job_id, 0)

    async def retry(self, job_id: str, call: str) -> Job:
        record = await self._record(job_id)
        if record.retry_call == call:
            return await self._job(job_id, record)
        with self._place(job_id):
            spec = await self._spec(job_id)
            again = JobRecord(
                JobState.IN_QUEUE,
                self._clock(),
                num_retries=record.num_retries + 1,
                webhook_pending=spec.webhook is not None,
                retry_call=call,
            )
            if not await self._store.call(lambda store: store.reopen(job_id, self._owner, again)):
                state = (await self._record(job_id)).state
                raise InvalidInput(f"Only a FAILED or TIMED_OUT job can be retried; this one is {state}.", "job_id")
            self._num_retried += 1
            self._feeds.pop(job_id, None)
            if job_id not in self._live:
                self._enlist(spec, again)
        return Job(job_id, again, spec.seed)

    async def purge(self) -> int:
        stored = await self._store.call(lambda store: store.open_jobs())
        # Of its own jobs this replica knows first which ones were picked up.
        own = {job.id: job.record.state for job in self._runner.jobs}
        waiting = [job_id for job_id, state in {**stored, **own}.items() if state is JobState.IN_QUEUE]
        return sum([await self._cancel(job_id) for job_id in waiting])

    async def counts(self) -> JobCounts:
        ends = self._runner.ends
        num_waiting = sum(job.waits for job in self._runner.jobs)
        return JobCounts(
            completed=ends[JobState.COMPLETED],
            failed=ends[JobState.FAILED] + ends[JobState.TIMED_OUT],
            retried=self._num_retried,
            in_queue=num_waiting,
            in_progress=self._runner.num_open - num_waiting,
        )

    async def fault(self) -> str | None:
        return "store" if self._store.is_away else None

    @property
    def ends(self) -> Mapping[JobState, int]:
        """Jobs that ended here since the start, by their last state."""
        return self._runner.ends

    @property
    def _num_places(self) -> int:
        return max(0, self._most - self._runner.num_open - self._adding.total())

    @contextmanager
    def _place(self, job_id: str) -> Iterator[None]:
        """Holds a place in the queue from before a job is stored until it is enlisted.

        Raises:
            Overloaded: there is none.
        """
        if self._num_places == 0:
            raise Overloaded(f"{self._most} jobs are waiting or running already; try again later.")
        self._adding[job_id] += 1
        try:
            yield
        finally:
            self._adding[job_id] -= 1
            self._adding += Counter()  # drops what is zero

    def _require_store(self) -> None:
        """Refuse work before it is prepared, which could not be stored."""
        if self._store.is_away:
            raise ServiceUnavailable("The job store cannot be reached right now; try again.")

    def _enlist(self, spec: JobSpec, record: JobRecord) -> None:
        self._live[spec.id] = self._runner.enlist(spec, record)

    async def _stored_record(self, job_id: str) -> JobRecord | None:
        return await self._store.call(lambda store: store.record(job_id))

    async def _record(self, job_id: str) -> JobRecord:
        live = self._live.get(job_id)
        record = live.record if live is not None else await self._stored_record(job_id)
        if record is None:
            self._feeds.pop(job_id, None)
            raise _not_found(job_id)
        return record

    async def _job(self, job_id: str, record: JobRecord) -> Job:
        live = self._live.get(job_id)
        if live is not None and not record.state.final:
            return Job(job_id, record, live.spec.seed)  # known here, also while the store is away
        return await self._store.call(partial(self._read_job, job_id, record))

    async def _read_job(self, job_id: str, record: JobRecord, store: Store) -> Job:
        spec = await store.spec(job_id)
        if spec is None:
            raise _not_found(job_id)
        if record.state is not JobState.COMPLETED:
            return Job(job_id, record, spec.seed)
        outcomes = await store.outcomes(job_id)
        if len(outcomes) < len(spec.edits):
            raise _not_found(job_id)  # it has expired since its record was read
        return Job(job_id, record, spec.seed, tuple(outcomes[index] for index in range(len(spec.edits))))

    async def _spec(self, job_id: str) -> JobSpec:
        spec = await self._store.call(lambda store: store.spec(job_id))
        if spec is None:
            raise _not_found(job_id)
        return spec

    async def _news(self, job_id: str, feed: Feed, state: JobState) -> JobNews:
        live = self._live.get(job_id)
        if live is not None:
            outcomes: Mapping[int, EditOutcome] = live.outcomes
        else:
            outcomes = await self._store.call(lambda store: store.outcomes(job_id))
        progress = {} if live is None else live.progress
        return JobNews(
            state,
            {index: outcome for index, outcome in outcomes.items() if index not in feed.pictures},
            {index: step for index, step in progress.items() if feed.progress.get(index) != step},
        )

    async def _cancel(self, job_id: str) -> bool:
        ended_at = self._clock()
        cancelled = await self._store.call(lambda store: store.cancel(job_id, ended_at))
        live = self._live.get(job_id)
        if cancelled and live is not None:
            self._runner.stop(live, await self._stored_record(job_id))
        return cancelled

    def _ended(self, job: LiveJob) -> None:
        self._live.pop(job.id, None)
        if job.record.webhook_pending and job.record.state.final:
            self._notify(job.spec, job.record)

    def _notify(self, spec: JobSpec, record: JobRecord) -> None:
        """Notify a job's webhook of its end, in the background; once at a time."""
        if spec.id not in self._notifying:
            self._notifying.add(spec.id)
            self._runner.spawn(self._notify_webhook(spec, record))

    async def _notify_webhook(self, spec: JobSpec, record: JobRecord) -> None:
        try:
            if spec.webhook is not None:
                await self._deliver(spec, spec.webhook, record)
            await self._store.call_until_done(partial(self._settle_webhook, spec.id, record))
        finally:
            self._notifying.discard(spec.id)

    async def _deliver(self, spec: JobSpec, url: str, record: JobRecord) -> None:
        try:
            job = await self._store.call_until_done(partial(self._read_job, spec.id, record))
        except (JobNotFound, JobUnreadable) as problem:
            logger.error("the webhook of job %s is not notified: %s", spec.id, problem)
            return
        body = await asyncio.to_thread(self._webhook_body, spec, job)
        taken = await notify_webhook(spec.id, url, body, self._settings)
        self.webhook_ends["taken" if taken else "refused"] += 1

    async def _settle_webhook(self, job_id: str, record: JobRecord, store: Store) -> None:
        if await store.record(job_id) == record:  # else it was retried meanwhile
            await store.update(job_id, self._owner, replace(record, webhook_pending=False))

    async def _heartbeat_loop(self, heartbeat: Awaitable[None]) -> None:
        while True:
            try:
                await heartbeat
            except ServiceUnavailable as problem:
                logger.warning("the heartbeat is incomplete: %s", problem)
            except Exception:
                logger.exception("the heartbeat failed")
            # While the store is away, the heartbeat is what notices its return.
            await asyncio.sleep(RETRY_S if self._store.is_away else self._settings.lease_s / 4)
            heartbeat = self._heartbeat()

    async def _heartbeat(self) -> None:
        """Prove that this replica lives, notice what others did to its jobs, take over those of dead replicas."""
        known = self._runner.jobs
        states = await self._store.call_until_done(lambda store: store.beat(self._owner, self._settings.lease_s))
        for job in known:
            if states.get(job.id, JobState.CANCELLED).final:
                await self._each(job.id, self._look_again(job))
        for job_id in states:
            if job_id not in self._live and job_id not in self._adding and job_id not in self._notifying:
                await self._each(job_id, self._take_up(job_id))
        for job_id in await self._store.call(lambda store: store.adopt(self._owner)):
            logger.info("took over job %s", job_id)
            await self._each(job_id, self._take_up(job_id))
        await self._store.call(lambda store: store.sweep())
        for job_id in [job_id for job_id in self._feeds if job_id not in self._live]:
            if await self._stored_record(job_id) is None:
                self._feeds.pop(job_id, None)

    async def _each(self, job_id: str, work: Coroutine[Any, Any, None]) -> None:
        """One job's part of the heartbeat: what is wrong with it concerns no other job."""
        try:
            await work
        except JobUnreadable as problem:
            await self._condemn(job_id, problem)
        except ServiceUnavailable:
            raise
        except Exception:
            logger.exception("the heartbeat failed for job %s", job_id)

    async def _look_again(self, job: LiveJob) -> None:
        async with job.writing:  # Its own end may be on its way into the store.
            record = await self._stored_record(job.id)
        self._runner.stop(job, record)

    async def _take_up(self, job_id: str) -> None:
        """Go on with a job that is this replica's and that nobody works on: it was adopted, or its storing was
        interrupted. One that has ended waits for its webhook alone."""
        spec = await self._store.call(lambda store: store.spec(job_id))
        record = await self._stored_record(job_id)
        if spec is None or record is None:
            await self._condemn(job_id, JobUnreadable("a part of it is missing"))
        elif record.state.final and record.webhook_pending:
            self._notify(spec, record)
        elif not record.state.final and job_id not in self._live:
            self._enlist(spec, replace(record, state=JobState.IN_QUEUE, started_at=None))

    async def _condemn(self, job_id: str, problem: JobUnreadable) -> None:
        """End a job that cannot be read; all others go on."""
        now = self._clock()
        record = JobRecord(JobState.FAILED, now, ended_at=now, error=UNREADABLE, error_code=JobUnreadable.code)
        if await self._store.call(lambda store: store.condemn(job_id, self._owner, record)):
            self._runner.ends[JobState.FAILED] += 1
            logger.error("job %s cannot be read, so it failed", job_id, exc_info=problem)


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id}, or it is no longer kept.")


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause(changed: asyncio.Event | None, until: float) -> None:
    """Until a change, or the moment on the loop's clock; where another replica makes the changes, a short while."""
    try:
        async with asyncio.timeout_at(until):
            if changed is not None:
                await changed.wait()
            else:
                await asyncio.sleep(STORE_POLL_S)
    except TimeoutError:
        pass
