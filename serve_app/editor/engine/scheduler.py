"""Decides which edits the next step runs. All others wait, or are paused, which costs nothing but their drafts' memory.

A step runs as many edits as the token budget allows, chosen one after the other. An edit that does not fit beside those
chosen before is passed over; one above the whole budget runs alone. With `shortest`, the next one is

1. of normal priority; low priority only follows where nothing else fits, or after `LOW_PRIORITY_DELAY_S`;
2. of the client with the smallest sum of what it was served and its next edit's work. So clients get equal token-steps
   while they have edits, shorter edits first. A client that comes back starts level with the others;
3. of its client's edits, one that has waited while the engine did `1 / AGEING` times its work, the oldest first;
4. else one that would miss its deadline otherwise, the earliest deadline first;
5. else the one with the least work left (steps times tokens), to which `AGEING` times what the engine had done when the
   edit came is added.

No edit starves: by rule 2 clients take turns, and by rule 3, once the engine has done `1 / AGEING` times an edit's work
since it came, no later edit of its client goes first.

While several clients send edits, one of them gets at most half of the budget, so that a step is short for the others.

With `arrival`, an edit that has begun is never paused, and the others begin in the order in which they came, clients in
turn. One that does not fit waits until it does, and so do those after it. Pictures depend on neither.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence

from serve_app.config import Scheduling
from serve_app.editor.engine.budget import Speed, TokenBudget
from serve_app.editor.engine.edit import Edit, num_tokens
from serve_app.editor.engine.pack import Pack
from serve_app.editor.engine.turns import Ranked, in_turn
from serve_app.edits.fairness import ActiveClients

AGEING = 0.2
"""How much of the engine's work since an edit came counts for it."""

URGENCY = 3.0
"""An edit is urgent from this many times the time that it needs before its deadline."""

OTHER_STEPS = 2
"""What an edit needs for its encoding and decoding, in steps."""

_LATE = 2
"""The group of edits that yield to all others."""


class Scheduler:
    """Holds every prepared edit until its end.

    Args:
        max_pack_tokens: picture tokens of one step; an edit above it runs alone.
        max_paused: edits that have begun and may be left out of a step. None begins ahead of more, but the first one of
            a client that has none.
        clock: seconds.

    Attributes:
        changed: held while the edits change; wakes `wait`.
    """

    def __init__(
        self, max_pack_tokens: int, max_paused: int, scheduling: Scheduling, clock: Callable[[], float]
    ) -> None:
        self.budget = TokenBudget(max_pack_tokens, clock)
        self.changed = threading.Condition()
        self._max_paused = max_paused
        self._pauses = scheduling == "shortest"
        self._clock = clock
        self._edits: list[Edit] = []
        self._is_closed = False
        self._served: dict[str, float] = defaultdict(float)
        self._uncharged: set[str] = set()
        self._active = ActiveClients(2, clock)
        self._num_done = 0
        self._speed = Speed()

    # Any thread

    def add(self, edit: Edit) -> None:
        """Let a prepared edit wait for its turn."""
        with self.changed:
            self._active.add(edit.ticket.client)
            self._level(edit.ticket.client)
            edit.arrived_at = self._num_done
            self._edits.append(edit)
            self.changed.notify_all()

    def close(self) -> list[Edit]:
        """Have `wait` return False from now on; returns the edits that have not begun, and forgets them."""
        with self.changed:
            self._is_closed = True
            waiting = [edit for edit in self._edits if edit.draft is None]
            self._edits = self.begun
            self.changed.notify_all()
        return waiting

    @property
    def begun(self) -> list[Edit]:
        """The edits that have begun and not ended."""
        with self.changed:
            return [edit for edit in self._edits if edit.draft is not None]

    @property
    def num_waiting(self) -> int:
        """Edits that have not begun."""
        with self.changed:
            return sum(edit.draft is None for edit in self._edits)

    # The engine thread

    def wait(self) -> bool:
        """Block until there is an edit; False once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self._edits or self._is_closed)
            return not self._is_closed

    def sweep(self) -> list[Edit]:
        """The edits that were cancelled or have expired."""
        now = self._clock()
        return [edit for edit in list(self._edits) if edit.ticket.unwanted(now)]

    def next_pack(self) -> list[Edit]:
        """The edits of the next step; those among them that have no draft begin with it."""
        with self.changed:
            order, begun = self._in_turn(self._edits), self.begun
            pack = Pack(self.budget.tokens, begun, self._max_paused, self._active.share, shares_begun=self._pauses)
            # Again for what might not begin while it was unknown which of the begun edits follow.
            for edit in (*order, *(edit for edit in order if edit.draft is None)):
                if edit in pack.edits or not pack.may_begin(edit):
                    continue
                if pack.fits(edit):
                    pack.add(edit)
                elif not self._pauses and pack.is_full_for(edit):
                    break
            # A client whose next edit does not fit is not charged for smaller ones that do: else its turn never comes.
            next_of = {edit.ticket.client: edit for edit in reversed(order)}
            self._uncharged = {client for client, edit in next_of.items() if edit not in pack.edits}
            new = (edit for edit in pack.edits if edit.draft is None)
            return [*(edit for edit in begun if edit in pack.edits), *new]

    def count_step(self, pack: Sequence[Edit], seconds: float) -> None:
        """Charge a step to its edits' clients."""
        with self.changed:
            for edit in pack:
                if edit.ticket.client not in self._uncharged:
                    self._served[edit.ticket.client] += edit.num_tokens
            self._num_done += num_tokens(pack)
        self._speed.add(num_tokens(pack), seconds)

    def remove(self, edit: Edit) -> None:
        """Forget an edit that has finished or failed."""
        with self.changed:
            self._edits = [each for each in self._edits if each is not edit]

    def _in_turn(self, edits: Sequence[Edit]) -> list[Edit]:
        """All edits, in the order in which the next step takes them. `changed` is held."""
        now = self._clock()
        step_s = self._speed.seconds(min(num_tokens(edits), self.budget.tokens))
        of_client: dict[tuple[int, str], list[Ranked]] = defaultdict(list)
        for number, edit in enumerate(edits):
            rank = self._by_work(edit, now, step_s) if self._pauses else (edit.ticket.rank,)
            of_client[self._group(edit, now), edit.ticket.client].append((rank, number, edit))
        least = min((self._served[client] for group, client in of_client if group < _LATE), default=0.0)
        for group, client in of_client:
            if group == _LATE:  # who yields saves up nothing
                self._served[client] = max(self._served[client], least)
        return in_turn(of_client, self._served, counts_work=self._pauses)

    def _group(self, edit: Edit, now: float) -> int:
        """Edits of a smaller group go first."""
        if edit.draft is not None and not self._pauses:
            return 0
        return _LATE if edit.ticket.is_low_priority and edit.ticket.rank > now else 1

    def _by_work(self, edit: Edit, now: float, step_s: float) -> tuple[float, ...]:
        if (self._num_done - edit.arrived_at) * AGEING > edit.work:
            return 0, edit.arrived_at
        deadline, needed_s = edit.ticket.deadline, (edit.num_left + OTHER_STEPS) * step_s
        if deadline is not None and self._speed.seconds(edit.work) <= deadline - now < URGENCY * needed_s:
            return 1, deadline
        return 2, edit.work + AGEING * edit.arrived_at

    def _level(self, client: str) -> None:
        """Let a client that has no edits begin level with those that have, and be next."""
        clients = {edit.ticket.client for edit in self._edits}
        if not clients:
            self._served.clear()
        elif client not in clients:
            level = min(self._served[each] for each in clients) - 1
            self._served[client] = max(self._served.get(client, level), level)
