"""The file of a SqliteStore: readable by its owner only, safe against power loss, and used by one thread."""

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from serve_app.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

VERSION = 1
"""Of the schema; stored as the file's user_version."""

BUSY_TIMEOUT_S = 5.0
"""How long to wait for another process's transaction."""

PAGE_BYTES = 32 * 2**10
"""Of new files. A picture of several megabytes takes half the CPU time of SQLite's default of 4 KiB."""

MAX_FREED_BYTES = 8 * 2**20
"""Returned to the file system in one call."""

# `expires_at` is NULL while a job is open. Pictures have a table of their own so that no other query reads them.
SCHEMA = (
    """CREATE TABLE jobs (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, owner TEXT NOT NULL, expires_at REAL, retention_s REAL NOT NULL,
        repeat_key TEXT UNIQUE, fingerprint TEXT NOT NULL, record BLOB NOT NULL, spec BLOB NOT NULL
    )""",
    """CREATE TABLE pictures (
        job_id TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, data BLOB NOT NULL
    )""",
    """CREATE TABLE outcomes (
        job_id TEXT REFERENCES jobs ON DELETE CASCADE, edit INTEGER, rest BLOB NOT NULL, picture BLOB NOT NULL,
        PRIMARY KEY (job_id, edit)
    )""",
    "CREATE TABLE leases (owner TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX open_jobs ON jobs (owner, id, state) WHERE expires_at IS NULL",
    "CREATE INDEX ended_jobs ON jobs (expires_at) WHERE expires_at IS NOT NULL",
)
TABLES = {"jobs", "pictures", "outcomes", "leases"}
# Added to files of any age, and to new ones. Older code of this version ignores the columns, and the triggers keep the
# sums even when it deletes jobs.
_ADD_TO_SUM = "ON CONFLICT (client) DO UPDATE SET num_bytes = num_bytes + excluded.num_bytes; END"
BYTE_COUNTS = (
    "ALTER TABLE jobs ADD COLUMN client TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE jobs ADD COLUMN num_bytes INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX uncounted_jobs ON jobs (id) WHERE num_bytes = 0",
    "CREATE TABLE held (client TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL) WITHOUT ROWID",
    f"""CREATE TRIGGER job_inserted AFTER INSERT ON jobs
        BEGIN INSERT INTO held VALUES (NEW.client, NEW.num_bytes) {_ADD_TO_SUM}""",
    f"""CREATE TRIGGER job_counted AFTER UPDATE OF num_bytes ON jobs
        BEGIN INSERT INTO held VALUES (NEW.client, NEW.num_bytes - OLD.num_bytes) {_ADD_TO_SUM}""",
    f"""CREATE TRIGGER job_deleted AFTER DELETE ON jobs
        BEGIN INSERT INTO held VALUES (OLD.client, -OLD.num_bytes) {_ADD_TO_SUM}""",
)
COUNTED_BYTES = """length(spec)
    + coalesce((SELECT length(data) FROM pictures WHERE job_id = jobs.id), 0)
    + coalesce((SELECT sum(length(rest) + length(picture)) FROM outcomes WHERE job_id = jobs.id), 0)"""
"""A job's bytes as they are. SQLite reads a blob's length without the blob."""
# The first two can be set only while the file is empty.
PRAGMAS = (
    f"page_size = {PAGE_BYTES}",
    "auto_vacuum = INCREMENTAL",
    "journal_mode = WAL",
    "wal_autocheckpoint = 256",  # pages, so that the log has about 8 MiB
    "synchronous = FULL",
    f"journal_size_limit = {64 * 2**20}",
    "foreign_keys = ON",
    "secure_delete = FAST",  # Debian's SQLite else writes zeros over all that is deleted: each picture a second time
)


