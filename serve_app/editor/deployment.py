"""The editor as a Serve deployment: requests in, engine tickets out."""

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import ray
from ray import serve

from serve_app.config import EditorSettings
from serve_app.editor.engine.progress import ProgressChannel
from serve_app.editor.engine.stats import EngineStats
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.metrics import EngineMetrics
from serve_app.edits.provenance import Provenance
from serve_app.edits.request import EditRequest, EditResult, Pictures, Progress
from serve_app.errors import ServiceError, ServiceUnavailable
from serve_app.serving.replica import join_serve_logs, without_collection

logger = logging.getLogger(__name__)


class Editor:
    """One engine on one GPU (or CPU). Undecorated: `serve_app.app` knows the deployment options."""

    def __init__(self, settings: EditorSettings) -> None:
        # They take seconds to import, with torch and diffusers: whoever only builds the application does without them.
        with without_collection():
            from serve_app.editor.engine.engine import Engine
            from serve_app.editor.loading.load import load_at_low_priority

        join_serve_logs()
        assigned: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        gpu_share = assigned.get("GPU", 1.0)
        self._engine = Engine(
            lambda: load_at_low_priority(settings, gpu_share),
            max_pack_tokens=settings.max_pack_tokens,
            max_waiting=settings.max_waiting_edits,
            wedged_after_s=settings.wedged_after_s,
        )
        self._engine.start()
        self._num_open = 0
        self._metrics = EngineMetrics()
        self._provenance = Provenance(settings)
        self._worker_id = serve.get_replica_context().replica_id.unique_id
        self._hand_over.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._hand_over.set_batch_wait_timeout_s(settings.batch_wait_timeout_s)  # type: ignore[attr-defined]

    async def edit(
        self, request: EditRequest, pictures: Pictures, timeout_s: float | None
    ) -> AsyncIterator[Progress | EditResult]:
        """Run one edit: yields its steps, and last its picture. Where the caller goes away, the edit leaves the engine
        at its next step.

        Raises:
            ServiceError: what became of this edit; its neighbours are not touched.
        """
        ticket = Ticket(request, pictures, timeout_s=timeout_s, xmp=self._provenance.packet(request))
        news = ProgressChannel(ticket)
        self._num_open += 1
        try:
            refusal = await self._hand_over(ticket)
            if refusal is not None:
                raise refusal
            async for progress in news.until_end():
                yield progress
            result = ticket.future.result()
            self._metrics.finished(result.timings)
            yield replace(result, worker_id=self._worker_id)
        finally:
            ticket.cancel()  # of no effect after its end
            self._num_open -= 1

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=4)
    async def _hand_over(self, tickets: list[Ticket]) -> list[ServiceError | None]:
        """Hand what arrived together to the engine, which admits it at its next step. It never waits for an edit:
        a batch would freeze, and its quickest member would wait for its slowest."""
        return [self._submit(ticket) for ticket in tickets]

    def _submit(self, ticket: Ticket) -> ServiceError | None:
        # An error is returned, not raised: raising in a batched method fails every neighbour.
        try:
            self._engine.submit(ticket)
        except ServiceError as problem:
            return problem
        return None

    async def stats(self) -> EngineStats:
        """The engine's counters."""
        return self._engine.stats

    async def check_health(self) -> None:
        try:
            self._engine.check_health()
        except ServiceUnavailable:
            if self._num_open == 0:  # else the next check: they are being told
                _exit()
            raise
        self._metrics.update(self._engine.stats, self._engine.cache_stats)

    def __del__(self) -> None:
        # Serve calls this at the end of a graceful shutdown, when the edits that it let finish have ended.
        if hasattr(self, "_engine"):
            self._engine.close()


def _exit() -> None:
    """End this process. Serve would wait for three failed checks, and its successor for the device's memory."""
    logger.critical("the engine has come to its end, and this replica with it")
    logging.shutdown()
    os._exit(1)
