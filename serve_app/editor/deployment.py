"""The editor as a Serve deployment: requests in, engine tickets out."""

import asyncio
from dataclasses import replace

from ray import serve

from serve_app.config import EditorSettings
from serve_app.editor.engine import Engine, EngineStats, Ticket
from serve_app.editor.loading import load_model
from serve_app.edits.request import EditJob, EditResult, Pictures
from serve_app.errors import ServiceError, ServiceUnavailable
from serve_app.logs import join_serve_logs

_Order = tuple[EditJob, Pictures]


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
        self._worker_id = serve.get_replica_context().replica_id.unique_id
        self._hand_over.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._hand_over.set_batch_wait_timeout_s(settings.batch_wait_timeout_s)  # type: ignore[attr-defined]

    async def edit(self, job: EditJob, pictures: Pictures) -> EditResult:
        """Run one edit to its end.

        Raises:
            ServiceError: what became of this edit; its neighbours are not touched.
        """
        handed = await self._hand_over((job, pictures))
        if isinstance(handed, ServiceError):
            raise handed
        ticket = handed
        try:
            result = await asyncio.wrap_future(ticket.future)
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        return replace(result, worker_id=self._worker_id)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005, max_concurrent_batches=4)
    async def _hand_over(self, orders: list[_Order]) -> list[Ticket | ServiceError]:
        """Hand what arrived together to the engine, which admits it at its next step. It never waits for an edit:
        a batch would freeze, and its quickest member would wait for its slowest."""
        return [self._submit(*order) for order in orders]

    def _submit(self, job: EditJob, pictures: Pictures) -> Ticket | ServiceError:
        # An error is returned, not raised: raising in a batched method fails every neighbour.
        try:
            return self._engine.submit(job, pictures)
        except ServiceError as problem:
            return problem

    async def stats(self) -> EngineStats:
        """The engine's counters."""
        return self._engine.stats

    async def check_health(self) -> None:
        if not self._engine.alive:
            raise ServiceUnavailable("The engine thread has died.")

    def __del__(self) -> None:
        # Serve calls this at the end of a graceful shutdown.
        if hasattr(self, "_engine"):
            self._engine.close()
