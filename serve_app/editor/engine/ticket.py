"""What the engine hands out for each edit: a ticket, with progress on the way."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.editor.model.tokens import num_picture_tokens
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, EditRequest, EditResult, EditTimings, Pictures, Progress


@dataclass(eq=False)
class Ticket:
    """An edit in the engine's hands, equal to nothing but itself. `future` ends with an EditResult or a ServiceError.

    Attributes:
        timeout_s: seconds from its submission after which it is dropped at the next step; None: never.
        xmp: the XMP packet for its picture and previews.
        on_progress: called when the edit is taken up and after each step, from a thread that it may block for a moment;
            its errors are logged.
        submitted_at: by the engine's clock, set when it is submitted.
        ended: its end is decided; set by the outbox.
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
        return num_picture_tokens(self.request, self.pictures)

    @property
    def rank(self) -> float:
        """Its place in the queue: the smallest is next."""
        return self.submitted_at + (LOW_PRIORITY_DELAY_S if self.request.low_priority else 0.0)

    def expired(self, now: float) -> bool:
        return self.timeout_s is not None and now - self.submitted_at >= self.timeout_s

    def unwanted(self, now: float) -> bool:
        return self.cancelled or self.expired(now)

    def cancel(self) -> None:
        """Ask the engine to drop the edit at its next step. Any thread may call it, any number of times."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


def describe(timings: EditTimings) -> str:
    """The log line's figures, seconds by stage."""
    return (
        f"queue_s={timings.queue_s:.3f} encode_s={timings.encode_s:.3f} steps_s={timings.steps_s:.3f} "
        f"decode_s={timings.decode_s:.3f} compress_s={timings.compress_s:.3f} "
        f"num_steps={timings.num_steps} shared_steps={timings.shared_steps}"
    )
