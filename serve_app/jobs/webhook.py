"""Notifies webhooks of the ends of their jobs."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobRecord, JobSpec
from serve_app.errors import JobNotFound, JobUnreadable
from serve_app.jobs.store_link import StoreLink
from serve_app.jobs.stores.store import Store, read_job
from serve_app.net.outbound import Outbound, Unreachable

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 3

MAX_DELIVERIES = 16
"""Attempts that run at once; each holds a body, which may be some 20 MB."""

MAX_DELIVERIES_OF_CLIENT = 4
"""Those of one client, whose webhooks may be slow."""

_HEADERS = {"content-type": "application/json", "user-agent": "qwen-camera-edit"}


class WebhookNotifier:
    """Notifies in the background, one notification per job at a time, and stores that it was done. If this replica
    dies before that, its successor notifies again. Lives on one event loop.

    Args:
        owner: this replica's name in the store.
        body: what a webhook receives.
        spawn: runs something in the background.

    Attributes:
        ends: how often webhooks took or refused a notification ("taken", "refused").
    """

    def __init__(
        self,
        owner: str,
        store: StoreLink,
        settings: JobSettings,
        body: Callable[[JobSpec, Job], bytes],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._owner = owner
        self._store = store
        self._settings = settings
        self._body = body
        self._spawn = spawn
        self._notifying: set[str] = set()
        self._places = asyncio.Semaphore(MAX_DELIVERIES)
        # There are as many clients as API keys.
        self._places_of_client = defaultdict[str, asyncio.Semaphore](
            lambda: asyncio.Semaphore(MAX_DELIVERIES_OF_CLIENT)
        )
        self.ends: Counter[str] = Counter()

    @property
    def num_notifying(self) -> int:
        return len(self._notifying)

    def is_notifying(self, job_id: str) -> bool:
        return job_id in self._notifying

    def notify(self, spec: JobSpec, record: JobRecord) -> None:
        """Notify a job's webhook of its end."""
        if spec.id not in self._notifying:
            self._notifying.add(spec.id)
            self._spawn(self._notify(spec, record))

    async def _notify(self, spec: JobSpec, record: JobRecord) -> None:
        try:
            if spec.webhook is not None:
                await self._deliver(spec, spec.webhook, record)
            await self._store.call_until_done(partial(self._settle, spec.id, record))
        finally:
            self._notifying.discard(spec.id)

    async def _deliver(self, spec: JobSpec, url: str, record: JobRecord) -> None:
        try:
            taken = await notify_webhook(
                spec.id, url, partial(self._read_body, spec, record), self._settings, partial(self._place, spec.client)
            )
        except (JobNotFound, JobUnreadable) as problem:
            logger.error("the webhook of job %s is not notified: %s", spec.id, problem)
            return
        self.ends["taken" if taken else "refused"] += 1

    @asynccontextmanager
    async def _place(self, client: str) -> AsyncIterator[None]:
        async with self._places_of_client[client], self._places:
            yield

    async def _read_body(self, spec: JobSpec, record: JobRecord) -> bytes:
        job = await self._store.call_until_done(lambda store: read_job(store, spec.id, record), is_write=False)
        return await asyncio.to_thread(self._body, spec, job)

    async def _settle(self, job_id: str, record: JobRecord, store: Store) -> None:
        if await store.record(job_id) == record:  # not where it was retried meanwhile
            await store.update(job_id, self._owner, replace(record, webhook_pending=False))


async def notify_webhook(
    job_id: str,
    url: str,
    read_body: Callable[[], Awaitable[bytes]],
    settings: JobSettings,
    place: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> bool:
    """POST a JSON body, at most `NUM_ATTEMPTS` times until the answer is 200. Returns whether it was.

    The URL is checked against the settings again: they may have changed since the job was accepted.

    Args:
        read_body: called for each attempt, so that no body is held between them.
        place: bounds the attempts that run at once.
    """
    outbound = Outbound(settings.webhook_origins, settings.webhook_private_networks, settings.webhook_timeout_s)
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            await asyncio.sleep(settings.webhook_gap_s)
        async with place():
            if await _taken(job_id, url, await read_body(), outbound):
                return True
    logger.warning("the webhook of job %s did not take its end", job_id)
    return False


async def _taken(job_id: str, url: str, body: bytes, outbound: Outbound) -> bool:
    try:
        async with outbound.exchange("POST", url, _HEADERS, body) as response:
            return response.status_code == 200
    except Unreachable as problem:
        logger.info("the webhook of job %s could not be reached: %s", job_id, problem)
        return False
