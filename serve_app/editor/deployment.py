"""The editor as a Serve deployment: requests become tickets of the engine."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from ray import serve

from serve_app.config import AdapterSettings, EditorSettings, LoraSettings
from serve_app.editor.engine.stats import EngineStats
from serve_app.editor.engine.ticket import ProgressChannel, Ticket
from serve_app.editor.metrics import EngineMetrics
from serve_app.edits.provenance import Provenance
from serve_app.edits.request import EditRequest, EditResult, LoraUse, Pictures, Progress
from serve_app.errors import ServiceError, ServiceUnavailable, StartupError
from serve_app.serving.gpus import assigned_gpu_share
from serve_app.serving.replica import join_serve_logs, without_collection

logger = logging.getLogger(__name__)


class Editor:
    """One engine on one GPU (or CPU). Undecorated: `serve_app.app` has the deployment options."""

    def __init__(self, settings: EditorSettings) -> None:
        # Imported here because torch and diffusers take seconds, which building the application does not need.
        with without_collection():
            from serve_app.editor.engine.engine import Engine
            from serve_app.editor.loading.adapters import Adapters
            from serve_app.editor.loading.load import load_at_low_priority

        join_serve_logs()
        self._settings = settings
        gpu_share, self._adapters = assigned_gpu_share(), Adapters(settings)
        self._engine = Engine(
            lambda: load_at_low_priority(settings, self._adapters, gpu_share),
            max_pack_tokens=settings.max_pack_tokens,
            max_waiting=settings.max_waiting_edits,
            max_paused=settings.max_paused_edits,
            scheduling=settings.scheduling,
            wedged_after_s=settings.wedged_after_s,
        )
        self._engine.start()
        self._num_open = 0
        self._was_healthy = False
        self._metrics = EngineMetrics()
        self._provenance = Provenance(settings)
        self._worker_id = serve.get_replica_context().replica_id.unique_id
        self._submit_batch.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._submit_batch.set_batch_wait_timeout_s(settings.batch_wait_timeout_s)  # type: ignore[attr-defined]

    async def edit(
        self, request: EditRequest, pictures: Pictures, timeout_s: float | None
    ) -> AsyncIterator[Progress | EditResult]:
        """Run one edit: yields its progress, and last its result. If the caller cancels, the edit leaves the engine at
        its next step.

        Raises:
            ServiceError: this edit failed; others in its pack are not affected.
        """
        library = self._adapters.library
        request = replace(request, loras=library.named(request), has_all_loras=True)
        xmp = self._provenance.packet(request, library.settings_of(request.loras))
        ticket = Ticket(request, pictures, timeout_s=timeout_s, xmp=xmp)
        channel = ProgressChannel(ticket)
        self._num_open += 1
        try:
            error = await self._submit_batch(ticket)
            if error is not None:
                raise error
            async for progress in channel.until_end():
                yield progress
            result = ticket.future.result()
            self._metrics.finished(result.timings)
            yield replace(result, worker_id=self._worker_id)
        finally:
            ticket.cancel()  # no effect after its end
            self._num_open -= 1

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Use the adapters of a new user_config. Edits that are here already keep the names and weights of theirs. A
        running replica stays as it was if they cannot be loaded, since Serve would replace it.

        Raises:
            StartupError, ValueError, ServiceError: when the replica starts.
        """
        try:
            loras = self._settings.with_adapters(AdapterSettings.model_validate(user_config).loras).unfused_loras
            had_some = bool(self._adapters.library.current)
            await asyncio.to_thread(self._adapters.replace, loras)
            if loras and not had_some and not self._was_healthy:
                await self._warm_up(loras[0])
        except Exception as problem:
            if not self._was_healthy:
                raise
            is_known = isinstance(problem, StartupError | ValueError)
            text = "user_config was not applied, the adapters stay as they were: %s"
            logger.error(text, problem, exc_info=None if is_known else problem)
            return
        logger.info("adapters of user_config: %s", ", ".join(lora.name for lora in loras) or "none")

    async def _warm_up(self, lora: LoraSettings) -> None:
        """Run an edit with an adapter before the first request does, as loading does where args list one: compiled code
        for edits with adapters is code of its own."""
        from serve_app.editor.loading.load import warm_up_edit, warm_up_side_px

        ticket = Ticket(*warm_up_edit(warm_up_side_px(self._settings), (LoraUse(lora.name, 1.0),)))
        self._engine.submit(ticket)
        await asyncio.to_thread(ticket.future.result)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=4)
    async def _submit_batch(self, tickets: list[Ticket]) -> list[ServiceError | None]:
        """Submit a batch to the engine. Returns without waiting for the edits, so
        that no edit of a batch waits for the slowest one."""
        return [self._submit(ticket) for ticket in tickets]

    def _submit(self, ticket: Ticket) -> ServiceError | None:
        # An error is returned, not raised: an exception in a batched method fails the whole batch.
        try:
            self._engine.submit(ticket)
        except ServiceError as problem:
            return problem
        return None

    async def stats(self) -> EngineStats:
        """The engine's counters."""
        return self._engine.stats

    async def cache_stats(self) -> dict[str, Any]:
        """Look-ups in the condition caches: CacheStats by the cache's name."""
        return self._engine.cache_stats

    async def check_health(self) -> None:
        try:
            self._engine.check_health()
        except ServiceUnavailable:
            if self._num_open == 0:  # otherwise at a later check, after the open requests have ended
                _exit()
            raise
        self._was_healthy = True
        self._metrics.update(self._engine)

    def __del__(self) -> None:
        # Serve calls this at the end of a graceful shutdown, after it has waited for running requests.
        if hasattr(self, "_engine"):
            self._engine.close()


def _exit() -> None:
    """End this process at once. Serve replaces it only after three failed health checks, and until then it would hold
    the device's memory."""
    logger.critical("the engine has come to its end, and this replica with it")
    logging.shutdown()
    os._exit(1)
