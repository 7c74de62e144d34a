"""What changes the jobs of a SqliteStore; each function is part of one transaction."""

import sqlite3
from collections.abc import Callable
from typing import Any

from serve_app.config import MAX_LEASE_S
from serve_app.edits.job import JobRecord, JobSpec, JobState
from serve_app.edits.request import EditOutcome
from serve_app.jobs.stores.codec import dump_outcome, dump_record, dump_spec, load_record, load_state
from serve_app.jobs.stores.repeats import fingerprint_of, require_same
from serve_app.jobs.stores.standing import StoredState

KEPT = "jobs.id = :id AND (expires_at IS NULL OR expires_at > :now)"
"""Picks a job that is not to be forgotten yet, though it may lie there until the next sweep."""

OVER = f"""expires_at <= :now OR expires_at > :now + {MAX_LEASE_S} OR substr(owner, 1, length(:boot)) != :boot"""
"""Picks leases that have run out, by the clock of this boot. Those of another boot or machine are over. Where boots
have no id, so are those that have more time left than any lease is given."""

SAME = """SELECT id, fingerprint FROM jobs
    WHERE (id = :id OR repeat_key = :repeat_key) AND (expires_at IS NULL OR expires_at > :now)
    ORDER BY id = :id DESC"""
"""Picks the kept job of an id, or else of a repeat key."""


def add(db: sqlite3.Connection, spec: JobSpec, pictures: bytes, standing: StoredState, now: float) -> str:
    forget_jobs(db, now)
    values: dict[str, Any] = {
        "id": spec.id,
        "state": standing.record.state,
        "owner": standing.owner,
        "expires_at": standing.expires_at,
        "retention_s": spec.retention_s,
        "repeat_key": spec.repeat_key.key if spec.repeat_key is not None else None,
        "fingerprint": fingerprint_of(spec.repeat_key),
        "record": dump_record(standing.record),
        "spec": dump_spec(spec),
    }
    if (stored := db.execute(SAME, {**values, "now": now}).fetchone()) is not None:
        require_same(stored[1], values["fingerprint"])
        return str(stored[0])
    columns = ", ".join(values), ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT INTO jobs ({columns[0]}) VALUES ({columns[1]})", values)
    db.execute("INSERT INTO pictures VALUES (?, ?)", (spec.id, pictures))
    return spec.id


def add_outcome(db: sqlite3.Connection, job_id: str, owner: str, index: int, outcome: EditOutcome, now: float) -> bool:
    standing = standing_of(db, job_id, now)
    if standing is None or not standing.takes_outcomes(owner):
        return False
    db.execute("REPLACE INTO outcomes VALUES (?, ?, ?, ?)", (job_id, index, *dump_outcome(outcome)))
    return True


def standing_of(db: sqlite3.Connection, job_id: str, now: float) -> StoredState | None:
    query = f"SELECT record, owner, retention_s FROM jobs WHERE {KEPT}"
    row = db.execute(query, {"id": job_id, "now": now}).fetchone()
    return None if row is None else StoredState(load_record(row[0]), *row[1:])


def change(
    db: sqlite3.Connection, job_id: str, rule: Callable[[StoredState], StoredState | None], afresh: bool, now: float
) -> bool:
    standing = standing_of(db, job_id, now)
    if standing is None or (new := rule(standing)) is None:
        return False
    _write(db, job_id, new)
    if afresh:
        db.execute("DELETE FROM outcomes WHERE job_id = ?", (job_id,))
    return True


def condemn(db: sqlite3.Connection, job_id: str, owner: str, record: JobRecord) -> bool:
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


def beat(db: sqlite3.Connection, owner: str, expires_at: float) -> dict[str, JobState]:
    db.execute("REPLACE INTO leases VALUES (?, ?)", (owner, expires_at))
    rows = db.execute("SELECT id, state FROM jobs WHERE owner = ? AND expires_at IS NULL", (owner,))
    return {job_id: load_state(state) for job_id, state in rows}


def adopt(db: sqlite3.Connection, owner: str, boot: str, now: float) -> list[str]:
    forget_leases(db, boot, now)
    rows = db.execute(
        """UPDATE jobs SET owner = :owner
        WHERE expires_at IS NULL AND owner != :owner AND owner NOT IN (SELECT owner FROM leases) RETURNING id""",
        {"owner": owner},
    )
    return [row[0] for row in rows]


def forget_jobs(db: sqlite3.Connection, now: float) -> None:
    db.execute("DELETE FROM jobs WHERE expires_at <= ?", (now,))


def forget_leases(db: sqlite3.Connection, boot: str, now: float) -> None:
    db.execute(f"DELETE FROM leases WHERE {OVER}", {"boot": boot, "now": now})
