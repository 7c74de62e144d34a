"""Jobs in one SQLite file: they survive a crash of the process and of the machine, but not the loss of the disk."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from serve_app.config import MAX_LEASE_S, SqliteStoreSettings
from serve_app.edits.job import JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.jobs.stores.codec import (
    dump_outcome,
    dump_pictures,
    dump_record,
    dump_spec,
    load_outcome,
    load_pictures,
    load_record,
    load_spec,
    load_state,
)
from serve_app.jobs.stores.sqlite_file import COUNTED_BYTES, SqliteFile
from serve_app.jobs.stores.store import UNLIMITED, ByteLimits, Store, StoredState, fingerprint_of, require_same

KEPT = "jobs.id = :id AND (expires_at IS NULL OR expires_at > :now)"
"""Selects a job that has not expired: expired ones stay in the file until the next sweep."""

EXPIRED = f"""expires_at <= :now OR expires_at > :now + {MAX_LEASE_S} OR substr(owner, 1, length(:boot)) != :boot"""
"""Selects expired leases, by the clock of this boot. Leases of another boot or machine have expired. If boots have no
id, so have leases with more time left than the longest lease."""

SAME_JOB = """SELECT id, fingerprint FROM jobs
    WHERE (id = :id OR repeat_key = :repeat_key) AND (expires_at IS NULL OR expires_at > :now)
    ORDER BY id = :id DESC"""
"""Selects the kept job with an id, or else with a repeat key."""

HELD_BYTES = "SELECT coalesce(sum(num_bytes), 0), coalesce(sum(num_bytes * (client = :client)), 0) FROM held"
"""Bytes of all jobs and of one client's."""


