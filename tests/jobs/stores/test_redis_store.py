"""Faults that only a server can have: lost answers, lost scripts, outages, sharing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from serve_app.config import RedisStoreSettings
from serve_app.edits.job import JobState
from serve_app.errors import JobUnreadable, StoreFull
from serve_app.jobs.stores import redis_store
from serve_app.jobs.stores.codec import dump_outcome, dump_spec
from serve_app.jobs.stores.redis_store import RedisStore
from serve_app.jobs.stores.store import ByteLimits
from tests.jobs.conftest import RedisStores, async_test
from tests.jobs.samples import KEY, add, end, num_bytes, outcome, record, spec
from tests.processes import free_port


@dataclass
class Lossy:
    """A proxy in front of Redis that loses answers.

    Attributes:
        loses: whether the answer to a request is lost. Each loss is counted.
    """

    url: str
    loses: Callable[[bytes], bool] = lambda request: False
    num_lost: int = 0
    _busy: set[asyncio.Task[None]] = field(default_factory=set)

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = urlsplit(self.url)
        back, on = await asyncio.open_connection(there.hostname, there.port)
        try:
            while request := await reader.read(2**20):
                on.write(request)
                answer = await back.read(2**20)
                if self.loses(request):
                    self.num_lost += 1
                    return
                writer.write(answer)
        finally:
            for end in (writer, on):
                end.close()


@asynccontextmanager
async def lossy(stores: RedisStores) -> AsyncIterator[Lossy]:
    """Stores that are opened meanwhile connect through the proxy."""
    way = Lossy(stores.url)
    async with await asyncio.start_server(way.join, "127.0.0.1", 0) as server:
        stores.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        yield way
        await stores.close()
    stores.url = way.url
    stores.opened.clear()


def nth_script(number: int) -> Callable[[bytes], bool]:
    """Picks the `number`th request, from 1, that runs a script."""
    seen = 0

    def picks(request: bytes) -> bool:
        nonlocal seen
        seen += b"EVALSHA" in request
        return b"EVALSHA" in request and seen == number

    return picks


@async_test
async def test_a_call_whose_answer_was_lost_gets_the_same_answer_again(redis_stores: RedisStores) -> None:
    async with lossy(redis_stores) as way:
        store = redis_stores.open()
        await warm_up(redis_stores)
        way.loses = nth_script(1)
        assert await add(store, key=KEY) == "job"
        way.loses = nth_script(1)
        assert await store.add_outcome("job", "me", 0, outcome())
        way.loses = nth_script(1)
        assert await store.update("job", "me", record(JobState.FAILED, ended_at=redis_stores.now))
        way.loses = nth_script(1)
        assert await store.reopen("job", "me", record())
        way.loses = nth_script(1)
        assert await store.adopt("heir") == ["job"]
        way.loses = nth_script(1)
        assert await store.cancel("job", redis_stores.now)
        assert way.num_lost == 6
        assert await store.adopt("heir") == []


async def held(stores: RedisStores) -> dict[str, str]:
    async with Redis.from_url(stores.url, decode_responses=True) as client:
        fields = await client.hgetall(f"{stores.prefix}held")
        return {str(name): str(value) for name, value in fields.items()}


@async_test
async def test_calls_whose_answers_were_lost_count_bytes_once(redis_stores: RedisStores) -> None:
    size = num_bytes(spec("job", client="anna"))
    async with lossy(redis_stores) as way:
        store = redis_stores.open()
        await warm_up(redis_stores)
        before = int((await held(redis_stores))["total"])
        way.loses = nth_script(1)
        await add(store, client="anna", limits=ByteLimits(before + size, size))
        assert (await held(redis_stores))["client:anna"] == str(size)
        way.loses = nth_script(1)
        assert await store.add_outcome("job", "me", 0, outcome())
        drawn = sum(map(len, dump_outcome(outcome())))
        assert int((await held(redis_stores))["total"]) == before + size + drawn
        way.loses = nth_script(1)
        await end(store, redis_stores.now)
        left = len(dump_spec(spec("job", client="anna"))) + drawn
        assert await held(redis_stores) | {"total": str(before + left), "client:anna": str(left)} == await held(
            redis_stores
        )
        way.loses = nth_script(1)
        with pytest.raises(StoreFull):
            await add(store, "other", limits=ByteLimits(before + left))
        assert way.num_lost == 4


@async_test
async def test_bytes_of_expired_jobs_and_of_keys_deleted_by_hand_are_subtracted(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    for name, retention_s in (("brief", 0.1), ("lost", 60.0), ("kept", 60.0)):
        await add(store, name, retention_s=retention_s, client=name)
    await end(store, redis_stores.now, "brief")
    await redis_stores.let_pass(0.2)
    async with Redis.from_url(redis_stores.url) as client:
        await client.delete(f"{redis_stores.prefix}job:lost")
        await client.zadd(f"{redis_stores.prefix}checks", {"lost": 1, "kept": 1})  # a minute later
        await store.sweep()
        kept = num_bytes(spec("kept", client="kept"))
        assert await held(redis_stores) == {"job:kept": f"{kept} kept", "client:kept": str(kept), "total": str(kept)}
        assert await client.zrange(f"{redis_stores.prefix}checks", 0, -1) == [b"kept"]


@async_test
async def test_a_job_of_an_earlier_version_is_counted_at_its_next_change(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store)
    async with Redis.from_url(redis_stores.url) as client:
        await client.hdel(f"{redis_stores.prefix}job:job", "client")
        await client.delete(f"{redis_stores.prefix}held", f"{redis_stores.prefix}checks")
    assert await store.update("job", "me", record(JobState.IN_PROGRESS))
    assert (await held(redis_stores))["client:"] == str(num_bytes(spec()))


async def warm_up(stores: RedisStores) -> None:
    """Load the scripts into Redis, so that each call runs one once."""
    store = stores.open()
    await add(store, "warm")
    await store.add_outcome("warm", "me", 0, outcome())
    await store.cancel("warm", stores.now)
    await store.adopt("nobody")


@async_test
async def test_jobs_whose_adoption_was_never_answered_are_among_the_heirs_own(
    redis_stores: RedisStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "NUM_RETRIES", 0)
    async with lossy(redis_stores) as way:
        await warm_up(redis_stores)
        store = redis_stores.open()
        await add(store)
        way.loses = nth_script(1)
        with pytest.raises(RedisConnectionError):
            await store.adopt("heir")
        assert await store.beat("heir", 60) == {"job": JobState.IN_QUEUE}
        assert await store.adopt("another") == await store.adopt("heir") == []


@async_test
async def test_scripts_that_redis_lost_are_loaded_again(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store)
    async with Redis.from_url(redis_stores.url) as client:
        await client.script_flush()
    assert await store.cancel("job", redis_stores.now)


@async_test
async def test_stores_of_another_prefix_see_nothing(redis_stores: RedisStores) -> None:
    await add(redis_stores.open(), key=KEY)
    num_left = await redis_stores.num_left()
    redis_stores.prefix = f"also:{redis_stores.prefix}"
    other = redis_stores.open()
    assert await other.record("job") is None
    assert await other.adopt("heir") == []
    assert await add(other, key=KEY) == "job"
    assert await redis_stores.num_left() == num_left


@async_test
async def test_every_key_has_the_prefix(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    async with Redis.from_url(redis_stores.url) as client:
        before = set(await client.keys("*"))
        await store.beat("me", 60)
        await add(store, key=KEY)
        await store.add_outcome("job", "me", 0, outcome())
        await store.adopt("heir")
        num_new = len(set(await client.keys("*")) - before)
    assert num_new == 8
    assert await redis_stores.num_left() == num_new


@async_test
async def test_pictures_without_a_job_do_not_stay(redis_stores: RedisStores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.jobs.stores.redis_store.STAGING_MS", 1)
    async with lossy(redis_stores) as way:
        way.loses = lambda request: b"SET" in request and b"staged" in request
        monkeypatch.setattr(redis_store, "NUM_RETRIES", 0)
        with pytest.raises(RedisConnectionError):
            await add(redis_stores.open())
    await asyncio.sleep(0.05)
    assert way.num_lost == 1
    assert await redis_stores.num_left() == 0


@async_test
async def test_an_open_job_never_expires_with_its_staging(
    redis_stores: RedisStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.jobs.stores.redis_store.STAGING_MS", 200)
    store = redis_stores.open()
    await add(store)
    await asyncio.sleep(0.3)
    assert await store.pictures("job") != ()


@async_test
async def test_expired_jobs_and_leases_are_deleted_without_a_sweep(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store, key=KEY, retention_s=0.2)
    await store.add_outcome("job", "me", 0, outcome())
    await store.beat("me", 0.2)
    await end(store, redis_stores.now)
    await redis_stores.let_pass(0.3)
    assert await redis_stores.num_left() == 0


@async_test
async def test_the_password_is_in_the_environment(redis_stores: RedisStores, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Redis.from_url(redis_stores.url) as client:
        await client.execute_command("ACL", "SETUSER", "camera", "on", ">open sesame", "~*", "+@all")  # type: ignore[no-untyped-call]
    redis_stores.url = redis_stores.url.replace("//", "//camera@")
    monkeypatch.setenv("CAMERA_EDIT_REDIS_PASSWORD", "open sesame")
    assert await add(redis_stores.open()) == "job"


@async_test
async def test_a_redis_that_is_away_is_an_error_after_some_retries(
    redis_stores: RedisStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "NUM_RETRIES", 1)
    redis_stores.url = f"redis://127.0.0.1:{free_port()}/0"
    with pytest.raises(RedisConnectionError):
        await redis_stores.open().record("job")


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://host", "unix:///run/redis.sock?db=1"])
def test_a_url_of_each_kind_opens_a_client(url: str) -> None:
    assert RedisStore(RedisStoreSettings(kind="redis", url=url))


@async_test
async def test_a_lease_from_before_the_servers_clock_was_set_back_is_over(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await store.beat("me", 10)
    await add(store)
    async with Redis.from_url(redis_stores.url) as client:
        # As the lease looks once the clock was set back by an hour.
        assert await client.pexpire(f"{redis_stores.prefix}lease:me", 3_610_000)
        assert await store.adopt("heir") == ["job"]
        # A lease of a version that did not store its duration holds as long as its key exists.
        await client.set(f"{redis_stores.prefix}lease:heir", "", px=3_610_000)
    assert await store.adopt("another") == []


@async_test
async def test_an_entry_whose_job_is_gone_is_dropped_from_the_list(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store)
    async with Redis.from_url(redis_stores.url) as client:
        await client.delete(f"{redis_stores.prefix}job:job")
    assert not await store.condemn("job", "me", record(JobState.FAILED, ended_at=redis_stores.now))
    assert await store.open_jobs() == {}


@async_test
async def test_a_missing_picture_of_an_outcome_is_job_unreadable(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store)
    await store.add_outcome("job", "me", 0, outcome())
    async with Redis.from_url(redis_stores.url) as client:
        assert await client.hdel(f"{redis_stores.prefix}outcomes:job", "0:picture") == 1
    with pytest.raises(JobUnreadable):
        await store.outcomes("job")


@async_test
async def test_a_job_whose_retention_is_damaged_ends_and_is_kept(redis_stores: RedisStores) -> None:
    store = redis_stores.open()
    await add(store)
    async with Redis.from_url(redis_stores.url) as client:
        await client.hset(f"{redis_stores.prefix}job:job", "retention_s", "sixty")
    await end(store, redis_stores.now)
    found = await store.record("job")
    assert found is not None
    assert found.state is JobState.COMPLETED
