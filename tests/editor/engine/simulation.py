"""Runs the scheduler alone, on a clock that a step moves on by its tokens' time."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.config import Scheduling
from serve_app.editor.engine.edit import Edit, num_tokens
from serve_app.editor.engine.scheduler import Scheduler
from serve_app.editor.engine.ticket import Ticket
from tests.editor.engine.harness import PICTURES, TOKENS_OF_64_PX, Clock
from tests.fakes import FakeModel, edit_request

STEP_S = 0.05
"""Of a step that is full."""


@dataclass(frozen=True)
class Arrival:
    """An edit of so many steps that comes at `at` seconds and is dropped after `timeout_s`."""

    at: float
    num_steps: int
    timeout_s: float | None = None
    client: str = ""


@dataclass
class Outcome:
    """What became of an arrival.

    Attributes:
        simulated_s: from its coming to its last step; infinite if it was dropped.
        arrived_at, ran_at: token-steps that were done when it came, and before each of its steps.
    """

    arrival: Arrival
    simulated_s: float
    arrived_at: int
    ran_at: list[int]

    @property
    def work(self) -> int:
        return self.arrival.num_steps * TOKENS_OF_64_PX


def arrivals(num: int, rate_per_s: float, seed: int, *, long_steps: int = 40, short_steps: int = 4) -> list[Arrival]:
    """Poisson arrivals, of which every eighth is long."""
    rng, now, found = random.Random(seed), 0.0, []
    for number in range(num):
        now += rng.expovariate(rate_per_s)
        found.append(Arrival(now, long_steps if number % 8 == 7 else short_steps))
    return found


def simulate(
    arriving: Sequence[Arrival], scheduling: Scheduling, *, pack: int = 1, max_paused: int = 64, step_s: float = STEP_S
) -> list[Outcome]:
    """Run arrivals to their ends, `pack` edits to a step, which takes the same time however many there are."""
    clock, model, done = Clock(), FakeModel(), 0
    begin = clock.now
    scheduler = Scheduler(pack * TOKENS_OF_64_PX, max_paused, scheduling, clock)
    left = sorted(arriving, key=lambda arrival: arrival.at)
    outcomes: dict[Edit, Outcome] = {}
    while left or scheduler.begun or scheduler.num_waiting:
        while left and begin + left[0].at <= clock.now:
            edit = _edit(model, left.pop(0), outcomes, begin, done)
            scheduler.add(edit)
        for edit in scheduler.sweep():
            scheduler.remove(edit)
        chosen = scheduler.next_pack()
        if not chosen:
            if left:
                clock.now = begin + left[0].at
            continue
        for edit in chosen:
            if edit.draft is None:
                (edit.draft,) = model.begin([model.prepare(edit.ticket.request, PICTURES)])
            outcomes[edit].ran_at.append(done)
            edit.draft.index += 1
        done += num_tokens(chosen)
        clock.now += step_s
        scheduler.count_step(chosen, step_s)
        for edit in chosen:
            if edit.started.done:
                scheduler.remove(edit)
                outcomes[edit].simulated_s = clock.now - begin - outcomes[edit].arrival.at
    return list(outcomes.values())


def _edit(model: FakeModel, arrival: Arrival, outcomes: dict[Edit, Outcome], begin: float, done: int) -> Edit:
    number = len(outcomes)
    request = replace(edit_request(str(number), steps=arrival.num_steps), client=arrival.client)
    ticket = Ticket(request, PICTURES, timeout_s=arrival.timeout_s, submitted_at=begin + arrival.at)
    edit = Edit(ticket, model.prepare(request, PICTURES), arrival.num_steps)
    outcomes[edit] = Outcome(arrival, math.inf, done, [])
    return edit


def with_deadlines(arriving: Sequence[Arrival], seed: int, *, least: float = 2.0, most: float = 6.0) -> list[Arrival]:
    """The same arrivals, each with a limit of `least` to `most` times the time of its own steps."""
    rng = random.Random(seed)
    return [replace(each, timeout_s=each.num_steps * STEP_S * rng.uniform(least, most)) for each in arriving]


def is_feasible(arriving: Sequence[Arrival], step_s: float = STEP_S) -> bool:
    """Whether one edit at a time, the earliest deadline first, meets all deadlines; no order of steps meets more."""
    left = sorted(arriving, key=lambda arrival: arrival.at)
    waiting: list[tuple[float, int, int]] = []
    now = 0.0
    while left or waiting:
        while left and left[0].at <= now:
            arrival = left.pop(0)
            waiting.append((arrival.at + (arrival.timeout_s or math.inf), len(left), arrival.num_steps))
        if not waiting:
            now = left[0].at
            continue
        deadline, number, num_steps = waiting.pop(waiting.index(min(waiting)))
        now += step_s
        if num_steps > 1:
            waiting.append((deadline, number, num_steps - 1))
        elif now > deadline:
            return False
    return True


def feasible_rate(num: int, seed: int, **lengths: int) -> float:
    """The highest rate of arrivals, per second, at which all deadlines of `with_deadlines` can be met."""
    unit = arrivals(num, 1.0, seed, **lengths)
    low, high = 0.0, 100.0
    for _ in range(30):
        rate = (low + high) / 2
        faster = [replace(each, at=each.at / rate) for each in unit]
        low, high = (rate, high) if is_feasible(with_deadlines(faster, seed)) else (low, rate)
    return low


def share(values: Sequence[float], part: float) -> float:
    """The value below which this part of the values lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
