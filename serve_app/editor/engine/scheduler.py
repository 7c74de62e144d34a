"""Decides what runs next: which edits are admitted, which step in which pack, and which are dropped.

An edit is prepared on a thread of its own, waits for its turn, is admitted while the pack stays within the token
budget, and runs until it is finished, dropped or failed.

Whose turn it is: clients take turns, those with low priority last (`FairQueue.next`), both for preparation and for
admission. An edit that does not fit into the budget waits until it does, and so do those after it. While several
clients send edits, those of one of them leave half of the budget to the others, so that one with long edits does not
keep the others out for all their steps.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from serve_app.editor.engine.outbox import Outbox
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.edits.fairness import Askers, FairQueue
from serve_app.edits.request import EditRequest, EditTimings, Pictures
from serve_app.errors import Overloaded, ServiceUnavailable

Prepare = Callable[[EditRequest, Pictures], Prepared]

REGROWTH_PER_MIN = 0.1
"""Share of the full token budget that comes back in a minute after a cut."""


@dataclass(eq=False)
class Waiting:
    """A prepared edit that has not begun."""

    ticket: Ticket
    prepared: Prepared

    @property
    def num_done(self) -> int:
        """Steps done."""
        return 0


@dataclass(eq=False)
class Running:
    """An edit between its first and its last step.

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