def boot_time() -> float:
    """Seconds since this machine's boot; on Linux including suspend."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def boot_id() -> str:
    """Linux's id of this boot of this machine; empty on other systems."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class SqliteStore(Store):
    """Several processes may have the file open, as an old and a new replica do for a while.

    The first use opens the file and raises a ConfigError where that fails.

    Leases use the time since the machine's boot, which nobody can set. That clock restarts at each boot, so an owner's
    name in the file begins with the boot's id.

    Args:
        clock: seconds since the epoch, for the expiry of jobs.
        lease_clock: seconds, the same in all processes of this machine.
    """

    errors = (sqlite3.Error,)

    def __init__(
        self,
        settings: SqliteStoreSettings,
        clock: Callable[[], float] = time.time,
        lease_clock: Callable[[], float] = boot_time,
    ) -> None:
        self._file = SqliteFile(Path(settings.path).expanduser())
        self._clock = clock
        self._lease_clock = lease_clock
        self._boot = f"{boot_id()}/"

    async def add(
        self,
        spec: JobSpec,
        pictures: Sequence[Pictures],
        record: JobRecord,
        owner: str,
        limits: ByteLimits = UNLIMITED,
    ) -> str:
        data = await asyncio.to_thread(dump_pictures, pictures)
        stored = StoredState(record, self._boot + owner, spec.retention_s)
        now = self._clock()
        return await self._file.write(lambda db: _add(db, spec, data, stored, limits, now))

    async def find(self, job_id: str | None, repeat_key: RepeatKey | None) -> str | None:
        key = None if repeat_key is None else repeat_key.key
        rows = await self._file.read(SAME_JOB, id=job_id, repeat_key=key, now=self._clock())
        if not rows:
            return None
        require_same(rows[0][1], fingerprint_of(repeat_key))
        return str(rows[0][0])

    async def spec(self, job_id: str) -> JobSpec | None:
        rows = await self._file.read(f"SELECT spec FROM jobs WHERE {KEPT}", id=job_id, now=self._clock())
        return load_spec(rows[0][0]) if rows else None

    async def record(self, job_id: str) -> JobRecord | None:
        rows = await self._file.read(f"SELECT record FROM jobs WHERE {KEPT}", id=job_id, now=self._clock())
        return load_record(rows[0][0]) if rows else None

    async def pictures(self, job_id: str) -> tuple[Pictures, ...]:
        query = f"SELECT data FROM pictures JOIN jobs ON jobs.id = job_id WHERE {KEPT}"
        rows = await self._file.read(query, id=job_id, now=self._clock())
        return await asyncio.to_thread(load_pictures, rows[0][0]) if rows else ()

    async def outcomes(self, job_id: str) -> Mapping[int, EditOutcome]:
        query = f"SELECT edit, rest, picture FROM outcomes JOIN jobs ON jobs.id = job_id WHERE {KEPT}"
        rows = await self._file.read(query, id=job_id, now=self._clock())
        return {index: load_outcome(rest, picture) for index, rest, picture in rows}

    async def add_outcome(self, job_id: str, owner: str, index: int, outcome: EditOutcome) -> bool:
        now, mine = self._clock(), self._boot + owner
        return await self._file.write(lambda db: _add_outcome(db, job_id, mine, index, outcome, now))

    async def update(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._change(job_id, lambda stored: stored.updated(self._boot + owner, record))

    async def complete(self, job_id: str, owner: str, record: JobRecord, index: int, outcome: EditOutcome) -> bool:
        now, mine = self._clock(), self._boot + owner

        def work(db: sqlite3.Connection) -> bool:
            _add_outcome(db, job_id, mine, index, outcome, now)
            return _change(db, job_id, lambda stored: stored.updated(mine, record), False, now)

        return await self._file.write(work)

    async def cancel(self, job_id: str, ended_at: float) -> bool:
        return await self._change(job_id, lambda stored: stored.cancelled(ended_at))

    async def reopen(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._change(job_id, lambda stored: stored.reopened(self._boot + owner, record), afresh=True)

    async def condemn(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._file.write(lambda db: _condemn(db, job_id, self._boot + owner, record))

    async def beat(self, owner: str, lease_s: float) -> Mapping[str, JobState]:
        expires_at = self._lease_clock() + lease_s
        return await self._file.write(lambda db: _beat(db, self._boot + owner, expires_at))

    async def adopt(self, owner: str) -> Sequence[str]:
        now = self._lease_clock()
        return await self._file.write(lambda db: _adopt(db, self._boot + owner, self._boot, now))

    async def open_jobs(self) -> Mapping[str, JobState]:
        rows = await self._file.read("SELECT id, state FROM jobs WHERE expires_at IS NULL")
        return {job_id: load_state(state) for job_id, state in rows}

    async def sweep(self) -> None:
        now = self._clock()
        # Mostly there is nothing to delete, and a read costs less than a transaction.
        if await self._file.read("SELECT 1 FROM jobs WHERE expires_at <= :now LIMIT 1", now=now):
            await self._file.write(lambda db: _delete_expired_jobs(db, now))
        boot, leases_now = self._boot, self._lease_clock()
        if await self._file.read(f"SELECT 1 FROM leases WHERE {EXPIRED} LIMIT 1", boot=boot, now=leases_now):
            await self._file.write(lambda db: _delete_expired_leases(db, boot, leases_now))
        await self._file.shrink()

    async def close(self) -> None:
        await self._file.close()

    @staticmethod
    def is_damage(problem: Exception) -> bool:
        # The primary code is the lowest byte.
        return getattr(problem, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT

    async def _change(
        self, job_id: str, rule: Callable[[StoredState], StoredState | None], *, afresh: bool = False
    ) -> bool:
        now = self._clock()
        return await self._file.write(lambda db: _change(db, job_id, rule, afresh, now))


# Each of the following functions is part of one transaction.


def _add(
    db: sqlite3.Connection, spec: JobSpec, pictures: bytes, stored: StoredState, limits: ByteLimits, now: float
) -> str:
    _delete_expired_jobs(db, now)
    values: dict[str, Any] = {
        "id": spec.id,
        "state": stored.record.state,
        "owner": stored.owner,
        "expires_at": stored.expires_at,
        "retention_s": spec.retention_s,
        "repeat_key": spec.repeat_key.key if spec.repeat_key is not None else None,
        "fingerprint": fingerprint_of(spec.repeat_key),
        "record": dump_record(stored.record),
        "spec": dump_spec(spec),
        "client": spec.client,
    }
    if (same := db.execute(SAME_JOB, {**values, "now": now}).fetchone()) is not None:
        require_same(same[1], values["fingerprint"])
        return str(same[0])
    values["num_bytes"] = len(values["spec"]) + len(pictures)
    held = db.execute(HELD_BYTES, values).fetchone()
    limits.require_space(*(num_bytes + values["num_bytes"] for num_bytes in held))
    columns = ", ".join(values), ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT INTO jobs ({columns[0]}) VALUES ({columns[1]})", values)
    db.execute("INSERT INTO pictures VALUES (?, ?)", (spec.id, pictures))
    return spec.id


def _add_outcome(db: sqlite3.Connection, job_id: str, owner: str, index: int, outcome: EditOutcome, now: float) -> bool:
    stored = _stored_state(db, job_id, now)
    if stored is None or not stored.takes_outcomes(owner):
        return False
    db.execute("REPLACE INTO outcomes VALUES (?, ?, ?, ?)", (job_id, index, *dump_outcome(outcome)))
    _count_bytes(db, job_id)
    return True


def _stored_state(db: sqlite3.Connection, job_id: str, now: float) -> StoredState | None:
    query = f"SELECT record, owner, retention_s FROM jobs WHERE {KEPT}"
    row = db.execute(query, {"id": job_id, "now": now}).fetchone()
    return None if row is None else StoredState(load_record(row[0]), *row[1:])


def _change(
    db: sqlite3.Connection, job_id: str, rule: Callable[[StoredState], StoredState | None], afresh: bool, now: float
) -> bool:
    stored = _stored_state(db, job_id, now)
    if stored is None or (new := rule(stored)) is None:
        return False
    if afresh:
        db.execute("DELETE FROM outcomes WHERE job_id = ?", (job_id,))
    _write(db, job_id, new)
    return True


def _condemn(db: sqlite3.Connection, job_id: str, owner: str, record: JobRecord) -> bool:
    query = "SELECT retention_s FROM jobs WHERE id = ? AND owner = ? AND expires_at IS NULL"
    row = db.execute(query, (job_id, owner)).fetchone()
    if row is None:
        return False
    _write(db, job_id, StoredState(record, owner, row[0]))
    return True


def _write(db: sqlite3.Connection, job_id: str, new: StoredState) -> None:
    db.execute(
        "UPDATE jobs SET record = ?, state = ?, owner = ?, expires_at = ? WHERE id = ?",
        (dump_record(new.record), new.record.state, new.owner, new.expires_at, job_id),
    )
    if not new.record.state.needs_pictures:
        db.execute("DELETE FROM pictures WHERE job_id = ?", (job_id,))
    _count_bytes(db, job_id)


def _count_bytes(db: sqlite3.Connection, job_id: str) -> None:
    db.execute(f"UPDATE jobs SET num_bytes = {COUNTED_BYTES} WHERE id = ?", (job_id,))


def _beat(db: sqlite3.Connection, owner: str, expires_at: float) -> dict[str, JobState]:
    db.execute("REPLACE INTO leases VALUES (?, ?)", (owner, expires_at))
    rows = db.execute("SELECT id, state FROM jobs WHERE owner = ? AND expires_at IS NULL", (owner,))
    return {job_id: load_state(state) for job_id, state in rows}


def _adopt(db: sqlite3.Connection, owner: str, boot: str, now: float) -> list[str]:
    _delete_expired_leases(db, boot, now)
    rows = db.execute(
        """UPDATE jobs SET owner = :owner
        WHERE expires_at IS NULL AND owner != :owner AND owner NOT IN (SELECT owner FROM leases) RETURNING id""",
        {"owner": owner},
    )
    return [row[0] for row in rows]


def _delete_expired_jobs(db: sqlite3.Connection, now: float) -> None:
    db.execute("DELETE FROM jobs WHERE expires_at <= ?", (now,))


def _delete_expired_leases(db: sqlite3.Connection, boot: str, now: float) -> None:
    db.execute(f"DELETE FROM leases WHERE {EXPIRED}", {"boot": boot, "now": now})
