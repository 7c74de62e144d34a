"""The rewriter as a Serve deployment, and the port to it or to an endpoint."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, Rewrite, RewriteRequest, SharedPictures
from serve_app.edits.service import RewriterPort
from serve_app.rewriter.endpoint import EndpointRewriter
from serve_app.rewriter.instructions import FAILED
from serve_app.rewriter.metrics import RewriteMetrics
from serve_app.rewriter.shared import SharedRewrites
from serve_app.serving.gpus import assigned_gpu_share
from serve_app.serving.handles import RewriterHandle
from serve_app.serving.replica import join_serve_logs, without_collection
from serve_app.serving.shared import PutPictures

logger = logging.getLogger(__name__)


class Rewriter:
    """One model on one thread. Undecorated: `serve_app.app` has the deployment options."""

    def __init__(self, settings: RewriterSettings) -> None:
        # Imported here because torch takes seconds, which building the application does not need.
        with without_collection():
            from serve_app.rewriter.batches import RewriteBatches
            from serve_app.rewriter.model import RewriterModel

        join_serve_logs()
        # Loads and runs the model, so that the event loop stays free for health checks and other requests.
        thread = ThreadPoolExecutor(1, thread_name_prefix="rewriter")
        model = thread.submit(RewriterModel, settings, assigned_gpu_share()).result()
        self._batches = RewriteBatches(model, settings, thread)
        self._bounded = BoundedRewriter(self._batches.rewrite, settings)

    async def rewrite(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        """A better instruction, or the reason why there is none. The time limit includes waiting for the model."""
        return await self._bounded.rewrite(request, pictures)

    async def check_health(self) -> None:
        """Serve replaces this replica where it raises."""
        self._batches.check_health()


class EndpointPort:
    """An endpoint as a RewriterPort, called from this process."""

    def __init__(self, settings: RewriterSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._bounded = BoundedRewriter(EndpointRewriter(settings).rewrite, settings)

    async def rewrite(self, request: RewriteRequest, pictures: SharedPictures) -> Rewrite:
        """A better instruction, or the reason why there is none."""
        try:
            seen: Pictures = await asyncio.wait_for(cast(PutPictures, pictures).reference, self._timeout_s)
        except (RayError, TimeoutError) as problem:
            # The editor needs the same pictures: its error is the one for the client.
            logger.warning("no rewriting for %s: its pictures cannot be read: %s", request.request_id, problem)
            return FAILED
        return await self._bounded.rewrite(request, seen)


class BoundedRewriter:
    """Runs rewrites within the time limit, keeps recent ones, and counts all."""

    def __init__(
        self, run: Callable[[RewriteRequest, Pictures], Coroutine[Any, Any, Rewrite]], settings: RewriterSettings
    ) -> None:
        self._run = run
        self._timeout_s = settings.timeout_s
        self._shared = SharedRewrites(settings.cache_bytes)
        self._metrics = RewriteMetrics()

    async def rewrite(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        began = time.monotonic()
        rewrite = await self._within_limit(request, pictures)
        self._metrics.ended(rewrite, time.monotonic() - began)
        return rewrite

    async def _within_limit(self, request: RewriteRequest, pictures: Pictures) -> Rewrite:
        try:
            shared = self._shared.get(request.prompt, pictures, lambda: self._run(request, pictures))
            return await asyncio.wait_for(shared, self._timeout_s)
        except TimeoutError:
            return Rewrite(None, f"the rewriter took longer than {self._timeout_s:g} s")
        except Exception:
            logger.exception("rewriting failed for %s", request.request_id)
            return FAILED


def open_rewriter(settings: RewriterSettings | None, handle: "DeploymentHandle[Any] | None") -> RewriterPort | None:
    """The port to the rewriter of these settings, for one replica.

    Args:
        handle: of the Rewriter deployment; None: there is none.
    """
    if settings is not None and settings.endpoint is not None:
        return EndpointPort(settings)
    return None if settings is None or handle is None else RewriterHandle(handle, settings.wait_s)
