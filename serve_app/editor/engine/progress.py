"""An edit's news on their way from the engine's threads to the coroutine that passes them on."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from serve_app.editor.engine.ticket import Ticket
from serve_app.edits.request import Progress

MIN_INTERVAL_S = 0.1
"""Between two steps that are told. What is taken up and what has a preview is always told."""


class ProgressChannel:
    """Listens to a ticket and tells what happened until its end. Made and read on one event loop."""

    def __init__(self, ticket: Ticket, clock: Callable[[], float] = time.monotonic) -> None:
        self._events: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        ticket.on_progress = self._put
        ticket.future.add_done_callback(lambda _: self._put(None))

    def _put(self, event: Progress | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_end(self) -> AsyncIterator[Progress]:
        """What is worth telling, until the ticket's future has ended."""
        told_at = -MIN_INTERVAL_S
        while (progress := await self._events.get()) is not None:
            now = self._clock()
            if progress.step == 0 or progress.preview is not None or now - told_at >= MIN_INTERVAL_S:
                told_at = now
                yield progress
