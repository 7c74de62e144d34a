"""Jobs in Redis: they survive the loss of a node if Redis does (appendonly, no eviction)."""

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError, ResponseError

from serve_app.config import RedisStoreSettings
from serve_app.edits.job import JobRecord, JobSpec, JobState, RepeatKey
from serve_app.edits.request import EditOutcome, Pictures
from serve_app.jobs.stores import redis_scripts
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
    reading,
)
from serve_app.jobs.stores.store import UNLIMITED, ByteLimits, Store, StoredState, fingerprint_of, require_same

PASSWORD_VARIABLE = "CAMERA_EDIT_REDIS_PASSWORD"

MAX_CONNECTIONS = 32
"""Commands that run at once; others wait."""

SOCKET_TIMEOUT_S = 5.0
"""For one command or its answer, including the pictures of a large job."""

NUM_RETRIES = 8
MAX_RETRY_PAUSE_S = 0.5

STAGING_MS = 60_000
"""How long pictures are kept whose job is not stored."""

LOST_RETENTION_S = 3600.0
"""For how long a job is kept whose own retention is damaged."""

PICTURE = b":picture"


class RedisStore(Store):
    """Needs Redis 6 or newer, and not Redis Cluster: a script changes several keys. Lives on one event loop.

    The first use connects. redis-py's errors pass through if Redis is away for longer than some seconds.

    Args:
        clock: seconds since the epoch, for the time that an ended job has left. Leases and expiry use Redis' clock.
    """

    errors = (RedisError,)

    def __init__(self, settings: RedisStoreSettings, clock: Callable[[], float] = time.time) -> None:
        self._prefix = settings.prefix
        self._clock = clock
        self._redis = _open(settings.url)
        # redis-py's own methods are typed as if an answer could be text.
        self._execute: Callable[..., Awaitable[Any]] = self._redis.execute_command
        self._add = self._redis.register_script(redis_scripts.ADD)
        self._add_outcome = self._redis.register_script(redis_scripts.ADD_OUTCOME)
        self._change = self._redis.register_script(redis_scripts.CHANGE)
        self._adopt = self._redis.register_script(redis_scripts.ADOPT)
        self._sweep = self._redis.register_script(redis_scripts.SWEEP)

    async def add(
        self,
        spec: JobSpec,
        pictures: Sequence[Pictures],
        record: JobRecord,
        owner: str,
        limits: ByteLimits = UNLIMITED,
    ) -> str:
        stored = StoredState(record, owner, spec.retention_s)
        staged = self._key("staged", _call())
        data = await asyncio.to_thread(dump_pictures, pictures)
        await self._redis.set(staged, data, px=STAGING_MS)
        repeat = self._key("repeat", spec.repeat_key.key) if spec.repeat_key is not None else ""
        fields = _fields(spec, stored)
        places = [staged, spec.id, repeat, *self._listing(stored)]
        bounds = [spec.client, str(len(fields["spec"]) + len(data)), str(limits.total), str(limits.per_client)]
        parts = (part for field in fields.items() for part in field)
        job_id, fingerprint, total, of_client = await self._add(args=[self._prefix, *places, *bounds, *parts])
        limits.require_space(int(total), int(of_client))
        require_same(fingerprint.decode(), fingerprint_of(spec.repeat_key))
        return str(job_id.decode())

    async def find(self, job_id: str | None, repeat_key: RepeatKey | None) -> str | None:
        stored = await self._fingerprint(job_id)
        if stored is None and repeat_key is not None:
            found = await self._execute("GET", self._key("repeat", repeat_key.key))
            job_id = None if found is None else found.decode()
            stored = await self._fingerprint(job_id)
        if stored is None:
            return None
        require_same(stored, fingerprint_of(repeat_key))
        return job_id

    async def _fingerprint(self, job_id: str | None) -> str | None:
        stored = None if job_id is None else await self._execute("HGET", self._key("job", job_id), "fingerprint")
        return None if stored is None else str(stored.decode())

    async def spec(self, job_id: str) -> JobSpec | None:
        data = await self._execute("HGET", self._key("job", job_id), "spec")
        return None if data is None else load_spec(data)

    async def record(self, job_id: str) -> JobRecord | None:
        data = await self._execute("HGET", self._key("job", job_id), "record")
        return None if data is None else load_record(data)

    async def pictures(self, job_id: str) -> tuple[Pictures, ...]:
        data = await self._execute("GET", self._key("pictures", job_id))
        return () if data is None else await asyncio.to_thread(load_pictures, data)

    async def outcomes(self, job_id: str) -> Mapping[int, EditOutcome]:
        fields = await self._execute("HGETALL", self._key("outcomes", job_id))
        indices = [index for index in fields if not index.endswith(PICTURE)]
        with reading("outcomes"):
            return {int(index): load_outcome(fields[index], fields[index + PICTURE]) for index in indices}

    async def add_outcome(self, job_id: str, owner: str, index: int, outcome: EditOutcome) -> bool:
        allowed = [_entry(JobState.IN_QUEUE, owner), _entry(JobState.IN_PROGRESS, owner)]
        return bool(await self._add_outcome(args=[self._prefix, job_id, *allowed, index, *dump_outcome(outcome)]))

    async def update(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._rewrite(job_id, lambda stored: stored.updated(owner, record))

    async def cancel(self, job_id: str, ended_at: float) -> bool:
        return await self._rewrite(job_id, lambda stored: stored.cancelled(ended_at))

    async def reopen(self, job_id: str, owner: str, record: JobRecord) -> bool:
        return await self._rewrite(job_id, lambda stored: stored.reopened(owner, record), afresh=True)

    async def condemn(self, job_id: str, owner: str, record: JobRecord) -> bool:
        fields = await self._execute("HMGET", self._key("job", job_id), "record", "owner", "retention_s")
        if fields[1] is None:
            await self._execute("HDEL", self._prefix + "open", job_id)  # only its entry is left
            return False
        if fields[1] != owner.encode() or not await self._execute("HEXISTS", self._prefix + "open", job_id):
            return False
        stored = StoredState(record, owner, _seconds(fields[2]))
        args = [fields[0] or b"", owner, dump_record(record), owner, *self._listing(stored), 0, 1]
        return bool(await self._change(args=[self._prefix, job_id, _call(), *args]))

    async def beat(self, owner: str, lease_s: float) -> Mapping[str, JobState]:
        async with self._redis.pipeline() as pipeline:
            lease_ms = round(lease_s * 1000)
            pipeline.set(self._key("lease", owner), str(lease_ms), px=lease_ms)
            pipeline.hgetall(self._prefix + "open")
            _, entries = await pipeline.execute()
        return {job_id: state for job_id, (state, holder) in _read_entries(entries).items() if holder == owner}

    async def adopt(self, owner: str) -> Sequence[str]:
        # If the answer is lost, the next `beat` returns these jobs as this owner's.
        adopted = await self._adopt(args=[self._prefix, owner, _call()])
        return [job_id.decode() for job_id in adopted]

    async def open_jobs(self) -> Mapping[str, JobState]:
        entries = await self._execute("HGETALL", self._prefix + "open")
        return {job_id: state for job_id, (state, _) in _read_entries(entries).items()}

    async def sweep(self) -> None:
        # Redis deletes expired keys by itself, but their bytes stay counted.
        await self._sweep(args=[self._prefix])

    async def close(self) -> None:
        await self._redis.aclose()

    @staticmethod
    def is_damage(problem: Exception) -> bool:
        # Other errors pass: Redis returns them while it is full, loading or a read-only replica.
        return isinstance(problem, ResponseError) and str(problem).startswith("WRONGTYPE")

    async def _rewrite(
        self, job_id: str, rule: Callable[[StoredState], StoredState | None], *, afresh: bool = False
    ) -> bool:
        """Change a job by `rule`, which returns None to refuse; again where another change came in between."""
        while True:
            fields = await self._execute("HMGET", self._key("job", job_id), "record", "owner", "retention_s")
            if None in fields:
                return False
            record, owner, retention_s = fields
            new = rule(StoredState(load_record(record), owner.decode(), _seconds(retention_s)))
            if new is None:
                return False
            flags = int(afresh), int(new.record.state.needs_pictures)
            args = [record, owner, dump_record(new.record), new.owner, *self._listing(new), *flags]
            if await self._change(args=[self._prefix, job_id, _call(), *args]):
                return True

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}"

    def _listing(self, stored: StoredState) -> tuple[str, str]:
        """The job's entry in the hash of open jobs, and the milliseconds that it has left if it is not open."""
        entry = _entry(stored.record.state, stored.owner)
        if stored.expires_at is None:
            return entry, ""
        return entry, str(round((stored.expires_at - self._clock()) * 1000))


