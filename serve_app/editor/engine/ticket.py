"""The caller's side of an edit in the engine: a ticket with its future and its progress."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.edits.fairness import rank_of
from serve_app.edits.request import EditRequest, EditResult, Pictures, Progress

MIN_INTERVAL_S = 0.1
"""Between two steps that a ProgressChannel yields. An edit's start, its pauses and previews are always yielded."""


@dataclass(eq=False)
class Ticket:
    """An edit for the engine; compares by identity. `future` ends with an EditResult or a ServiceError.

    Attributes:
        timeout_s: seconds from the submission after which the edit is dropped at the next step; None: never.
        xmp: the XMP packet for the picture and the previews.
        on_progress: called at its begin, each step and each pause, from a thread that it may block for a moment;
            its errors are logged.
        submitted_at: by the engine's clock, set by the intake.
        ended: whether the result or error is decided; set by the outbox.
    """

    request: EditRequest
    pictures: Pictures
    timeout_s: float | None = None
    xmp: bytes = b""
    on_progress: Callable[[Progress], None] | None = None
    future: "Future[EditResult]" = field(default_factory=Future)
    submitted_at: float = 0.0
    ended: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def num_tokens(self) -> int:
        """Picture tokens that the edit adds to every packed step."""
        return self.request.num_tokens(self.pictures)

    @property
    def client(self) -> str:
        return self.request.client

    @property
    def is_low_priority(self) -> bool:
        return self.request.low_priority

    @property
    def rank(self) -> float:
        """Its place among its client's edits: the smallest is next."""
        return rank_of(self.submitted_at, self.is_low_priority)

    @property
    def deadline(self) -> float | None:
        """When it expires, by the engine's clock; None: never."""
        return None if self.timeout_s is None else self.submitted_at + self.timeout_s

    def expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def unwanted(self, now: float) -> bool:
        return self.cancelled or self.expired(now)

    def cancel(self) -> None:
        """Have the engine drop the edit at its next step. Thread-safe and idempotent."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


class ProgressChannel:
    """Carries a ticket's progress from the engine's threads to a coroutine. Created and read on one event loop."""

    def __init__(self, ticket: Ticket) -> None:
        self._events: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        ticket.on_progress = self._put
        ticket.future.add_done_callback(lambda _: self._put(None))

    def _put(self, event: Progress | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_end(self) -> AsyncIterator[Progress]:
        """The progress until the ticket's future ends. Of steps within MIN_INTERVAL_S, the first one."""
        yielded_at = -MIN_INTERVAL_S
        while (progress := await self._events.get()) is not None:
            now = time.monotonic()
            is_due = progress.step == 0 or progress.is_paused or progress.preview is not None
            if is_due or now - yielded_at >= MIN_INTERVAL_S:
                yielded_at = now
                yield progress
