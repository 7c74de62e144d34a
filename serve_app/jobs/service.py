"""The JobsPort over a store: queues, runs, streams and cancels jobs, and takes over those of dead replicas."""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobCounts, JobEnd, JobNews, JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import Pictures, SharedPictures
from serve_app.edits.service import EditService
from serve_app.errors import InvalidInput, JobUnreadable, Overloaded, ServiceUnavailable
from serve_app.jobs.heartbeat import Heartbeat
from serve_app.jobs.live import LiveJob, StreamCursor
from serve_app.jobs.places import JobPlaces
from serve_app.jobs.runner import Runner
from serve_app.jobs.store_link import ADD_TIMEOUT_S, StoreLink
from serve_app.jobs.stores.store import ByteLimits, Store, not_found, read_job
from serve_app.jobs.webhook import WebhookNotifier

logger = logging.getLogger(__name__)


NUM_REFUSED = 10_000
"""How many refused jobs are remembered, since the store may have them nevertheless: those of one outage. So are jobs
whose client left while they were stored."""

STORE_POLL_S = 0.5
"""Between two reads of a job that another replica runs."""

PROGRESS_INTERVAL_S = 1.0
"""A stream that waits for pictures reports steps at most this often."""


class JobService:
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
        service: EditService,
        store: Store,
        share: Callable[[Pictures], SharedPictures],
        webhook_body: Callable[[JobSpec, Job], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = StoreLink(store)
        self._clock = clock
        self._owner = str(uuid.uuid4())
        self._runner = Runner(self._owner, service, self._store, share, settings.max_active_jobs, clock, self._on_end)
        self._webhooks = WebhookNotifier(self._owner, self._store, settings, webhook_body, self._runner.spawn)
        self._heartbeat = Heartbeat(
            self._owner,
            settings.lease_s,
            self._store,
            self._runner,
            self._works_on,
            self._take_up,
            self._sweep,
            clock,
        )
        self._live: dict[str, LiveJob] = {}
        self._cursors: dict[str, StreamCursor] = {}
        self._byte_limits = ByteLimits(settings.max_store_bytes, settings.max_store_bytes_per_key)
        self._places = JobPlaces(settings, lambda: self._runner.jobs)
        self._refused: deque[str] = deque(maxlen=NUM_REFUSED)
        self._num_retried = 0
        self._max_retention_s = max(settings.sync_retention_s, settings.async_retention_s)

    async def start(self) -> None:
        """Take over the jobs of dead replicas and start the heartbeat. Returns after `START_S` if the store is away.

        Raises:
            ConfigError: the store cannot be used as configured.
        """
        await self._heartbeat.start()

    async def close(self) -> None:
        await self._runner.close()
        await self._store.close()

    async def reserve(self, job_id: str, client: str) -> int:
        self._store.require()  # so that no request is prepared that could not be stored
        return self._places.hold(job_id, client)

    async def release(self, job_id: str) -> None:
        self._places.release(job_id)

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        try:
            return await self._add(spec, pictures)
        except Overloaded:
            # A job that was accepted before is returned even if the queue is full.
            known = await self._store.call(lambda store: store.find(spec.id, spec.repeat_key))
            if known is None:
                raise
            return known

    async def _add(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        with self._places.take(spec.id, spec.client):
            self._store.require()
            record = JobRecord(JobState.IN_QUEUE, self._clock(), webhook_pending=spec.webhook is not None)
            try:
                job_id = await self._store.call(
                    lambda store: store.add(spec, pictures, record, self._owner, self._byte_limits),
                    timeout_s=ADD_TIMEOUT_S,
                )
                # An ingress that got no answer sends a job again, maybe to a successor: it runs where it was stored.
                is_new = job_id == spec.id and await self._stored_record(job_id) == record
            except (ServiceUnavailable, asyncio.CancelledError):
                if spec.repeat_key is None:
                    self._refused.append(spec.id)
                raise
            if is_new and job_id not in self._live:
                self._enlist(spec, record, pictures)
        return job_id

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        job_id = await self._store.call(lambda store: store.find(None, repeat_key))
        return None if job_id is None else await self._store.call(lambda store: store.spec(job_id))

    async def wait(self, job_id: str, wait_s: float) -> JobRecord:
        deadline = _now() + wait_s
        while True:
            live = self._live.get(job_id)
            changed = live.changed() if live is not None else None
            try:
                record = await self._record(job_id)
                if record.state.final or _now() >= deadline:
                    return record
            except ServiceUnavailable:
                if _now() >= deadline:
                    raise
                changed = None  # The store may be back before the job changes.
            await _pause(changed, deadline)
            if live is not None and live.record.state.final:
                return live.record  # as it is stored, also while the store is away

    async def wait_for_pictures(self, job_id: str, wait_s: float) -> JobEnd:
        live = self._live.get(job_id)
        if live is None:
            return JobEnd(await self.wait(job_id, wait_s))
        with live.keep_outcomes():
            record = await self.wait(job_id, wait_s)
            is_complete = record.state is JobState.COMPLETED and len(live.outcomes) == len(live.spec.edits)
            return JobEnd(record, tuple(outcome for _, outcome in sorted(live.outcomes.items())) if is_complete else ())

    async def read(self, job_id: str) -> Job:
        record = await self._record(job_id)
        return await self._store.call(lambda store: read_job(store, job_id, record))

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        began = _now()
        cursor = self._cursors.setdefault(job_id, StreamCursor())
        while True:
            live = self._live.get(job_id)
            changed = live.changed() if live is not None else None
            async with cursor.reading:  # so that no two listeners fetch the same pictures
                record = await self._record(job_id)
                cursor.expires_at = self._expiry(record)
                news = await self._news(job_id, cursor, record.state)
                steps_are_due = news.progress and _now() >= began + PROGRESS_INTERVAL_S
                if news.outcomes or record.state.final or steps_are_due or _now() >= began + wait_s:
                    cursor.advance(news)
                    return news
            until = began + (min(wait_s, PROGRESS_INTERVAL_S) if news.progress else wait_s)
            await _pause(changed, until)

    async def cancel(self, job_id: str) -> JobRecord:
        await self._record(job_id)
        await self._cancel(job_id)
        # The store's record: where another call cancels the job as well, that of the running job may still be open.
        record = await self._stored_record(job_id)
        if record is None:
            raise not_found(job_id)
        return record

    async def retry(self, job_id: str, call: str) -> JobRecord:
        record = await self._record(job_id)
        if record.retry_call == call:
            return record
        spec = await self._spec(job_id)
        with self._places.take(job_id, spec.client):
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
            self._cursors.pop(job_id, None)
            if job_id not in self._live:
                self._enlist(spec, again)
        return again

    async def purge(self) -> int:
        stored = await self._store.call(lambda store: store.open_jobs())
        # This replica knows of the pick-up of its own jobs before the store does.
        own = {job.id: job.record.state for job in self._runner.jobs}
        waiting = [job_id for job_id, state in {**stored, **own}.items() if state is JobState.IN_QUEUE]
        num_cancelled = 0
        for job_id in waiting:
            try:
                num_cancelled += await self._cancel(job_id)
            except JobUnreadable as problem:
                logger.warning("job %s was not cancelled: %s", job_id, problem)
        return num_cancelled

    async def counts(self) -> JobCounts:
        ends = self._runner.ends
        jobs = self._runner.jobs
        num_waiting = sum(job.waits for job in jobs)
        return JobCounts(
            completed=ends[JobState.COMPLETED],
            failed=ends[JobState.FAILED] + ends[JobState.TIMED_OUT],
            retried=self._num_retried,
            in_queue=num_waiting,
            in_progress=len(jobs) - num_waiting,
            notifying=self._webhooks.num_notifying,
        )

    async def fault(self) -> str | None:
        return "store" if self._store.is_away else None

    @property
    def webhook_ends(self) -> Mapping[str, int]:
        """Webhooks that this replica has notified since its start: taken or refused."""
        return self._webhooks.ends

    @property
    def ends(self) -> Mapping[JobState, int]:
        """Jobs that have ended in this replica since its start, by final state."""
        return self._runner.ends

    def _enlist(self, spec: JobSpec, record: JobRecord, pictures: Sequence[Pictures] = ()) -> None:
        self._live[spec.id] = self._runner.enlist(spec, record, pictures)

    async def _stored_record(self, job_id: str) -> JobRecord | None:
        return await self._store.call(lambda store: store.record(job_id))

    async def _record(self, job_id: str) -> JobRecord:
        live = self._live.get(job_id)
        record = live.record if live is not None else await self._stored_record(job_id)
        if record is None:
            self._cursors.pop(job_id, None)
            raise not_found(job_id)
        return record

    async def _spec(self, job_id: str) -> JobSpec:
        spec = await self._store.call(lambda store: store.spec(job_id))
        if spec is None:
            raise not_found(job_id)
        return spec

    async def _news(self, job_id: str, cursor: StreamCursor, state: JobState) -> JobNews:
        live = self._live.get(job_id)
        if live is not None:
            return cursor.unsent(state, live.outcomes, live.progress)
        if cursor.has_ended:
            return JobNews(state, {}, {})
        return cursor.unsent(state, await self._store.call(lambda store: store.outcomes(job_id)), {})

    async def _cancel(self, job_id: str) -> bool:
        ended_at = self._clock()
        cancelled = await self._store.call(lambda store: store.cancel(job_id, ended_at))
        live = self._live.get(job_id)
        if cancelled and live is not None:
            self._runner.stop(live, await self._stored_record(job_id))
        return cancelled

    def _on_end(self, job: LiveJob) -> None:
        if self._live.get(job.id) is job:  # and not a later run of the same job
            del self._live[job.id]
        if job.id in self._cursors:
            self._cursors[job.id].expires_at = self._expiry(job.record)
        if job.record.webhook_pending and job.record.state.final:
            self._webhooks.notify(job.spec, job.record)

    def _works_on(self, job_id: str) -> bool:
        return job_id in self._live or self._places.is_taking(job_id) or self._webhooks.is_notifying(job_id)

    def _take_up(self, spec: JobSpec, record: JobRecord) -> None:
        """Run a job that this replica owns and does not work on, or notify its webhook if it has ended."""
        if spec.id in self._refused:
            self._runner.spawn(self._withdraw(spec.id, record))
        elif record.state.final:
            if record.webhook_pending:
                self._webhooks.notify(spec, record)
        elif spec.id not in self._live:
            self._cursors.pop(spec.id, None)
            waiting = replace(record, state=JobState.IN_QUEUE, started_at=None)
            self._live[spec.id] = self._runner.enlist(spec, waiting, was_picked_up=record.started_at is not None)

    async def _withdraw(self, job_id: str, record: JobRecord) -> None:
        """Cancel a job that was stored although its client was refused. The client does not know its id and sends the
        request again as a new job. With a repeat key it would find this one, so such a job runs."""
        end = replace(record, state=JobState.CANCELLED, ended_at=self._clock(), webhook_pending=False)
        await self._store.call_until_done(lambda store: store.update(job_id, self._owner, end))
        logger.warning("job %s was stored although its client was refused; it is cancelled", job_id)

    async def _sweep(self) -> None:
        """Delete what has expired from the store, and the cursors of jobs that are not kept any more."""
        await self._store.call(lambda store: store.sweep())
        now = self._clock()
        expired = [job_id for job_id, cursor in self._cursors.items() if cursor.expires_at <= now]
        for job_id in expired:
            if job_id not in self._live:
                del self._cursors[job_id]

    def _expiry(self, record: JobRecord) -> float:
        """When a job's cursor may be dropped: the job is not kept longer. This reads nothing from the
        store, since there may be thousands of cursors."""
        return (self._clock() if record.ended_at is None else record.ended_at) + self._max_retention_s


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause(changed: asyncio.Event | None, until: float) -> None:
    """Wait for a change, at most until a moment on the loop's clock; without an event, for `STORE_POLL_S`."""
    try:
        async with asyncio.timeout_at(until):
            if changed is not None:
                await changed.wait()
            else:
                await asyncio.sleep(STORE_POLL_S)
    except TimeoutError:
        pass
