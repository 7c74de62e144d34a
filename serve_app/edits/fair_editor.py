"""An EditorPort in front of another one, at which clients take turns."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.edits.fairness import Slots, rank_of
from serve_app.edits.request import EditRequest, EditResult, SharedPictures
from serve_app.edits.service import EditorPort, OnProgress

EDITS_AT_ONCE = 64
"""Edits that one process hands to the editors at once. What all processes hand over should not be much more than the
editors' `max_ongoing_requests`: the rest waits in Serve's own queues, which are first come, first served."""


@dataclass(eq=False)
class _Turn:
    request: EditRequest
    arrived_at: float
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def client(self) -> str:
        return self.request.client

    @property
    def is_low_priority(self) -> bool:
        return self.request.low_priority

    @property
    def rank(self) -> float:
        return rank_of(self.arrived_at, self.is_low_priority)


class FairEditor:
    """Hands `EDITS_AT_ONCE` edits to an editor; the others wait here, clients in turn. Lives on one event loop.

    Args:
        clock: seconds.
    """

    def __init__(self, editor: EditorPort, clock: Callable[[], float] = time.monotonic) -> None:
        self._editor = editor
        self._clock = clock
        self._slots = Slots[_Turn](EDITS_AT_ONCE, clock)

    async def edit(
        self, request: EditRequest, pictures: SharedPictures, on_progress: OnProgress, timeout_s: float | None = None
    ) -> EditResult:
        """As the editor's; the time limit includes the wait."""
        turn = _Turn(request, self._clock())
        self._slots.waiting.add(turn)
        try:
            self._start_next()
            await turn.begun.wait()
            waited_s = self._clock() - turn.arrived_at
            left_s = None if timeout_s is None else max(0.0, timeout_s - waited_s)
            return await self._editor.edit(request, pictures, on_progress, left_s)
        finally:
            self._slots.discard(turn)
            self._start_next()

    def _start_next(self) -> None:
        while (turn := self._slots.start_next()) is not None:
            turn.begun.set()