class TokenBudget:
    """Picture tokens that may share a step: all until a pack runs out of memory, then half of that pack. The budget
    grows back with time, since what else used the device's memory may have ended. One thread cuts it; any may read it.

    Args:
        full: tokens of one step, as configured.
        clock: seconds.
    """

    def __init__(self, full: int, clock: Callable[[], float]) -> None:
        self._full = full
        self._clock = clock
        self._cut = (full, clock())

    @property
    def tokens(self) -> int:
        """The budget as it is now."""
        cut_to, cut_at = self._cut
        regrown = self._full * REGROWTH_PER_MIN * (self._clock() - cut_at) / 60
        return min(self._full, cut_to + int(regrown))

    def cut(self, num_tokens: int) -> None:
        """Halve the budget, because a pack of so many tokens was too large."""
        self._cut = (max(1, min(self.tokens, num_tokens) // 2), self._clock())


class Scheduler:
    """Holds every edit from its submission to its end. It refuses edits until it is opened.

    Args:
        max_pack_tokens: picture tokens of one step; an edit above it runs alone.
        max_waiting: edits that may wait or be prepared; one more is refused.
        outbox: takes the edits that fail while they are prepared.
        clock: seconds.

    Attributes:
        running: the edits that step; changed by the engine thread only.
    """

    def __init__(self, max_pack_tokens: int, max_waiting: int, outbox: Outbox, clock: Callable[[], float]) -> None:
        self.budget = TokenBudget(max_pack_tokens, clock)
        self._max_waiting = max_waiting
        self._outbox = outbox
        self._clock = clock
        self._changed = threading.Condition()
        self._prepare: Prepare | None = None
        self._num_preparing = 0
        self._unprepared = FairQueue[Ticket](clock)
        self._prepared: dict[Ticket, Prepared] = {}
        self._waiting = FairQueue[Ticket](clock)
        self._askers = Askers(2, clock)
        self._admitted: list[Waiting] = []
        self.running: list[Running] = []
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    # Any thread

    def open(self, prepare: Prepare) -> None:
        """Accept edits from now on; `prepare` is called on the preparing thread."""
        self._prepare = prepare

    def submit(self, ticket: Ticket) -> None:
        """Queue an edit.

        Raises:
            Overloaded: the queue is full.
            ServiceUnavailable: the scheduler is closed.
        """
        with self._changed:
            self._askers.add(ticket.client)
            if self._prepare is None:
                raise ServiceUnavailable("The editor is shutting down; try again.")
            if self._num_preparing + len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} edits are waiting already; try again later.")
            # From here on the engine alone ends this future. An asyncio task that awaits a future cancels it when it
            # is cancelled itself, and the engine could no longer set its result.
            ticket.future.set_running_or_notify_cancel()
            ticket.submitted_at = self._clock()
            self._num_preparing += 1
            self._unprepared.add(ticket)
            self._preparer.submit(self._prepare_next)

    def close(self) -> list[Ticket]:
        """Refuse edits from now on; returns those that waited. Those that are being prepared fail when that is done."""
        with self._changed:
            self._prepare = None
            tickets = list(self._waiting)
            self._waiting.clear()
            self._prepared.clear()
            self._changed.notify_all()
        return tickets

    def join(self) -> None:
        """Wait for the preparing thread's end."""
        self._preparer.shutdown()

    @property
    def begun(self) -> list[Ticket]:
        """The edits that were admitted and have not left."""
        return _tickets(self._admitted) + _tickets(self.running)

    @property
    def counts(self) -> dict[str, int]:
        """By the names of EngineStats."""
        with self._changed:
            return {
                "preparing": self._num_preparing,
                "waiting": len(self._waiting),
                "running": len(self.running),
                "token_budget": self.budget.tokens,
            }

    # The engine thread

    def wait(self) -> bool:
        """Block until an edit waits or runs; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.running or self._waiting or self._prepare is None)
            return self._prepare is not None

    def sweep(self) -> list[Ticket]:
        """Drop the edits that were cancelled or have expired; returns them."""
        now = self._clock()
        with self._changed:
            tickets = [*self._waiting, *_tickets(self.running)]
            unwanted = [ticket for ticket in tickets if ticket.unwanted(now)]
            for ticket in unwanted:
                self._waiting.discard(ticket)
                self._prepared.pop(ticket, None)
            self.running = [running for running in self.running if running.ticket not in unwanted]
        return unwanted

    def admit(self) -> list[Waiting]:
        """Take waiting edits in turn while the pack stays within the budget. Each must be started or removed."""
        budget = self.budget.tokens
        room = budget - num_tokens(self.running)
        of_client = Counter[str]()
        for running in self.running:
            of_client[running.ticket.client] += running.ticket.num_tokens
        self._admitted = []

        def is_within_share(ticket: Ticket) -> bool:
            taken = of_client[ticket.client]
            return not taken or taken + ticket.num_tokens <= self._askers.share(ticket.client, budget)

        with self._changed:
            while (ticket := self._waiting.next(is_within_share)) is not None:
                if ticket.num_tokens > room and (self.running or self._admitted):
                    break
                self._waiting.serve(ticket)
                self._admitted.append(Waiting(ticket, self._prepared.pop(ticket)))
                room -= ticket.num_tokens
                of_client[ticket.client] += ticket.num_tokens
        return list(self._admitted)

    def start(self, edit: Waiting, draft: Draft, began: float) -> Running:
        """Let an admitted edit run, whose encoding began at `began` and ends now."""
        now, num_steps = self._clock(), draft.schedule.num_steps
        timings = EditTimings(
            queue_s=began - edit.ticket.submitted_at,
            encode_s=now - began,
            steps_s=0.0,
            decode_s=0.0,
            compress_s=0.0,
            num_steps=num_steps,
            shared_steps=0,
        )
        previews_at = preview_steps(edit.ticket.request.num_previews, num_steps)
        running = Running(edit.ticket, draft, timings, now, previews_at)
        self.running.append(running)
        self._admitted.remove(edit)
        return running

    def packs(self) -> Iterator[list[Running]]:
        """All running edits, in one pack unless they exceed the budget. It is read for each pack, since running out of
        memory in one cuts it for the next."""
        left = list(self.running)
        while left:
            pack = _first_within(left, self.budget.tokens)
            del left[: len(pack)]
            yield pack

    def remove(self, edit: Waiting | Running) -> None:
        """Forget an edit that has finished or failed."""
        if isinstance(edit, Running):
            self.running.remove(edit)
        else:
            self._admitted.remove(edit)

    def clear(self) -> None:
        """Forget all edits that have begun."""
        self._admitted, self.running = [], []

    # The preparing thread

    def _prepare_next(self) -> None:
        prepared, problem = None, None
        with self._changed:
            prepare, ticket = self._prepare, self._unprepared.next()
            if ticket is None:
                return
            self._unprepared.serve(ticket)
        try:
            if prepare is not None:
                prepared = prepare(ticket.request, ticket.pictures)
        except Exception as caught:
            problem = caught
        with self._changed:
            self._num_preparing -= 1
            if prepared is not None and self._prepare is not None:
                self._prepared[ticket] = prepared
                self._waiting.add(ticket)
                self._changed.notify_all()
                return
        self._outbox.failed(ticket, stopped() if problem is None else problem)


def preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """The steps (from 1) after which previews are due: evenly spread, never after the last one."""
    return frozenset(
        round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1)
    ) & frozenset(range(1, num_steps))


def num_tokens(edits: Sequence[E]) -> int:
    """Picture tokens of a pack."""
    return sum(edit.ticket.num_tokens for edit in edits)


def stopped() -> ServiceUnavailable:
    """The error of an edit that the engine leaves undone, but that another one may do."""
    return ServiceUnavailable("The editor stopped before this edit was done; try again.")


def _tickets(edits: Sequence[E]) -> list[Ticket]:
    return [edit.ticket for edit in edits]


def _first_within(edits: Sequence[E], max_tokens: int) -> list[E]:
    """The first edits, as many as the tokens allow, but at least one."""
    taken = 0
    while taken < len(edits) and (taken == 0 or num_tokens(edits[: taken + 1]) <= max_tokens):
        taken += 1
    return list(edits[:taken])
