"""What the engine hands out: a ticket for each edit, progress on the way, and counts of all."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

from serve_app.editor.model import num_picture_tokens
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, EditJob, EditResult, EditTimings, Pictures, Progress


@dataclass(eq=False)
class Ticket:
    """An edit in the engine's hands, equal to nothing but itself. `future` ends with an EditResult or a ServiceError.

    Attributes:
        on_progress: called when the edit is taken up and after each step, from a thread that it may block for a moment;
            its errors are logged.
        submitted_at: by the engine's clock, set when it is submitted.
        ended: its end is decided; set by the outbox.
    """

    job: EditJob
    pictures: Pictures
    on_progress: Callable[[Progress], None] | None = None
    future: "Future[EditResult]" = field(default_factory=Future)
    submitted_at: float = 0.0
    ended: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def num_tokens(self) -> int:
        """Picture tokens that the edit adds to every packed step."""
        return num_picture_tokens(self.job, self.pictures)

    @property
    def rank(self) -> float:
        """Its place in the queue: the smallest is next."""
        return self.submitted_at + (LOW_PRIORITY_DELAY_S if self.job.low_priority else 0.0)

    def expired(self, now: float) -> bool:
        return self.job.timeout_s is not None and now - self.submitted_at >= self.job.timeout_s

    def unwanted(self, now: float) -> bool:
        return self.cancelled or self.expired(now)

    def cancel(self) -> None:
        """Ask the engine to drop the edit at its next step. Any thread may call it, any number of times."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start, but for `preparing`, `waiting`, `running` and `token_budget`.

    Attributes:
        num_steps: packed transformer calls.
        num_edit_steps: steps of single edits; above `num_steps` where steps were shared.
        max_pack: most edits that shared one step.
        num_step_tokens: picture tokens in all packed transformer calls.
        token_budget: picture tokens that a step may have now; below the configured ones after memory ran out.
    """

    preparing: int = 0
    waiting: int = 0
    running: int = 0
    num_steps: int = 0
    num_edit_steps: int = 0
    max_pack: int = 0
    num_step_tokens: int = 0
    token_budget: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


def describe(timings: EditTimings) -> str:
    """The log line's figures, seconds by stage."""
    return (
        f"queue_s={timings.queue_s:.3f} encode_s={timings.encode_s:.3f} steps_s={timings.steps_s:.3f} "
        f"decode_s={timings.decode_s:.3f} compress_s={timings.compress_s:.3f} "
        f"num_steps={timings.num_steps} shared_steps={timings.shared_steps}"
    )
