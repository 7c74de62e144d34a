"""The ingress as a Serve deployment."""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppSettings
from serve_app.edits.service import EditService
from serve_app.ingress.app import build_app
from serve_app.ingress.handles import EditorHandle, RewriterHandle, share, worker_counts
from serve_app.ingress.sync import Backend, JobCounts
from serve_app.logs import join_serve_logs


@serve.ingress()
class Ingress:
    """HTTP in, handles out. The ASGI app is built in the replica, so nothing of it is ever pickled."""

    def __init__(
        self, settings: AppSettings, editor: "DeploymentHandle[Any]", rewriter: "DeploymentHandle[Any] | None"
    ) -> None:
        join_serve_logs()
        counts = JobCounts()
        application = serve.get_replica_context().app_name

        async def workers() -> dict[str, int]:
            return await worker_counts(application, "Editor", counts.in_progress)

        self._backend = Backend(
            settings=settings,
            service=EditService(EditorHandle(editor), RewriterHandle(rewriter) if rewriter is not None else None),
            share=share,
            workers=workers,
            counts=counts,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._backend)
