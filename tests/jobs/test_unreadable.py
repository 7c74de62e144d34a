"""A stored job that cannot be decoded fails alone: all others go on."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import redis.exceptions
from redis.asyncio import Redis

from serve_app.edits.job import JobCounts, JobSpec, JobState, Policy
from serve_app.errors import JobUnreadable
from serve_app.jobs.service import JobService
from serve_app.jobs.stores.store import Store
from tests.fakes import FakeEditor, picture
from tests.jobs.conftest import RedisStores, SqliteStores, Stores, async_test
from tests.jobs.replicas import CutOffStore, Replica, replica_on, spec, state
from tests.jobs.samples import SETS, record
from tests.jobs.samples import spec as full_spec
from tests.service.receiver import receiving
from tests.waiting import until_async

DAMAGE = {
    "spec": b'{"id": 1',
    "record": b'{"state": "SLEEPING", "created_at": 1.0}',
    "state": b"SLEEPING",
    "pictures": b"no safetensors",
}


async def damage(stores: Stores, job_id: str, part: str) -> None:
    """Overwrite a part of a stored job, as a bad disk or another version might."""
    if isinstance(stores, SqliteStores):
        db = sqlite3.connect(stores.path)
        table, column, key = ("pictures", "data", "job_id") if part == "pictures" else ("jobs", part, "id")
        value = DAMAGE[part].decode() if part == "state" else DAMAGE[part]
        assert db.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (value, job_id)).rowcount == 1
        db.commit()
        db.close()
    elif isinstance(stores, RedisStores):
        async with Redis.from_url(stores.url) as client:
            if part == "pictures":
                await client.set(f"{stores.prefix}pictures:{job_id}", DAMAGE[part])
            elif part == "state":
                await client.hset(f"{stores.prefix}open", job_id, "SLEEPING dead")
                await client.hset(f"{stores.prefix}job:{job_id}", "record", DAMAGE["record"])
            else:
                await client.hset(f"{stores.prefix}job:{job_id}", part, DAMAGE[part])


@async_test
@pytest.mark.parametrize("part", DAMAGE)
async def test_it_fails_and_the_other_jobs_of_its_dead_owner_are_done(stores: Stores, part: str) -> None:
    store = stores.open()
    for name in ("a", "b", "c"):
        await store.add(spec(name), [(picture(),)], record(), "dead")
    await damage(stores, "b", part)
    editor = FakeEditor()
    async with replica_on(store, editor, clock=lambda: stores.now) as service:
        assert await state(service, "a") is JobState.COMPLETED
        assert await state(service, "c") is JobState.COMPLETED
        if part != "state" or isinstance(stores, RedisStores):  # SQLite's column of states is but an index
            await until_async(lambda: _has_failed(store, "b"))
            assert await service.counts() == JobCounts(completed=2, failed=1)
        assert await store.open_jobs() == {}
        # What follows is not stopped either.
        await service.submit(spec("d"), [(picture(),)])
        assert await state(service, "d") is JobState.COMPLETED
        assert await service.fault() is None


@async_test
async def test_a_job_that_can_be_neither_read_nor_ended_does_not_stop_the_others(stores: Stores) -> None:
    store = CutOffStore(stores.open())
    for name in ("a", "b", "c"):
        await store.as_store.add(spec(name), [(picture(),)], record(), "dead")
    await damage(stores, "b", "record")

    async def cannot(*_: object) -> bool:
        raise JobUnreadable("damaged, too")

    vars(store)["condemn"] = cannot
    async with replica_on(store.as_store, FakeEditor(), clock=lambda: stores.now) as service:
        assert [await state(service, name) for name in ("a", "c")] == 2 * [JobState.COMPLETED]
        await until_async(lambda: "sweep" in store.calls)


@async_test
async def test_a_purge_leaves_out_a_job_that_cannot_be_read(stores: Stores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, clock=lambda: stores.now, max_active_jobs=1) as service:
        for name in ("running", "broken", "waiting"):
            await service.submit(spec(name), [(picture(),)])
        await until_async(lambda: _is_picked_up(service, "running"))
        await damage(stores, "broken", "record")
        assert await service.purge() == 1
        assert await state(service, "waiting", 0) is JobState.CANCELLED
        assert editor.gate is not None
        editor.gate.release()
        assert await state(service, "running") is JobState.COMPLETED


async def _has_failed(store: Store, job_id: str) -> bool:
    try:
        found = await store.record(job_id)
    except JobUnreadable:
        return False
    return found is not None and found.state is JobState.FAILED


@async_test
@pytest.mark.parametrize("part", ["spec", "record"])
async def test_a_job_that_becomes_unreadable_while_another_replica_looks_at_it(stores: Stores, part: str) -> None:
    store = CutOffStore(stores.open())
    async with replica_on(store.as_store, FakeEditor(), clock=lambda: stores.now) as service:
        await store.as_store.beat("other", 0.5)
        await store.as_store.add(spec("theirs"), [(picture(),)], record(), "other")
        await damage(stores, "theirs", part)
        await stores.let_pass(0.6)  # the other replica's lease
        await until_async(lambda: store.calls.count("condemn") == 1)
        num_calls = len(store.calls)
        await until_async(lambda: store.calls[num_calls:].count("beat") >= 2)
        assert store.calls.count("condemn") == 1
        assert (await service.counts()).failed == 1


READS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "spec": lambda store: store.spec("job"),
    "record": lambda store: store.record("job"),
    "pictures": lambda store: store.pictures("job"),
}


@async_test
@pytest.mark.parametrize("part", READS)
async def test_what_cannot_be_decoded_is_job_unreadable(stores: Stores, part: str) -> None:
    store = stores.open()
    await store.add(full_spec(), SETS, record(), "me")
    await damage(stores, "job", part)
    with pytest.raises(JobUnreadable, match="cannot be read; send the job again"):
        await READS[part](store)


@async_test
async def test_only_an_open_job_of_the_owner_is_condemned(stores: Stores) -> None:
    store = stores.open()
    await store.add(spec("job"), [(picture(),)], record(), "me")
    failed = record(JobState.FAILED, ended_at=stores.now)
    assert not await store.condemn("job", "stranger", failed)
    assert not await store.condemn("unknown", "me", failed)
    assert await store.condemn("job", "me", failed)
    assert await store.record("job") == failed
    assert await store.open_jobs() == {}
    assert not await store.condemn("job", "me", record(JobState.CANCELLED, ended_at=stores.now))
    assert await store.record("job") == failed


@async_test
async def test_a_job_whose_record_is_damaged_while_it_runs_fails_and_frees_its_slot(stores: Stores) -> None:
    editor = FakeEditor(gate=asyncio.Semaphore(0))
    async with replica_on(stores.open(), editor, clock=lambda: stores.now, max_active_jobs=1) as service:
        await service.submit(spec("job"), [(picture(),)])
        await until_async(lambda: _is_picked_up(service, "job"))
        await damage(stores, "job", "record")
        await service.submit(spec("next"), [(picture(),)])
        assert editor.gate is not None
        editor.gate.release()
        await until_async(lambda: _has_failed(service._store._store, "job"))
        editor.gate.release()
        assert await state(service, "next") is JobState.COMPLETED
        assert await service.counts() == JobCounts(completed=1, failed=1)
        assert await service.fault() is None


async def _is_picked_up(service: Replica, job_id: str) -> bool:
    record = await service._stored_record(job_id)
    return record is not None and record.state is JobState.IN_PROGRESS


@asynccontextmanager
async def behind_another_job(store: CutOffStore, waiting: JobSpec) -> AsyncIterator[JobService]:
    """A replica whose job waits for the job "first", so that its pictures are read from the store."""
    gate = asyncio.Semaphore(0)
    async with replica_on(store.as_store, FakeEditor(gate=gate), max_active_jobs=1) as service:
        for each in (spec("first"), waiting):
            await service.submit(each, [(picture(),)])
        for _ in range(2):
            gate.release()
        yield service


@async_test
async def test_only_a_job_that_waits_has_its_pictures_read_from_the_store(sqlite_stores: SqliteStores) -> None:
    store = CutOffStore(sqlite_stores.open())
    read, was_read = store.as_store.pictures, []

    async def noted(job_id: str) -> object:
        was_read.append(job_id)
        return await read(job_id)

    vars(store)["pictures"] = noted
    async with behind_another_job(store, spec("second")) as service:
        assert [await state(service, name) for name in ("first", "second")] == 2 * [JobState.COMPLETED]
    assert was_read == ["second"]


LASTING = [
    redis.exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    sqlite3.DatabaseError("database disk image is malformed"),
]
LASTING[1].sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # type: ignore[attr-defined]


@async_test
@pytest.mark.parametrize("problem", LASTING, ids=["redis", "sqlite"])
async def test_an_error_that_no_attempt_can_mend_fails_its_job_alone(
    sqlite_stores: SqliteStores, problem: Exception
) -> None:
    store = CutOffStore(sqlite_stores.open())
    read = store.as_store.pictures

    async def broken(job_id: str) -> object:
        if job_id == "broken":
            raise problem
        return await read(job_id)

    vars(store)["pictures"] = broken
    async with behind_another_job(store, spec("broken")) as service:
        job = await service.wait("broken", 20)
        assert (job.state, job.error_code) == (JobState.FAILED, "job_unreadable")
        assert await service.fault() is None


@async_test
async def test_a_read_that_keeps_failing_does_not_count_as_an_outage(sqlite_stores: SqliteStores) -> None:
    store = CutOffStore(sqlite_stores.open())
    num_reads = 0

    async def bad_sector(job_id: str) -> object:
        nonlocal num_reads
        num_reads += 1
        raise sqlite3.OperationalError("disk I/O error")

    vars(store)["pictures"] = bad_sector
    async with behind_another_job(store, spec("broken", policy=Policy(ttl_s=2))) as service:
        await until_async(lambda: num_reads >= 2)
        assert await service.fault() is None
        await service.reserve("another", "")
        assert await state(service, "broken") is JobState.TIMED_OUT


@async_test
async def test_the_webhook_of_a_job_whose_record_is_damaged_is_notified(stores: Stores) -> None:
    with receiving() as receiver:
        store = stores.open()
        await store.add(spec("job", webhook=f"{receiver.origin}/hook/200"), [(picture(),)], record(), "dead")
        await damage(stores, "job", "record")
        async with replica_on(store, FakeEditor(), clock=lambda: stores.now, webhook_origins=(receiver.origin,)):
            await until_async(lambda: bool(receiver.calls))
            await until_async(lambda: _has_no_open_job(store))
    assert receiver.calls == [("/hook/200", {"id": "job", "status": "FAILED"})]


async def _has_no_open_job(store: Store) -> bool:
    return await store.open_jobs() == {}
