"""Jobs as a Serve deployment: one replica, input and output only."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentHandle

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobCounts, JobNews, JobSpec
from serve_app.edits.request import Pictures
from serve_app.edits.service import EditService
from serve_app.errors import ServiceUnavailable
from serve_app.handles import EditorHandle, RewriterHandle, share
from serve_app.jobs.metrics import JobMetrics
from serve_app.jobs.service import JobService
from serve_app.jobs.stores import STORE_PROBLEMS, open_store
from serve_app.logs import join_serve_logs

logger = logging.getLogger(__name__)


class Jobs:
    """A JobService behind a handle. Undecorated: `serve_app.app` knows the deployment options."""

    def __init__(
        self,
        settings: JobSettings,
        editor: "DeploymentHandle[Any]",
        rewriter: "DeploymentHandle[Any] | None",
        webhook_body: Callable[[JobSpec, Job], bytes],
        rewriter_wait_s: float,
    ) -> None:
        join_serve_logs()
        rewriter_port = RewriterHandle(rewriter, rewriter_wait_s) if rewriter is not None else None
        service = EditService(EditorHandle(editor), rewriter_port)
        self._jobs = JobService(settings, service, open_store(settings.store), share, webhook_body)
        self._metrics = JobMetrics()
        # Serve makes replicas on their event loop.
        self._start = asyncio.ensure_future(self._jobs.start())

    @asynccontextmanager
    async def _ready(self) -> "AsyncIterator[JobService[ObjectRef[Pictures]]]":
        await self._start
        try:
            yield self._jobs
        except STORE_PROBLEMS as problem:
            logger.exception("the store of jobs failed")
            raise ServiceUnavailable("The store of jobs cannot be reached; try again.") from problem

    async def room(self) -> int:
        async with self._ready() as jobs:
            return await jobs.room()

    async def submit(self, spec: JobSpec, *pictures: Pictures) -> str:
        async with self._ready() as jobs:
            return await jobs.submit(spec, pictures)

    async def wait(self, job_id: str, wait_s: float) -> Job:
        async with self._ready() as jobs:
            return await jobs.wait(job_id, wait_s)

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        async with self._ready() as jobs:
            return await jobs.news(job_id, wait_s)

    async def cancel(self, job_id: str) -> Job:
        async with self._ready() as jobs:
            return await jobs.cancel(job_id)

    async def retry(self, job_id: str) -> Job:
        async with self._ready() as jobs:
            return await jobs.retry(job_id)

    async def purge(self) -> int:
        async with self._ready() as jobs:
            return await jobs.purge()

    async def counts(self) -> JobCounts:
        async with self._ready() as jobs:
            return await jobs.counts()

    async def fault(self) -> str | None:
        return await self._jobs.fault()

    async def check_health(self) -> None:
        await self._start
        self._metrics.update(await self._jobs.counts(), self._jobs.ends, self._jobs.webhook_ends)

    async def __del__(self) -> None:
        # Serve awaits this at the end of a graceful shutdown.
        await self._jobs.close()
