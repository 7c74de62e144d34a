"""The connection between a Jobs replica and its store: which store, bounded calls, retries, and outages."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from serve_app.config import RedisStoreSettings, SqliteStoreSettings, StoreSettings
from serve_app.errors import JobUnreadable, ServiceUnavailable
from serve_app.jobs.stores.redis_store import RedisStore
from serve_app.jobs.stores.sqlite_store import SqliteStore
from serve_app.jobs.stores.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

STORES: Mapping[type, type[Store]] = {SqliteStoreSettings: SqliteStore, RedisStoreSettings: RedisStore}
"""The store classes by the class of their settings."""

STORE_ERRORS: tuple[type[Exception], ...] = (OSError, *(error for store in STORES.values() for error in store.errors))
"""Raised by a store while it cannot be reached or is full. TimeoutError is an OSError."""

CALL_TIMEOUT_S = 6.0
"""For one call; longer than SQLite waits for another process's transaction."""

UNREADABLE = "The stored job cannot be read; send it again, with a new Idempotency-Key if it had one."

ADD_TIMEOUT_S = 60.0
"""For storing a new job, whose pictures may be 100 MB."""

RETRY_S = 0.5
"""Between two attempts of a call that must succeed, and how long a failed call counts as an outage."""


def open_store(settings: StoreSettings) -> Store:
    """The configured store. It opens its file or connection at its first use."""
    return STORES[type(settings)](settings)


class StoreLink:
    """Calls a store. Lives on one event loop.

    The store counts as away for `RETRY_S` after a failed call, and while a write of `call_until_done` keeps failing.
    Meanwhile `call` fails at once. A read of `call_until_done` that keeps failing affects its job only, and so does
    damage of one job.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._away_until = float("-inf")
        self._away_since: float | None = None
        self._retrying: set[object] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def is_away(self) -> bool:
        return bool(self._retrying) or self._clock() < self._away_until

    def require(self) -> None:
        """
        Raises:
            ServiceUnavailable: the store counts as away.
        """
        if self.is_away:
            raise _unavailable()

    async def call(self, operation: Callable[[Store], Awaitable[T]], timeout_s: float = CALL_TIMEOUT_S) -> T:
        """One attempt, for a request that waits for the result. Fails as soon as another call has timed out.

        Raises:
            ServiceUnavailable: the store does not answer, or counts as away.
        """
        self.require()
        hangs = asyncio.get_running_loop().create_future()
        self._waiting.add(hangs)
        try:
            return await self._attempt(operation, timeout_s, hangs)
        finally:
            self._waiting.discard(hangs)

    async def call_until_done(
        self, operation: Callable[[Store], Awaitable[T]], *, is_write: bool = True, is_of_one_job: bool = True
    ) -> T:
        """Repeat a call that must not get lost until the store answers or the task is cancelled.

        Raises:
            JobUnreadable: the stored job is damaged. Not for calls that concern more than one job.
        """
        attempt = object()
        try:
            while True:
                try:
                    return await self._attempt(
                        operation, CALL_TIMEOUT_S, marks_away=is_write, is_of_one_job=is_of_one_job
                    )
                except ServiceUnavailable:
                    if is_write:
                        self._retrying.add(attempt)
                await asyncio.sleep(RETRY_S)
        finally:
            self._retrying.discard(attempt)

    async def close(self) -> None:
        await self._store.close()

    async def _attempt(
        self,
        operation: Callable[[Store], Awaitable[T]],
        timeout_s: float,
        given_up: "asyncio.Future[None] | None" = None,
        *,
        marks_away: bool = True,
        is_of_one_job: bool = True,
    ) -> T:
        try:
            result = await _apart(operation(self._store), timeout_s, given_up)
        except STORE_ERRORS as problem:
            if is_of_one_job and _is_damage(problem):
                raise JobUnreadable(UNREADABLE) from problem
            if marks_away:
                self._note_failure(problem)
            raise _unavailable() from problem
        self._note_success()
        return result

    def _note_failure(self, problem: Exception) -> None:
        now = self._clock()
        self._away_until = now + RETRY_S
        if isinstance(problem, TimeoutError):
            for hangs in self._waiting:
                if not hangs.done():
                    hangs.set_result(None)
        if self._away_since is None:
            self._away_since = now
            hint = "; its file is damaged: stop the service and move the file away" if _is_damage(problem) else ""
            logger.error("the job store cannot be reached%s", hint, exc_info=problem)

    def _note_success(self) -> None:
        if self._away_since is not None and not self.is_away:
            logger.warning("the job store answers again after %.1f s", self._clock() - self._away_since)
            self._away_since = None


async def _apart(work: Awaitable[T], timeout_s: float, given_up: "asyncio.Future[None] | None") -> T:
    """The result of `work`, which runs in a task of its own: redis-py 8.1 may ignore a cancellation, which must delay
    neither the caller's cancellation nor the timeout.

    Raises:
        TimeoutError: there is no result after `timeout_s`, or when `given_up` is done.
    """
    task = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {task} if given_up is None else {task, given_up}
    try:
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


def _is_damage(problem: Exception) -> bool:
    return any(store.is_damage(problem) for store in STORES.values())


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("The job store cannot be reached right now; try again.")
