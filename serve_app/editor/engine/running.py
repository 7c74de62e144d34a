"""Edits owned by the engine thread: waiting to begin, then being drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.edits.request import EditTimings


@dataclass(eq=False)
class Waiting:
    ticket: Ticket
    prepared: Prepared

    @property
    def num_done(self) -> int:
        """Steps done."""
        return 0


@dataclass(eq=False)
class Running:
    """
    Attributes:
        began_steps_at: by the engine's clock.
        previews_at: steps (from 1) after which a preview is due.
    """

    ticket: Ticket
    draft: Draft
    timings: EditTimings
    began_steps_at: float
    previews_at: frozenset[int]

    @property
    def num_done(self) -> int:
        """Steps done."""
        return self.draft.index


E = TypeVar("E", Waiting, Running)


def as_running(ticket: Ticket, draft: Draft, began: float, now: float) -> Running:
    """An edit whose encoding lasted from `began` to `now`."""
    num_steps = draft.schedule.num_steps
    timings = EditTimings(
        queue_s=began - ticket.submitted_at,
        encode_s=now - began,
        steps_s=0.0,
        decode_s=0.0,
        compress_s=0.0,
        num_steps=num_steps,
        shared_steps=0,
    )
    return Running(ticket, draft, timings, now, preview_steps(ticket.request.num_previews, num_steps))


def preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """After which steps (from 1) previews are due: evenly spread, never after the last one."""
    return frozenset(
        round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1)
    ) & frozenset(range(1, num_steps))


def num_tokens(edits: Sequence[E]) -> int:
    """Picture tokens of a pack."""
    return sum(edit.ticket.num_tokens for edit in edits)


def first_within(edits: Sequence[E], max_tokens: int, *, at_least: int) -> list[E]:
    """The first edits, as many as the tokens allow, but `at_least` so many."""
    taken = 0
    while taken < len(edits) and (taken < at_least or num_tokens(edits[: taken + 1]) <= max_tokens):
        taken += 1
    return list(edits[:taken])


def newest(edits: Sequence[E]) -> list[Ticket]:
    """The edits of a call that have the fewest steps behind them. What the others ask of the device, it has done
    before: where a call breaks it, these are the suspects."""
    fewest = min(edit.num_done for edit in edits)
    return [edit.ticket for edit in edits if edit.num_done == fewest]
