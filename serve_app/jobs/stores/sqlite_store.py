"""Jobs in one SQLite file: they survive the death of the process and of the machine, not the loss of the disk."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from serve_app.config import SqliteStoreSettings
from serve_app.edits.job import JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.jobs.stores import sqlite_jobs
from serve_app.jobs.stores.codec import dump_pictures, load_outcome, load_pictures, load_record, load_spec, load_state
from serve_app.jobs.stores.repeats import fingerprint_of, require_same
from serve_app.jobs.stores.sqlite_file import SqliteFile
from serve_app.jobs.stores.sqlite_jobs import KEPT, OVER
from serve_app.jobs.stores.standing import StoredState
from serve_app.jobs.stores.store import Store


def boot_time() -> float:
    """Seconds since this machine's boot; on Linux, sleep included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@cache
def boot_id() -> str:
    """This boot of this machine, as Linux names it; empty where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class SqliteStore(Store):
    """Several processes may have the file open, as an old and a new replica do for a while.

    The first use opens the file and raises a ConfigError where that fails.

    Leases run on the clock of the machine's boot, which nobody sets back; an owner's name in the file begins with the
    boot's id, since that clock means nothing after another boot.

    Args:
        clock: seconds since the epoch, as the records have them; expiry runs on it.
        lease_clock: seconds, the same in all processes of this machine.
    """

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

    async def add(self, spec: JobSpec, pictures: Sequence[Pictures], record: JobRecord, owner: str) -> str:
        data = await asyncio.to_thread(dump_pictures, pictures)
        standing = StoredState(record, self._boot + owner, spec.retention_s)
        now = self._clock()
        return await self._file.write(lambda db: sqlite_jobs.add(db, spec, data, standing, now))

    async def find(self, job_id: str | None, repeat_key: RepeatKey | None) -> str | None:
        key = None if repeat_key is None else repeat_key.key
        rows = await self._file.read(sqlite_jobs.SAME, id=job_id, repeat_key=key, now=self._clock())
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
        return await self._file.write(lambda db: sqlite_jobs.add_outcome(db, job_id, mine, index, outcome, now))

    async def update(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._change(job_id, lambda standing: standing.updated(self._boot + owner, record))

    async def cancel(self, job_id: str, ended_at: float) -> bool:
        return await self._change(job_id, lambda standing: standing.cancelled(ended_at))

    async def reopen(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._change(job_id, lambda standing: standing.reopened(self._boot + owner, record), afresh=True)

    async def condemn(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._file.write(lambda db: sqlite_jobs.condemn(db, job_id, self._boot + owner, record))

    async def beat(self, owner: str, lease_s: float) -> Mapping[str, JobState]:
        expires_at = self._lease_clock() + lease_s
        return await self._file.write(lambda db: sqlite_jobs.beat(db, self._boot + owner, expires_at))

    async def adopt(self, owner: str) -> Sequence[str]:
        now = self._lease_clock()
        return await self._file.write(lambda db: sqlite_jobs.adopt(db, self._boot + owner, self._boot, now))

    async def open_jobs(self) -> Mapping[str, JobState]:
        rows = await self._file.read("SELECT id, state FROM jobs WHERE expires_at IS NULL")
        return {job_id: load_state(state) for job_id, state in rows}

    async def sweep(self) -> None:
        now = self._clock()
        # Most of the time there is nothing to do, and a look costs less than a transaction.
        if await self._file.read("SELECT 1 FROM jobs WHERE expires_at <= :now LIMIT 1", now=now):
            await self._file.write(lambda db: sqlite_jobs.forget_jobs(db, now))
        boot, leases_now = self._boot, self._lease_clock()
        if await self._file.read(f"SELECT 1 FROM leases WHERE {OVER} LIMIT 1", boot=boot, now=leases_now):
            await self._file.write(lambda db: sqlite_jobs.forget_leases(db, boot, leases_now))
        await self._file.shrink()

    async def close(self) -> None:
        await self._file.close()

    async def _change(
        self, job_id: str, rule: Callable[[StoredState], StoredState | None], *, afresh: bool = False
    ) -> bool:
        now = self._clock()
        return await self._file.write(lambda db: sqlite_jobs.change(db, job_id, rule, afresh, now))
