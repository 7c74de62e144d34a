"""The heartbeat of a Jobs replica: proves that it lives, and takes over the jobs of replicas that do not."""

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
"""For the first heartbeat, before the replica starts without its store."""


class Heartbeat:
    """Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        is_in_hand: whether this replica works on a job already.
        take_up: goes on with a job of this replica's that nobody works on: it was adopted, or its storing was
            interrupted.
        sweep: forgets what need not be kept any longer.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        owner: str,
        lease_s: float,
        store: StoreLink,
        runner: Runner,
        is_in_hand: Callable[[str], bool],
        take_up: Callable[[JobSpec, JobRecord], None],
        sweep: Callable[[], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._lease_s = lease_s
        self._store = store
        self._runner = runner
        self._is_in_hand = is_in_hand
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
            # While the store is away, the heartbeat is what notices its return.
            await asyncio.sleep(RETRY_S if self._store.is_away else self._lease_s / 4)

    async def beat(self) -> None:
        """Prove that this replica lives, notice what others did to its jobs, take over those of dead replicas.

        Raises:
            ServiceUnavailable: the store went away in the middle.
        """
        known = self._runner.jobs
        states = await self._store.call_until_done(
            lambda store: store.beat(self._owner, self._lease_s), is_of_one_job=False
        )
        for job in known:
            if states.get(job.id, JobState.CANCELLED).final:
                await self._each(job.id, self._look_again(job))
        for job_id in states:
            if not self._is_in_hand(job_id):
                await self._each(job_id, self._read_and_take_up(job_id))
        for job_id in await self._store.call(lambda store: store.adopt(self._owner)):
            logger.info("took over job %s", job_id)
            await self._each(job_id, self._read_and_take_up(job_id))
        await self._sweep()

    async def _each(self, job_id: str, work: Coroutine[Any, Any, None]) -> None:
        """One job's part: what is wrong with it concerns no other job."""
        try:
            await work
        except JobUnreadable as problem:
            await self._condemn(job_id, problem)
        except ServiceUnavailable:
            raise
        except Exception:
            logger.exception("the heartbeat failed for job %s", job_id)

    async def _look_again(self, job: LiveJob) -> None:
        if job.writing.locked():
            return  # Its own end may be on its way into the store; the next heartbeat looks again.
        async with job.writing:
            record = await self._store.call(lambda store: store.record(job.id))
        self._runner.stop(job, record)

    async def _read_and_take_up(self, job_id: str) -> None:
        spec = await self._store.call(lambda store: store.spec(job_id))
        record = await self._store.call(lambda store: store.record(job_id))
        if spec is None or record is None:
            raise JobUnreadable("A part of the stored job is missing.")
        if not self._is_in_hand(job_id):
            self._take_up(spec, record)

    async def _condemn(self, job_id: str, problem: JobUnreadable) -> None:
        """End a job that cannot be read; all others go on. Its webhook is notified if that can be read."""
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