def _call() -> str:
    return uuid.uuid4().hex


def _fields(spec: JobSpec, stored: StoredState) -> dict[str, str | bytes]:
    return {
        "spec": dump_spec(spec),
        "record": dump_record(stored.record),
        "owner": stored.owner,
        "retention_s": repr(spec.retention_s),
        "fingerprint": fingerprint_of(spec.repeat_key),
        "client": spec.client,
    }


def _entry(state: JobState, owner: str) -> str:
    return f"{state} {owner}"


def _read_entries(entries: Mapping[bytes, bytes]) -> dict[str, tuple[JobState, str]]:
    parts = {job_id.decode(): entry.decode().split(" ", 1) for job_id, entry in entries.items()}
    return {job_id: (load_state(state), owner) for job_id, (state, owner) in parts.items()}


def _seconds(stored: bytes | None) -> float:
    """A job's retention, or `LOST_RETENTION_S` where that is damaged."""
    try:
        return float(stored or b"")
    except ValueError:
        return LOST_RETENTION_S


def _open(url: str) -> Redis:
    """A client that connects at its first use, and reconnects for some 3 seconds if the connection breaks. The pauses
    are short, so that it notices soon that Redis is back."""
    retry = Retry(ExponentialWithJitterBackoff(base=0.1, cap=MAX_RETRY_PAUSE_S), NUM_RETRIES)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=None,
        password=os.environ.get(PASSWORD_VARIABLE),
        socket_timeout=SOCKET_TIMEOUT_S,
        retry=retry,
    )
    return Redis.from_pool(pool)
