"""The rewriter as a Serve deployment."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import ray

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite, RewriteJob
from serve_app.rewriter.metrics import RewriteMetrics
from serve_app.serving.replica import join_serve_logs, without_collection

logger = logging.getLogger(__name__)


class Rewriter:
    """One model on one thread. Undecorated: `serve_app.app` knows the deployment options."""

    def __init__(self, settings: RewriterSettings) -> None:
        # It takes seconds to import, with torch: whoever only builds the application does without it.
        with without_collection():
            from serve_app.rewriter.model import RewriterModel

        join_serve_logs()
        self._settings = settings
        self._metrics = RewriteMetrics()
        # Loaded and run on the same thread, which health checks and other requests do not wait for.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewriter")
        assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        gpu_share = assigned.get("GPU", 1.0)
        self._model = self._thread.submit(RewriterModel, settings, gpu_share).result()

    async def rewrite(self, job: RewriteJob, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none. Waiting for the model counts as time, too."""
        began = time.monotonic()
        rewrite = await self._rewrite(job, pictures)
        self._metrics.ended(rewrite, time.monotonic() - began)
        return rewrite

    async def _rewrite(self, job: RewriteJob, pictures: Pictures) -> Rewrite:
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._model.rewrite, job, pictures)
        try:
            return await asyncio.wait_for(running, self._settings.timeout_s)
        except TimeoutError:
            return Rewrite(None, f"the rewriter took longer than {self._settings.timeout_s:g} s")
        except Exception:
            logger.exception("rewriting failed for %s", job.request_id)
            return Rewrite(None, "the rewriter failed; the server's log has the reason")
