"""Jobs as the ingress knows them: submit, wait, listen, cancel, retry, purge. And the watch over those of the dead."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobCounts, JobNews, JobRecord, JobSpec, JobState
from serve_app.edits.request import Pictures
from serve_app.edits.service import EditService
from serve_app.errors import InvalidInput, JobNotFound, Overloaded
from serve_app.jobs.live import Feed, LiveJob
from serve_app.jobs.runner import Runner
from serve_app.jobs.store import Store
from serve_app.jobs.webhook import tell_webhook

logger = logging.getLogger(__name__)

P = TypeVar("P")

STORE_POLL_S = 0.5
"""How soon the news of a job that another replica runs are noticed."""

PROGRESS_INTERVAL_S = 1.0
"""A listener who waits for pictures is not woken for single steps more often than that."""


class JobService(Generic[P]):
    """The JobsPort. Lives on one event loop.

    Args:
        service: runs edits.
        share: makes prepared pictures travel by reference.
        webhook_body: what a webhook is told of a job's end.
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
        self._store = store
        self._webhook_body = webhook_body
        self._clock = clock
        self._owner = str(uuid.uuid4())
        self._runner = Runner(self._owner, service, store, share, settings.max_active_jobs, clock, self._ended)
        self._live: dict[str, LiveJob] = {}
        self._feeds: dict[str, Feed] = {}
        self._most = settings.max_active_jobs + settings.max_queued_jobs
        self._adding: set[str] = set()
        self._num_retried = 0
        self._store_is_away = False
        self.webhook_ends: Counter[str] = Counter()

    async def start(self) -> None:
        """Take over what was left behind, and keep watching."""
        await self._keep()
        self._runner.spawn(self._keep_keeping())

    async def close(self) -> None:
        await self._runner.close()
        await self._store.close()

    async def room(self) -> int:
        return self._num_places

    async def submit(self, spec: JobSpec, pictures: Sequence[Pictures]) -> str:
        self._require_room()
        record = JobRecord(JobState.IN_QUEUE, self._clock(), webhook_pending=spec.webhook is not None)
        self._adding.add(spec.id)
        try:
            job_id = await self._store.add(spec, pictures, record, self._owner)
            # An ingress that heard no answer sends a job again, maybe to a successor: it runs where it was stored.
            is_new = job_id == spec.id and await self._store.record(job_id) == record
            if is_new and job_id not in self._live:
                self._enlist(spec, record)
        finally:
            self._adding.discard(spec.id)  # not before it is enlisted, or for a moment it would count as nothing
        return job_id

    async def wait(self, job_id: str, wait_s: float) -> Job:
        deadline = _now() + wait_s
        while True:
            live = self._live.get(job_id)
            changed = live.changed() if live is not None else None
            record = await self._record(job_id)
            if record.state.final or _now() >= deadline:
                return await self._job(job_id, record)
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

    async def retry(self, job_id: str) -> Job:
        record = await self._record(job_id)
        self._require_room()
        spec = await self._store.spec(job_id)
        again = JobRecord(
            JobState.IN_QUEUE,
            self._clock(),
            num_retries=record.num_retries + 1,
            webhook_pending=spec is not None and spec.webhook is not None,
        )
        if spec is None or not await self._store.reopen(job_id, self._owner, again):
            state = (await self._record(job_id)).state
            raise InvalidInput(f"Only a FAILED or TIMED_OUT job can be retried; this one is {state}.", "job_id")
        self._num_retried += 1
        self._feeds.pop(job_id, None)
        self._enlist(spec, again)
        return Job(job_id, again, spec.seed)

    async def purge(self) -> int:
        stored = await self._store.open_jobs()
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
        return "store" if self._store_is_away else None

    @property
    def ends(self) -> Mapping[JobState, int]:
        """Jobs that ended here since the start, by their last state."""
        return self._runner.ends

    @property
    def _num_places(self) -> int:
        return max(0, self._most - self._runner.num_open - len(self._adding))

    def _require_room(self) -> None:
        if self._num_places == 0:
            raise Overloaded(f"{self._most} jobs are waiting or running already; try again later.")

    def _enlist(self, spec: JobSpec, record: JobRecord) -> None:
        self._live[spec.id] = self._runner.enlist(spec, record)

    async def _record(self, job_id: str) -> JobRecord:
        live = self._live.get(job_id)
        record = live.record if live is not None else await self._store.record(job_id)
        if record is None:
            self._feeds.pop(job_id, None)
            raise JobNotFound(f"There is no job {job_id}, or it is no longer kept.")
        return record

    async def _job(self, job_id: str, record: JobRecord) -> Job:
        spec = await self._spec(job_id)
        if record.state is not JobState.COMPLETED:
            return Job(job_id, record, spec.seed)
        outcomes = await self._store.outcomes(job_id)
        return Job(job_id, record, spec.seed, tuple(outcomes[index] for index in range(len(spec.edits))))

    async def _spec(self, job_id: str) -> JobSpec:
        live = self._live.get(job_id)
        spec = live.spec if live is not None else await self._store.spec(job_id)
        if spec is None:
            raise JobNotFound(f"There is no job {job_id}, or it is no longer kept.")
        return spec

    async def _news(self, job_id: str, feed: Feed, state: JobState) -> JobNews:
        live = self._live.get(job_id)
        outcomes = live.outcomes if live is not None else await self._store.outcomes(job_id)
        progress = {} if live is None else live.progress
        return JobNews(
            state,
            {index: outcome for index, outcome in outcomes.items() if index not in feed.pictures},
            {index: step for index, step in progress.items() if feed.progress.get(index) != step},
        )

    async def _cancel(self, job_id: str) -> bool:
        cancelled = await self._store.cancel(job_id, self._clock())
        live = self._live.get(job_id)
        if cancelled and live is not None:
            self._runner.stop(live, await self._store.record(job_id))
        return cancelled

    def _ended(self, job: LiveJob) -> None:
        self._live.pop(job.id, None)
        if job.record.webhook_pending and job.record.state.final:
            self._runner.spawn(self._tell_webhook(job.spec, job.record))

    async def _tell_webhook(self, spec: JobSpec, record: JobRecord) -> None:
        if spec.webhook is not None:
            body = await asyncio.to_thread(self._webhook_body, spec, await self._job(spec.id, record))
            taken = await tell_webhook(spec.id, spec.webhook, body, self._settings)
            self.webhook_ends["taken" if taken else "refused"] += 1
        if await self._store.record(spec.id) == record:  # else it was retried meanwhile
            await self._store.update(spec.id, self._owner, replace(record, webhook_pending=False))

    async def _keep_keeping(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 4)
            try:
                await self._keep()
            except Exception:  # The store may be away for a while; what it holds is safe there.
                logger.exception("the store of jobs cannot be reached")

    async def _keep(self) -> None:
        """Prove that this replica lives, notice what others did to its jobs, take over those of the dead."""
        known = self._runner.jobs
        states = await self._store.beat(self._owner, self._settings.lease_s)
        for job in known:
            if states.get(job.id, JobState.CANCELLED).final:
                await self._look_again(job)
        await self._take_up_own(states)
        for job_id in await self._store.adopt(self._owner):
            await self._take_over(job_id)
        await self._store.sweep()
        for job_id in [job_id for job_id in self._feeds if job_id not in self._live]:
            if await self._store.record(job_id) is None:
                del self._feeds[job_id]

    async def _look_again(self, job: LiveJob) -> None:
        async with job.writing:  # Its own end may be on its way into the store.
            record = await self._store.record(job.id)
        self._runner.stop(job, record)

    async def _take_up_own(self, states: Mapping[str, JobState]) -> None:
        """Enlist what is this replica's and does not run: jobs whose storing was interrupted."""
        for job_id, state in states.items():
            if not state.final and job_id not in self._live and job_id not in self._adding:
                await self._take_up(job_id)

    async def _take_over(self, job_id: str) -> None:
        logger.info("took over job %s", job_id)
        spec, record = await self._store.spec(job_id), await self._store.record(job_id)
        if spec is not None and record is not None and record.state.final:
            self._runner.spawn(self._tell_webhook(spec, record))
        else:
            await self._take_up(job_id)

    async def _take_up(self, job_id: str) -> None:
        spec, record = await self._store.spec(job_id), await self._store.record(job_id)
        if spec is not None and record is not None and not record.state.final and job_id not in self._live:
            self._enlist(spec, replace(record, state=JobState.IN_QUEUE, started_at=None))


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
