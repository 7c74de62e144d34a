"""The editor as a Serve deployment: requests in, engine tickets out."""

import asyncio
from dataclasses import replace

from ray import serve

from serve_app.config import EditorSettings
from serve_app.editor.engine import Engine
from serve_app.editor.loading import load_model
from serve_app.editor.metrics import EngineMetrics
from serve_app.editor.ticket import EngineStats, Ticket
from serve_app.edits.request import EditJob, EditResult, Pictures
from serve_app.errors import ServiceError, ServiceUnavailable
from serve_app.logs import join_serve_logs


class Editor:
    """One engine on one GPU (or CPU). Undecorated: `serve_app.app` knows the deployment options."""

    def __init__(self, settings: EditorSettings) -> None:
        join_serve_logs()
        self._engine = Engine(
            lambda: load_model(settings),
            max_pack_tokens=settings.max_pack_tokens,
            max_waiting=settings.max_waiting_edits,
        )
        self._engine.start()
        self._metrics = EngineMetrics()
        self._worker_id = serve.get_replica_context().replica_id.unique_id
        self._hand_over.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._hand_over.set_batch_wait_timeout_s(settings.batch_wait_timeout_s)  # type: ignore[attr-defined]

    async def edit(self, job: EditJob, pictures: Pictures) -> EditResult:
        """Run one edit to its end. Where the caller goes away, the edit leaves the engine at its next step.

        Raises:
            ServiceError: what became of this edit; its neighbours are not touched.
        """
        ticket = Ticket(job, pictures)
        try:
            refusal = await self._hand_over(ticket)
            if refusal is not None:
                raise refusal
            result = await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        return replace(result, worker_id=self._worker_id)

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
        if not self._engine.alive:
            raise ServiceUnavailable("The engine thread has died.")
        self._metrics.update(self._engine.stats, self._engine.cache_stats)

    def __del__(self) -> None:
        # Serve calls this at the end of a graceful shutdown.
        if hasattr(self, "_engine"):
            self._engine.close()
