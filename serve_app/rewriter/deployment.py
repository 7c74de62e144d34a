"""The rewriter as a Serve deployment."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite, RewriteJob
from serve_app.rewriter.metrics import RewriteMetrics
from serve_app.serving.gpus import assigned_gpu_share
from serve_app.serving.replica import join_serve_logs, without_collection

logger = logging.getLogger(__name__)


class Rewriter:
    """One model on one thread. Undecorated: `serve_app.app` has the deployment options."""

    def __init__(self, settings: RewriterSettings) -> None:
        # Imported here because torch takes seconds, which building the application does not need.
        with without_collection():
            from serve_app.rewriter.model import RewriterModel

        join_serve_logs()
        self._settings = settings
        self._metrics = RewriteMetrics()
        # Loads and runs the model, so that the event loop stays free for health checks and other requests.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rewriter")
        self._model = self._thread.submit(RewriterModel, settings, assigned_gpu_share()).result()

    async def rewrite(self, job: RewriteJob, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none. The time limit includes waiting for the model."""
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
