"""Jobs as a Serve deployment: one replica, input and output only."""

import asyncio
from collections.abc import Callable
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import JobSettings
from serve_app.edits.job import Job, JobCounts, JobNews, JobSpec, RepeatKey
from serve_app.edits.request import Pictures
from serve_app.edits.service import EditService
from serve_app.jobs.metrics import JobMetrics
from serve_app.jobs.service import JobService
from serve_app.jobs.stores.open import open_store
from serve_app.serving.handles import EditorHandle, RewriterHandle, share
from serve_app.serving.replica import join_serve_logs


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

    async def _ready(self) -> JobService:
        # A caller that is cancelled must not cancel the start.
        await asyncio.shield(self._start)
        return self._jobs

    async def room(self) -> int:
        return await (await self._ready()).room()

    async def submit(self, spec: JobSpec, *pictures: Pictures) -> str:
        return await (await self._ready()).submit(spec, pictures)

    async def find(self, repeat_key: RepeatKey) -> JobSpec | None:
        return await (await self._ready()).find(repeat_key)

    async def wait(self, job_id: str, wait_s: float) -> Job:
        return await (await self._ready()).wait(job_id, wait_s)

    async def news(self, job_id: str, wait_s: float) -> JobNews:
        return await (await self._ready()).news(job_id, wait_s)

    async def cancel(self, job_id: str) -> Job:
        return await (await self._ready()).cancel(job_id)

    async def retry(self, job_id: str, call: str) -> Job:
        return await (await self._ready()).retry(job_id, call)

    async def purge(self) -> int:
        return await (await self._ready()).purge()

    async def counts(self) -> JobCounts:
        return await (await self._ready()).counts()

    async def fault(self) -> str | None:
        return await (await self._ready()).fault()

    async def check_health(self) -> None:
        await asyncio.shield(self._start)
        self._metrics.update(await self._jobs.counts(), self._jobs.ends, self._jobs.webhook_ends)

    async def __del__(self) -> None:
        # Serve awaits this at the end of a graceful shutdown.
        await self._jobs.close()
