"""An edit in the engine, from its preparation to its end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.edits.request import EditTimings


@dataclass(eq=False)
class Edit:
    """A prepared edit. It waits until it is begun; from then on each step of the engine runs it or pauses it.

    Attributes:
        prepared: what it is encoded from; None once it has begun.
        draft: its state on the device; None while it waits.
        is_running: whether it is in the current step, or was in the last one; False while it is paused.
        rested_at: since when it has not been run, by the engine's clock.
        arrived_at: token-steps that the engine had done when it was prepared.
    """

    ticket: Ticket
    prepared: Prepared | None
    num_steps: int
    draft: Draft | None = None
    timings: EditTimings = field(default_factory=EditTimings)
    is_running: bool = False
    rested_at: float = 0.0
    arrived_at: int = 0

    @property
    def started(self) -> Draft:
        """Its draft, once it has one."""
        assert self.draft is not None
        return self.draft

    @property
    def num_done(self) -> int:
        """Steps done."""
        return 0 if self.draft is None else self.draft.index

    @property
    def num_left(self) -> int:
        """Steps left."""
        return self.num_steps - self.num_done

    @property
    def num_tokens(self) -> int:
        """Picture tokens that it adds to a step."""
        return self.ticket.num_tokens

    @property
    def work(self) -> int:
        """Token-steps left."""
        return self.num_left * self.num_tokens

    def begin(self, draft: Draft, began: float, now: float) -> None:
        """Record that its encoding began at `began` and ends now."""
        self.draft, self.prepared, self.rested_at, self.is_running = draft, None, now, True
        self.timings = replace(
            self.timings,
            queue_s=began - self.ticket.submitted_at,
            encode_s=now - began,
            num_steps=self.num_steps,
        )

    def count_step(self, began: float, now: float, *, is_shared: bool) -> None:
        """Record a step that it took part in; the time since its last one is a pause."""
        self.timings = replace(
            self.timings,
            paused_s=self.timings.paused_s + began - self.rested_at,
            steps_s=self.timings.steps_s + now - began,
            shared_steps=self.timings.shared_steps + is_shared,
        )
        self.rested_at, self.is_running = now, True


def num_tokens(edits: Iterable[Edit]) -> int:
    """Picture tokens of a pack."""
    return sum(edit.num_tokens for edit in edits)


def first_within(edits: Sequence[Edit], max_tokens: int) -> list[Edit]:
    """The first edits, as many as the tokens allow, but at least one."""
    totals = accumulate(edit.num_tokens for edit in edits)
    return [edit for edit, total in zip(edits, totals, strict=True) if edit is edits[0] or total <= max_tokens]


def preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """The steps (from 1) after which previews are due: evenly spread, never after the last one."""
    return frozenset(
        round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1)
    ) & frozenset(range(1, num_steps))
