"""Notifies webhooks of the ends of their jobs."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
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
        self.ends: Counter[str] = Counter()

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
            job = await self._store.call_until_done(lambda store: read_job(store, spec.id, record), is_write=False)
        except (JobNotFound, JobUnreadable) as problem:
            logger.error("the webhook of job %s is not notified: %s", spec.id, problem)
            return
        body = await asyncio.to_thread(self._body, spec, job)
        taken = await notify_webhook(spec.id, url, body, self._settings)
        self.ends["taken" if taken else "refused"] += 1

    async def _settle(self, job_id: str, record: JobRecord, store: Store) -> None:
        if await store.record(job_id) == record:  # not where it was retried meanwhile
            await store.update(job_id, self._owner, replace(record, webhook_pending=False))


async def notify_webhook(job_id: str, url: str, body: bytes, settings: JobSettings) -> bool:
    """POST a JSON body, at most `NUM_ATTEMPTS` times until the answer is 200. Returns whether it was.

    The URL is checked against the settings again: they may have changed since the job was accepted.
    """
    outbound = Outbound(settings.webhook_origins, settings.webhook_private_networks, settings.webhook_timeout_s)
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            await asyncio.sleep(settings.webhook_gap_s)
        if await _taken(job_id, url, body, outbound):
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
