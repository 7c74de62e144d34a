"""Jobs replicas for tests: a JobService over a store that can be cut off."""

import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobSpec, JobState, Policy
from serve_app.edits.request import EditRequest, SharedPictures
from serve_app.edits.service import EditorPort, EditService, RewriterPort
from serve_app.edits.sizes import OutputSize, Size
from serve_app.jobs.service import JobService
from serve_app.jobs.stores.store import Store

SIZE = Size(64, 64)

Replica = JobService


class CutOffStore:
    """A Store whose methods raise `problem` while `away` is set, all but those in `spared`. It is set after the call
    that `away_after` names: a method, and the number of its call. `calls` has the names of all calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.problem: Exception = sqlite3.OperationalError("disk I/O error")
        self.calls: list[str] = []
        self.spared = {"close"}
        self.away_after: tuple[str, int] | None = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def call(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            if self.away and name not in self.spared:
                raise self.problem
            result = await method(*args, **options)
            if (name, self.calls.count(name)) == self.away_after:
                self.away = True
            return result

        return call

    @property
    def as_store(self) -> Store:
        return cast(Store, self)


def spec(name: str, *prompts: str, rewrite: bool = False, policy: Policy | None = None, **more: Any) -> JobSpec:
    """A job of one edit per prompt; by default the only prompt is its name."""
    edits = tuple(
        EditRequest(request_id=name, prompt=prompt, rewrite_prompt=rewrite, size=OutputSize(SIZE, SIZE))
        for prompt in prompts or (name,)
    )
    more = {"retention_s": 60.0, **more}
    return JobSpec(name, edits, (0,) * len(edits), 42, policy or Policy(), **more)


def body(spec: JobSpec, job: Job) -> bytes:
    return json.dumps({"id": spec.id, "status": job.record.state}).encode()


@asynccontextmanager
async def replica_on(
    store: Store,
    editor: EditorPort,
    rewriter: RewriterPort | None = None,
    clock: Callable[[], float] = time.time,
    **settings: Any,
) -> AsyncIterator[Replica]:
    """A replica over an open store, with short leases and pauses; closed at the end."""
    job_settings = JobSettings(**{"lease_s": 1.0, "webhook_gap_s": 0.0, **settings})
    service = JobService(job_settings, EditService(editor, rewriter), store, SharedPictures, body, clock)
    await service.start()
    try:
        yield service
    finally:
        await service.close()


async def state(service: Replica, job_id: str, wait_s: float = 20) -> JobState:
    return (await service.wait(job_id, wait_s)).state
