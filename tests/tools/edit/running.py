"""The service's HTTP application without Ray, on a port, with real jobs and an editor that paints one colour."""

import asyncio
import hashlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import uvicorn

from serve_app.config import AppSettings, JobSettings, LoraSettings, SqliteStoreSettings, WeightsSource
from serve_app.edits.images import encode_picture
from serve_app.edits.provenance import marking_packet
from serve_app.edits.request import EditRequest, EditResult, Pictures, SharedPictures
from serve_app.edits.service import EditService, OnProgress
from serve_app.ingress.app import build_app
from serve_app.ingress.backend import Backend
from serve_app.ingress.pictures.prepare import Preparer
from serve_app.ingress.runpod.answers import webhook_body
from serve_app.jobs.service import JobService
from serve_app.jobs.store_link import open_store
from tests.conftest import ROOT
from tests.fakes import FakeEditor, FakeRewriter
from tests.ingress.openai_harness import keys_of, shared_decoders
from tests.processes import free_port
from tests.waiting import until

WOODCUT = LoraSettings(name="woodcut", source=WeightsSource(path="unused"), file="unused", apply="request")
"""An adapter that requests may name; the editor paints the same with it."""


@dataclass
class Painter(FakeEditor):
    """Returns a picture of one colour that depends on the request. `painted` counts by prompt and input picture."""

    painted: Counter[str] = field(default_factory=Counter)

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        done = await super().edit(request, pictures, on_progress, timeout_s)
        inputs = [each.vae_pixels.tobytes() for each in cast(Pictures, pictures)]
        name = f"{request.prompt} {hashlib.sha256(b''.join(inputs)).hexdigest()}"
        self.painted[name] += 1
        colour = list(hashlib.sha256(name.encode()).digest()[:3])
        size = request.size.final
        pixels = np.full((size.height, size.width, 3), colour, np.uint8)
        return replace(done, data=encode_picture(pixels, request.output, marking_packet()))


@dataclass
class RunningService:
    """The running application and its editor."""

    url: str
    editor: Painter
    rewriter: FakeRewriter
    loop: asyncio.AbstractEventLoop

    def has_taken(self, number: int) -> bool:
        """Whether the editor has taken exactly so many edits."""
        return len(self.editor.requests) == number

    def hold(self) -> None:
        """Let every edit wait for a release."""
        self.editor.gate = asyncio.Semaphore(0)

    def release(self, number: int) -> None:
        gate = self.editor.gate
        assert gate is not None
        for _ in range(number):
            self.loop.call_soon_threadsafe(gate.release)


@contextmanager
def running_service(folder: Path, settings: AppSettings, *api_keys: str, **jobs: int) -> Iterator[RunningService]:
    """Start the application with these API keys and settings of the jobs."""
    port, started = free_port(), threading.Event()
    services: list[RunningService] = []
    store = SqliteStoreSettings(path=str(folder / "jobs.sqlite3"))
    job_settings = JobSettings(store=store).model_copy(update=jobs)
    stop: list[uvicorn.Server] = []

    async def workers(num_busy: int) -> dict[str, int]:
        return {"idle": 1}

    async def serve() -> None:
        editor, rewriter = Painter(), FakeRewriter()
        service = EditService(editor, rewriter)
        runner = JobService(job_settings, service, open_store(store), SharedPictures, webhook_body)
        backend = Backend(
            settings.model_copy(update={"jobs": job_settings, "editor": settings.editor.with_adapters((WOODCUT,))}),
            runner,
            service,
            SharedPictures,
            workers,
            Preparer(settings, shared_decoders()),
            keys_of(*api_keys) if api_keys else None,
            retry_after_s=lambda: 1,
        )
        await runner.start()
        services.append(RunningService(f"http://127.0.0.1:{port}", editor, rewriter, asyncio.get_running_loop()))
        server = uvicorn.Server(uvicorn.Config(build_app(backend), port=port, log_level="error", lifespan="off"))
        stop.append(server)
        started.set()
        await server.serve()
        await runner.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(30)
        until(lambda: stop[0].started)
        yield services[0]
    finally:
        if services and services[0].editor.gate is not None:
            services[0].release(1000)
        for server in stop:
            server.should_exit = True
        thread.join()


HEEDS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from serve_app.cli import main
sys.exit(main())
"""
"""`camera-edit` as a program: a process that a shell started in the background ignores Ctrl-C, and so do those that it
starts."""


def start_command(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`camera-edit edit` in its own process, in a folder."""
    command = [sys.executable, "-c", HEEDS_CTRL_C, "edit", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
