"""Jobs as a Serve deployment: one replica, input and output only."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.config import JobSettings
from serve_app.edits.fair_editor import FairEditor
from serve_app.edits.job import JOBS_METHODS, Job, JobSpec, JobsPort
from serve_app.edits.request import Pictures
from serve_app.edits.service import EditService
from serve_app.jobs.metrics import JobMetrics
from serve_app.jobs.service import JobService
from serve_app.jobs.store_link import open_store
from serve_app.serving.handles import EditorHandle, OpenRewriter
from serve_app.serving.memory import return_freed_memory
from serve_app.serving.replica import join_serve_logs
from serve_app.serving.shared import share


class Jobs:
    """A JobService behind a handle. Undecorated: `serve_app.app` knows the deployment options."""

    def __init__(
        self,
        settings: JobSettings,
        editor: "DeploymentHandle[Any]",
        rewriter: "DeploymentHandle[Any] | None",
        webhook_body: Callable[[JobSpec, Job], bytes],
        open_rewriter: OpenRewriter,
    ) -> None:
        join_serve_logs()
        return_freed_memory()
        service = EditService(FairEditor(EditorHandle(editor)), open_rewriter(rewriter))
        self._jobs = JobService(settings, service, open_store(settings.store), share, webhook_body)
        self._metrics = JobMetrics()
        # Serve makes replicas on their event loop.
        self._start = asyncio.ensure_future(self._jobs.start())

    async def submit(self, spec: JobSpec, *pictures: Pictures) -> str:
        """JobsPort.submit: Ray passes pictures by reference only as arguments of their own."""
        return await (await self._started()).submit(spec, pictures)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Every other method of JobsPort."""
        if name not in JOBS_METHODS:
            raise AttributeError(name)

        async def call(*args: Any) -> Any:
            return await getattr(await self._started(), name)(*args)

        return call

    async def _started(self) -> JobsPort:
        # A caller that is cancelled must not cancel the start.
        await asyncio.shield(self._start)
        return self._jobs

    async def check_health(self) -> None:
        await self._started()
        self._metrics.update(await self._jobs.counts(), self._jobs.ends, self._jobs.webhook_ends)

    async def __del__(self) -> None:
        # Serve awaits this at the end of a graceful shutdown.
        if "_jobs" in vars(self):  # not if the constructor failed
            await self._jobs.close()
