"""Faults that only a file can have: crashes, other readers, foreign content, growth."""

import asyncio
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.config import SqliteStoreSettings
from serve_app.edits.job import JobState
from serve_app.errors import ConfigError, StoreFull
from serve_app.jobs.stores import sqlite_store
from serve_app.jobs.stores.codec import dump_outcome, dump_pictures, dump_record, dump_spec
from serve_app.jobs.stores.sqlite_file import PAGE_BYTES, SCHEMA, VERSION
from serve_app.jobs.stores.sqlite_store import SqliteStore
from serve_app.jobs.stores.store import ByteLimits, Store
from tests.conftest import ROOT
from tests.jobs.conftest import SqliteStores, async_test
from tests.jobs.samples import KEY, SETS, add, end, noise, num_bytes, outcome, record, same_pictures, spec

# Without the tests' own modules, which take seconds to import.
DIE_AT_WORK = """
import asyncio, os, signal, sys
from serve_app.config import SqliteStoreSettings
from serve_app.jobs.stores import sqlite_store
from serve_app.jobs.stores.codec import load_outcome, load_pictures, load_record, load_spec
from serve_app.jobs.stores.sqlite_store import SqliteStore

async def work(path, *job):
    spec, pictures, record, rest, picture = map(bytes.fromhex, job)
    store = SqliteStore(SqliteStoreSettings(path=path))
    await store.beat("me", 60)
    await store.add(load_spec(spec), load_pictures(pictures), load_record(record), "me")
    await store.add_outcome("job", "me", 0, load_outcome(rest, picture))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(work(*sys.argv[1:]))
"""


