"""Both kinds of store behind one fixture; a test can advance their time and count what they hold."""

import asyncio
import functools
import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import pytest
from redis.asyncio import Redis

from serve_app.config import RedisStoreSettings, SqliteStoreSettings
from serve_app.jobs.stores.redis_store import RedisStore
from serve_app.jobs.stores.sqlite_store import SqliteStore
from serve_app.jobs.stores.store import Store
from tests.processes import redis_server

P = ParamSpec("P")


@dataclass
class Stores(ABC):
    """Any number of stores on the same jobs.

    Attributes:
        now: the time of their clock, in seconds since the epoch.
    """

    now: float = 1_700_000_000.123456
    opened: list[Store] = field(default_factory=list)

    def open(self) -> Store:
        self.opened.append(self._make(lambda: self.now))
        return self.opened[-1]

    async def close(self) -> None:
        for store in self.opened:
            await store.close()

    @abstractmethod
    def _make(self, clock: Callable[[], float]) -> Store: ...

    @abstractmethod
    async def let_pass(self, seconds: float) -> None: ...

    @abstractmethod
    async def num_left(self) -> int:
        """The number of rows or keys of all kinds."""


@dataclass
class SqliteStores(Stores):
    path: Path = Path("set by the fixture")

    def _make(self, clock: Callable[[], float]) -> Store:
        return SqliteStore(SqliteStoreSettings(path=str(self.path)), clock, clock)

    async def let_pass(self, seconds: float) -> None:
        self.now += seconds

    async def num_left(self) -> int:
        db = sqlite3.connect(self.path)
        tables = ("jobs", "pictures", "outcomes", "leases")
        count = sum(int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in tables)
        db.close()
        return count


@dataclass
class RedisStores(Stores):
    """Leases and expiry use Redis' own clock, so `let_pass` sleeps."""

    url: str = "set by the fixture"
    prefix: str = field(default_factory=lambda: f"test:{uuid.uuid4()}:")

    def _make(self, clock: Callable[[], float]) -> Store:
        return RedisStore(RedisStoreSettings(kind="redis", url=self.url, prefix=self.prefix), clock)

    async def let_pass(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(seconds)

    async def num_left(self) -> int:
        async with Redis.from_url(self.url) as client:
            return len(await client.keys(f"{self.prefix}*"))


def async_test(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on its own event loop, and close its stores there."""

    async def run_and_close(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await test(*args, **kwargs)
        finally:
            for stores in kwargs.values():
                if isinstance(stores, Stores):
                    await stores.close()

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(run_and_close(*args, **kwargs))

    return run


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with redis_server() as url:
        yield url


@pytest.fixture
def sqlite_stores(tmp_path: Path) -> SqliteStores:
    return SqliteStores(path=tmp_path / "state" / "jobs.sqlite3")


@pytest.fixture
def redis_stores(redis_url: str) -> RedisStores:
    return RedisStores(url=redis_url)


@pytest.fixture(params=["sqlite", "redis"])
def stores(request: pytest.FixtureRequest) -> Stores:
    chosen: Stores = request.getfixturevalue(f"{request.param}_stores")
    return chosen
