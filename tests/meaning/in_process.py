"""The service without Ray: the real routes, engine, models and weights in one process, for fault injection."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from fastapi.testclient import TestClient

from serve_app.config import AppSettings
from serve_app.editor.engine.engine import Engine
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.loading.load import load_model
from serve_app.edits.request import EditRequest, EditResult, Pictures, Rewrite, RewriteRequest, SharedPictures
from serve_app.edits.service import EditService, OnProgress
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.rewriter.model import RewriterModel
from tests.ingress.openai_harness import FakeJobs, shared_decoders
from tests.meaning.checks import RunJob


class EngineEditor:
    """Adapts an engine to EditorPort."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        ticket = Ticket(request, cast(Pictures, pictures))
        self._engine.submit(ticket)
        return await asyncio.wrap_future(ticket.future)


class ModelRewriter:
    """Adapts a rewriter's model to RewriterPort."""

    def __init__(self, settings: AppSettings) -> None:
        assert settings.rewriter is not None
        self._model = RewriterModel(settings.rewriter)

    async def rewrite(self, job: RewriteRequest, pictures: SharedPictures) -> Rewrite:
        (rewrite,) = self._model.rewrite([self._model.prepare(job.prompt, cast(Pictures, pictures))])
        return rewrite


async def _workers(num_busy: int) -> dict[str, int]:
    return {"ready": 1}


@contextmanager
def in_process_service(settings: AppSettings) -> Iterator[RunJob]:
    """Start the service; yields a function that runs a RunPod job."""
    engine = Engine(lambda: load_model(settings.editor), max_pack_tokens=4096, max_waiting=64)
    engine.start()
    try:
        service = EditService(EngineEditor(engine), ModelRewriter(settings))
        jobs = FakeJobs(service, num_waits=0)
        backend = Backend(settings, jobs, service, SharedPictures, _workers, Preparer(settings, shared_decoders()))
        with TestClient(build_app(backend)) as client:

            def run_job(**fields: Any) -> dict[str, Any]:
                envelope: dict[str, Any] = client.post("/runsync", json={"input": fields}).json()
                return envelope

            yield run_job
    finally:
        engine.close()