@async_test
async def test_a_killed_process_has_kept_all_that_was_done(sqlite_stores: SqliteStores) -> None:
    job = [dump_spec(spec(key=KEY)), dump_pictures(SETS), dump_record(record()), *dump_outcome(outcome())]
    command = [sys.executable, "-c", DIE_AT_WORK, str(sqlite_stores.path), *(part.hex() for part in job)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == -signal.SIGKILL
    # As the process left it, with all changes in the log.
    assert _size(Path(f"{sqlite_stores.path}-wal")) > 0
    store = sqlite_stores.open()
    assert await store.spec("job") == spec(key=KEY)
    assert await store.record("job") == record()
    assert same_pictures(await store.pictures("job"), SETS)
    assert await store.outcomes("job") == {0: outcome()}
    assert await store.beat("me", 60) == {"job": JobState.IN_QUEUE}


@async_test
async def test_no_other_user_can_read_the_files(sqlite_stores: SqliteStores) -> None:
    before = os.umask(0)
    try:
        await add(sqlite_stores.open())
    finally:
        os.umask(before)
    folder = sqlite_stores.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == {f"jobs.sqlite3{end}": 0o600 for end in ("", "-wal", "-shm")}


@async_test
async def test_a_file_that_others_could_read_becomes_private(sqlite_stores: SqliteStores) -> None:
    sqlite_stores.path.parent.mkdir()
    sqlite_stores.path.touch(0o644)
    await add(sqlite_stores.open())
    assert stat.S_IMODE(sqlite_stores.path.stat().st_mode) == 0o600


@async_test
async def test_a_newer_file_is_refused_and_left_as_it_is(sqlite_stores: SqliteStores) -> None:
    sqlite_stores.path.parent.mkdir()
    db = sqlite3.connect(sqlite_stores.path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    content = sqlite_stores.path.read_bytes()
    with pytest.raises(ConfigError, match=r"written by a newer version \(schema 2, known here: 1\)"):
        await sqlite_stores.open().record("job")
    assert sqlite_stores.path.read_bytes() == content


@async_test
async def test_what_is_no_database_is_refused(sqlite_stores: SqliteStores) -> None:
    sqlite_stores.path.parent.mkdir()
    sqlite_stores.path.write_bytes(b"a letter to a friend " * 100)
    store = sqlite_stores.open()
    for _ in range(2):
        with pytest.raises(ConfigError, match="file is not a database"):
            await store.record("job")


@async_test
async def test_a_folder_that_cannot_be_made_is_refused(sqlite_stores: SqliteStores) -> None:
    sqlite_stores.path.parent.write_text("a file")
    with pytest.raises(ConfigError, match=r"jobs\.store\.path: .* cannot be used"):
        await sqlite_stores.open().record("job")


@async_test
async def test_the_file_is_still_there_after_closing(sqlite_stores: SqliteStores) -> None:
    await add(sqlite_stores.open())
    await sqlite_stores.close()
    sqlite_stores.opened.clear()
    assert await sqlite_stores.open().record("job") == record()


@async_test
async def test_many_can_make_the_file_at_once(sqlite_stores: SqliteStores) -> None:
    several = [sqlite_stores.open() for _ in range(8)]
    await asyncio.gather(*(add(store, f"job {number}") for number, store in enumerate(several)))
    assert len(await several[0].open_jobs()) == 8


@async_test
async def test_what_one_connection_writes_the_other_waits_for(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    await add(store)
    other = sqlite3.connect(sqlite_stores.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE jobs SET owner = 'you'")
    # Reading goes on meanwhile.
    assert await store.record("job") == record()
    late = asyncio.create_task(store.update("job", "me", record(JobState.IN_PROGRESS)))
    await asyncio.sleep(0.1)
    assert not late.done()
    other.execute("COMMIT")
    other.close()
    assert not await late


@async_test
async def test_a_failed_change_leaves_nothing_and_blocks_no_other(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    await add(store)
    other = sqlite3.connect(sqlite_stores.path, isolation_level=None)
    other.execute("CREATE TRIGGER no BEFORE INSERT ON pictures BEGIN SELECT RAISE(ABORT, 'no more'); END")
    with pytest.raises(sqlite3.IntegrityError, match="no more"):
        await add(store, "second")
    assert await store.record("second") is None
    other.execute("DROP TRIGGER no")
    other.close()
    assert await add(store, "second") == "second"


@async_test
async def test_the_file_becomes_small_again(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    for number in range(8):
        await add(store, f"job {number}", sets=((noise(number, 1024, 1024),),))
        await end(store, sqlite_stores.now, f"job {number}", JobState.FAILED)
    large = _size(sqlite_stores.path)
    sqlite_stores.now += 100
    for _ in range(20):
        await store.sweep()
    # While it is open: a service runs for months.
    assert _size(sqlite_stores.path) < 16 * PAGE_BYTES < 20_000_000 < large


@async_test
async def test_jobs_that_are_cancelled_at_once_reuse_the_same_pages(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    for number in range(16):
        await add(store, f"job {number}", sets=((noise(number, 640, 640),),))
        await store.cancel(f"job {number}", sqlite_stores.now)
    await sqlite_stores.close()
    sqlite_stores.opened.clear()
    assert _size(sqlite_stores.path) < 2 * num_bytes(spec(), ((noise(1, 640, 640),),))


def _insert_as_before(db: sqlite3.Connection, job_id: str) -> None:
    """Store a job as versions did that counted no bytes."""
    columns = "id, state, owner, expires_at, retention_s, repeat_key, fingerprint, record, spec"
    values = (job_id, "IN_QUEUE", "me", None, 60.0, None, "", dump_record(record()), dump_spec(spec(job_id)))
    db.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    db.execute("INSERT INTO pictures VALUES (?, ?)", (job_id, dump_pictures(SETS)))
    db.execute("REPLACE INTO outcomes VALUES (?, ?, ?, ?)", (job_id, 0, *dump_outcome(outcome())))


@async_test
async def test_the_bytes_of_jobs_that_an_earlier_version_stored_are_counted(sqlite_stores: SqliteStores) -> None:
    """In its own file, and in one that this version has opened before."""
    sqlite_stores.path.parent.mkdir()
    for job_id in ("job 0", "job 1"):
        db = sqlite3.connect(sqlite_stores.path)
        if job_id == "job 0":
            for statement in (*SCHEMA, f"PRAGMA user_version = {VERSION}"):
                db.execute(statement)
        _insert_as_before(db, job_id)
        db.commit()
        db.close()
        assert same_pictures(await sqlite_stores.open().pictures(job_id), SETS)
        await sqlite_stores.close()
        sqlite_stores.opened.clear()
    held = 2 * (num_bytes(spec("job 0")) + sum(map(len, dump_outcome(outcome()))))
    store = sqlite_stores.open()
    with pytest.raises(StoreFull):
        await add(store, "job 2", limits=ByteLimits(held + num_bytes(spec("job 2")) - 1))
    assert await add(store, "job 2", limits=ByteLimits(held + num_bytes(spec("job 2")))) == "job 2"


def _size(path: Path) -> int:
    return path.stat().st_size


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    async def scenario() -> None:
        store: Store = SqliteStore(SqliteStoreSettings(path="~/a/b/jobs.sqlite3"))
        await add(store)
        await store.close()

    asyncio.run(scenario())
    assert (tmp_path / "a" / "b" / "jobs.sqlite3").is_file()


@async_test
async def test_a_file_that_is_deleted_while_in_use_is_restored(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    await add(store, "before", key=KEY)
    await store.add_outcome("before", "me", 0, outcome())
    for file in sqlite_stores.path.parent.iterdir():
        file.unlink()
    await add(store, "after")
    await sqlite_stores.close()
    sqlite_stores.opened.clear()
    successor = sqlite_stores.open()
    assert await successor.spec("before") == spec("before", key=KEY)
    assert same_pictures(await successor.pictures("before"), SETS)
    assert await successor.outcomes("before") == {0: outcome()}
    assert await successor.open_jobs() == {"before": JobState.IN_QUEUE, "after": JobState.IN_QUEUE}
    modes = {stat.S_IMODE(file.stat().st_mode) for file in sqlite_stores.path.parent.iterdir()}
    assert modes == {0o600}
    assert {file.name.partition(".sqlite3")[2] for file in sqlite_stores.path.parent.iterdir()} <= {"", "-wal", "-shm"}


@async_test
async def test_several_processes_that_find_the_file_deleted_go_on_with_one(sqlite_stores: SqliteStores) -> None:
    several = [sqlite_stores.open() for _ in range(4)]
    for number, store in enumerate(several):
        await add(store, f"job {number}", sets=SETS[1:])
    shutil.rmtree(sqlite_stores.path.parent)
    await asyncio.gather(*(store.beat(f"owner {number}", 60) for number, store in enumerate(several)))
    await add(several[0], "new", sets=SETS[1:])
    for store in several:
        assert len(await store.open_jobs()) == 5


@async_test
async def test_a_file_that_is_replaced_is_used_from_then_on(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    await add(store, "old")
    elsewhere = SqliteStores(path=sqlite_stores.path.with_name("other.sqlite3"))
    await add(elsewhere.open(), "new")
    await elsewhere.close()
    for ending in ("-wal", "-shm"):
        sqlite_stores.path.with_name(sqlite_stores.path.name + ending).unlink()
    elsewhere.path.rename(sqlite_stores.path)
    # What was accepted before is not lost with the old one.
    assert await store.open_jobs() == {"old": JobState.IN_QUEUE, "new": JobState.IN_QUEUE}
    assert await store.update("new", "me", record(JobState.IN_PROGRESS))
    assert same_pictures(await store.pictures("old"), SETS)


@async_test
async def test_a_successor_that_finds_no_file_makes_one_and_the_old_replica_adds_its_jobs(
    sqlite_stores: SqliteStores,
) -> None:
    old = sqlite_stores.open()
    await add(old, "accepted", key=KEY)
    await old.add_outcome("accepted", "me", 0, outcome())
    shutil.rmtree(sqlite_stores.path.parent)
    successor = sqlite_stores.open()
    assert await successor.open_jobs() == {}
    await add(successor, "new")
    await old.beat("me", 60)
    assert set(await successor.open_jobs()) == {"accepted", "new"}
    assert await successor.outcomes("accepted") == {0: outcome()}


@async_test
async def test_a_file_that_cannot_be_used_any_more_is_an_outage_and_no_matter_of_configuration(
    sqlite_stores: SqliteStores,
) -> None:
    store = sqlite_stores.open()
    await add(store)
    shutil.rmtree(sqlite_stores.path.parent)
    sqlite_stores.path.parent.write_text("a file")
    with pytest.raises((sqlite3.OperationalError, OSError)):
        await store.record("job")
    sqlite_stores.path.parent.unlink()
    assert await store.record("job") == record()


@async_test
async def test_a_file_of_this_version_without_its_tables_is_refused(sqlite_stores: SqliteStores) -> None:
    sqlite_stores.path.parent.mkdir()
    db = sqlite3.connect(sqlite_stores.path)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.close()
    with pytest.raises(ConfigError, match=r"is no store of jobs: it has no table jobs, leases, outcomes, pictures"):
        await sqlite_stores.open().record("job")


@async_test
async def test_a_clock_that_is_set_back_does_not_keep_a_dead_owner_alive(sqlite_stores: SqliteStores) -> None:
    now, boot = [1_700_000_000.0], [5_000.0]

    def opened() -> SqliteStore:
        settings = SqliteStoreSettings(path=str(sqlite_stores.path))
        sqlite_stores.opened.append(SqliteStore(settings, lambda: now[0], lambda: boot[0]))
        return sqlite_stores.opened[-1]  # type: ignore[return-value]

    store = opened()
    await store.beat("me", 10)
    await add(store)
    now[0] -= 3600
    assert await opened().adopt("heir") == []  # it lives
    boot[0] += 11
    assert await opened().adopt("heir") == ["job"]
    # Nor does a clock that is set forward kill a living one.
    await store.beat("heir", 10)
    now[0] += 7200
    assert await opened().adopt("another") == []


@async_test
async def test_a_lease_of_an_earlier_boot_is_over(sqlite_stores: SqliteStores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sqlite_stores.open()
    await store.beat("me", 10)
    await add(store)
    monkeypatch.setattr(sqlite_store, "boot_id", lambda: "another boot")
    sqlite_stores.now -= 1000  # the boot's clock begins anew
    heir = sqlite_stores.open()
    assert await heir.adopt("heir") == ["job"]
    assert await heir.update("job", "heir", record(JobState.IN_PROGRESS))


@async_test
async def test_a_file_that_an_earlier_version_wrote_is_taken_over(sqlite_stores: SqliteStores) -> None:
    store = sqlite_stores.open()
    await add(store)
    db = sqlite3.connect(sqlite_stores.path)
    db.execute("UPDATE jobs SET owner = 'an-owner'")
    db.execute("INSERT INTO leases VALUES ('an-owner', 1800000000.0)")  # by the wall clock
    db.commit()
    db.close()
    assert await store.adopt("heir") == ["job"]