class SqliteFile:
    """Opened at the first use, which raises a ConfigError where that fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._is_recovering = False
        self._closed = False

    async def read(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        return await self._run(lambda: self._opened().execute(query, values).fetchall())

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction, which is rolled back if it raises."""
        return await self._run(lambda: _transact(self._opened(), work))

    async def shrink(self) -> None:
        """Return up to `MAX_FREED_BYTES` of free pages to the file system."""
        await self._run(lambda: _shrink(self._opened()))

    async def close(self) -> None:
        """Close for good; a second call does nothing."""
        if not self._closed:
            self._closed = True
            await self._run(self._close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = _open(self._path)
            self._identity = _identity(self._path)
        elif _identity(self._path) != self._identity:
            self._db = self._recovered(self._db)
            self._identity = _identity(self._path)
        return self._db

    def _recovered(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """A connection to the file that is at the path now, after it was deleted or replaced while open. The old
        connection can still read the old file's jobs; they are added to the new file.

        Raises:
            sqlite3.OperationalError: the new file cannot be used. Only at the first use is that a ConfigError.
        """
        if not self._is_recovering:
            self._is_recovering = True
            logger.error("%s was deleted or replaced while in use; restoring its jobs", self._path)
        try:
            with _locked(self._path.parent):
                if _identity(self._path) is None:
                    # SQLite would read the deleted file's log into the new one.
                    for ending in ("-wal", "-shm"):
                        self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
                new = _open(self._path)
        except ConfigError as problem:
            raise sqlite3.OperationalError(str(problem)) from problem
        try:
            _transact(new, partial(_add_all, db))
        except BaseException:
            new.close()
            raise
        db.close()
        self._is_recovering = False
        return new

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _open(path: Path) -> sqlite3.Connection:
    try:
        _make_private(path)
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            _set_up(db, path)
        except BaseException:
            db.close()
            raise
    except (OSError, sqlite3.Error) as problem:
        raise ConfigError(
            f"jobs.store.path: {path} cannot be used ({problem}); name a file on a local disk that this user may write."
        ) from problem
    return db


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at the path; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the folder, which is created if it is missing, against other processes of this service."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _add_all(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Add all jobs of `old` that `new` lacks. A job that both have is newer in `new`."""
    for row in old.execute("SELECT * FROM jobs"):
        new.execute(f"INSERT OR IGNORE INTO jobs VALUES ({', '.join('?' * len(row))})", row)
    kept = {job_id for (job_id,) in new.execute("SELECT id FROM jobs")}
    for table in ("pictures", "outcomes"):
        for row in old.execute(f"SELECT * FROM {table}"):
            if row[0] in kept:
                new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)


def _make_private(path: Path) -> None:
    """Create the file with mode 0600, or set that. SQLite creates the files beside it with the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        # By name: closing a second descriptor of a file that this process has open would drop SQLite's locks.
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    if _version(db) > VERSION:
        raise ConfigError(
            f"jobs.store.path: {path} was written by a newer version (schema {_version(db)}, known here: {VERSION}); "
            "update, or name another file."
        )
    for pragma in PRAGMAS:
        db.execute(f"PRAGMA {pragma}").fetchall()
    _transact(db, _make_schema)
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if missing := TABLES - found:
        raise ConfigError(
            f"jobs.store.path: {path} is no store of jobs: it has no table {', '.join(sorted(missing))}. "
            "Name another file."
        )
    _transact(db, _add_byte_counts)


def _add_byte_counts(db: sqlite3.Connection) -> None:
    """Add the columns that count bytes if they are missing, and fill them for jobs that older code has stored."""
    if "num_bytes" not in {column[1] for column in db.execute("PRAGMA table_info(jobs)")}:
        for statement in BYTE_COUNTS:
            db.execute(statement)
    db.execute(f"UPDATE jobs SET num_bytes = {COUNTED_BYTES} WHERE num_bytes = 0")


def _make_schema(db: sqlite3.Connection) -> None:
    if _version(db) == VERSION:
        return
    for statement in SCHEMA:
        db.execute(statement)
    db.execute(f"PRAGMA user_version = {VERSION}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _transact(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        done = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return done


def _shrink(db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA freelist_count").fetchone()[0]:
        # Each step of this statement frees one page, and `execute` takes one step only.
        num_pages = MAX_FREED_BYTES // db.execute("PRAGMA page_size").fetchone()[0]
        db.executescript(f"PRAGMA incremental_vacuum({num_pages})")
        # The file itself shrinks when the log is written to it.
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
