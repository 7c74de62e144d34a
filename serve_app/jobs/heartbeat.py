"""The heartbeat of a Jobs replica: renews its lease and takes over jobs whose owner's lease has expired."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.errors import ConfigError, JobUnreadable, ServiceUnavailable
from serve_app.jobs.live import LiveJob
from serve_app.jobs.runner import Runner
from serve_app.jobs.store_link import RETRY_S, UNREADABLE, StoreLink

logger = logging.getLogger(__name__)


START_S = 5.0
"""How long a replica waits for its first heartbeat before it starts without its store."""


class Heartbeat:
    """Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        works_on: whether this replica works on a job already.
        take_up: runs a job that this replica owns and does not work on: it was adopted, or storing it was interrupted.
        sweep: removes expired jobs.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        owner: str,
        lease_s: float,
        store: StoreLink,
        runner: Runner,
        works_on: Callable[[str], bool],
        take_up: Callable[[JobSpec, JobRecord], None],
        sweep: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._lease_s = lease_s
        self._store = store
        self._runner = runner
        self._works_on = works_on
        self._take_up = take_up
        self._sweep = sweep
        self._clock = clock

    async def start(self) -> None:
        """Beat once, and go on in the background. Returns after `START_S` where the store is away.

        Raises:
            ConfigError: the store cannot be used as configured.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner.spawn(self._loop(first))
        await asyncio.wait({first}, timeout=START_S)
        if first.done():
            first.result()

    async def _loop(self, first: "asyncio.Future[None]") -> None:
        while True:
            try:
                await self.beat()
            except ServiceUnavailable as problem:
                logger.warning("the heartbeat is incomplete: %s", problem)
            except ConfigError as problem:
                if not first.done():
                    first.set_exception(problem)
                logger.error("%s", problem)
            except Exception:
                logger.exception("the heartbeat failed")
            if not first.done():
                first.set_result(None)
            # While the store is away, the heartbeat notices its return.
            await asyncio.sleep(RETRY_S if self._store.is_away else self._lease_s / 4)

    async def beat(self) -> None:
        """Renew the lease, notice what other replicas did to this one's jobs, take over jobs of dead replicas.

        Raises:
            ServiceUnavailable: the store went away meanwhile.
        """
        known = self._runner.jobs
        states = await self._store.call_until_done(
            lambda store: store.beat(self._owner, self._lease_s), is_of_one_job=False
        )
        for job in known:
            if states.get(job.id, JobState.CANCELLED).final:
                await self._isolated(job.id, self._reread(job))
        untended = [job_id for job_id in states if not self._works_on(job_id)]
        adopted = await self._store.call(lambda store: store.adopt(self._owner))
        for job_id in adopted:
            logger.info("took over job %s", job_id)
        with self._runner.hold():
            for job_id in [*untended, *adopted]:
                await self._isolated(job_id, self._read_and_take_up(job_id))
        await self._sweep()

    async def _isolated(self, job_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Handle one job; its errors affect no other job."""
        try:
            try:
                await work
            except JobUnreadable as problem:
                await self._condemn(job_id, problem)
        except ServiceUnavailable:
            raise
        except Exception:
            logger.exception("the heartbeat failed for job %s", job_id)

    async def _reread(self, job: LiveJob) -> None:
        if job.writing.locked():
            return  # Its end may be being written; the next heartbeat reads it again.
        async with job.writing:
            record = await self._store.call(lambda store: store.record(job.id))
        self._runner.stop(job, record)

    async def _read_and_take_up(self, job_id: str) -> None:
        spec = await self._store.call(lambda store: store.spec(job_id))
        record = await self._store.call(lambda store: store.record(job_id))
        if spec is None or record is None:
            raise JobUnreadable("A part of the stored job is missing.")
        if not self._works_on(job_id):
            self._take_up(spec, record)

    async def _condemn(self, job_id: str, problem: JobUnreadable) -> None:
        """Fail a job that cannot be read. Its webhook is notified if the webhook can be read."""
        spec: JobSpec | None = None
        with suppress(JobUnreadable):
            spec = await self._store.call(lambda store: store.spec(job_id))
        now = self._clock()
        record = JobRecord(
            JobState.FAILED,
            now,
            ended_at=now,
            error=UNREADABLE,
            error_code=JobUnreadable.code,
            webhook_pending=spec is not None and spec.webhook is not None,
        )
        if await self._store.call(lambda store: store.condemn(job_id, self._owner, record)):
            self._runner.ends[JobState.FAILED] += 1
            logger.error("job %s cannot be read, so it failed", job_id, exc_info=problem)
            if spec is not None:
                self._take_up(spec, record)
