"""A cell in simulated time: arrivals, the routing to editors, and Serve's autoscaler."""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from serve_app.serving.affinity import PictureAffinity
from serve_app.tools.load.load import Outcome
from serve_app.tools.load.mix import LoadEdit
from serve_app.tools.plan.costs import Costs
from serve_app.tools.plan.editor import SimulatedEditor
from serve_app.tools.plan.setup import Autoscaling, Setup

TICK_S = 1.0
"""Between decisions of the autoscaler."""


@dataclass(frozen=True)
class Load:
    """Edits and when they come: at `times`, or, where that is None, from so many clients with one edit each at a time.
    None comes after `end_s`."""

    edits: Iterator[LoadEdit]
    end_s: float
    times: Iterator[float] | None = None
    num_clients: int = 0


@dataclass
class Simulated:
    """What a simulation found.

    Attributes:
        outcomes: of all edits, as a load on a server has them.
        num_served: edits by editor.
        editor_s: seconds of editors that were up or starting, in all.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    num_served: list[int] = field(default_factory=list)
    num_hits: int = 0
    num_encoded: int = 0
    editor_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        return self.num_hits / max(1, self.num_hits + self.num_encoded)


def simulate(
    setup: Setup, costs: Costs, num_editors: int, load: Load, outside_s: float = 0.0, *, scales: bool = False
) -> Simulated:
    """Run a load to its end.

    Args:
        outside_s: of each edit outside the engine, which delays nothing else.
        scales: let the autoscaler set the number of editors; it begins with `num_editors`.
    """
    cell = _Cell(setup, costs, num_editors, load, outside_s)
    if scales and setup.autoscaling is not None:
        cell.at(0.0, _Scaler(cell, setup.autoscaling).tick)
    return cell.run()


class _Cell:
    def __init__(self, setup: Setup, costs: Costs, num_editors: int, load: Load, outside_s: float) -> None:
        self.now = 0.0
        self.editors: list[SimulatedEditor] = []
        self.num_starting = 0
        self.expects_more = True
        self._load = load
        self._setup, self._costs, self._outside_s = setup, costs, outside_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._names = count(), count()
        self._waiting: deque[LoadEdit] = deque()
        self._due: dict[int, float] = {}
        self._affinity, self._rng = PictureAffinity(), random.Random(0)
        self._found = Simulated()
        for _ in range(num_editors):
            self.add_editor()

    @property
    def num_open(self) -> int:
        """Edits that wait or run."""
        return len(self._waiting) + sum(len(editor.edits) for editor in self.editors)

    @property
    def accepting(self) -> list[SimulatedEditor]:
        return [editor for editor in self.editors if not editor.is_leaving]

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), event))

    def run(self) -> Simulated:
        if self._load.times is None:
            for _ in range(self._load.num_clients):
                self.at(0.0, self._arrive)
        else:
            self._await_next(self._load.times)
        while self._events:
            then, _, event = heapq.heappop(self._events)
            self._found.editor_s += (then - self.now) * (len(self.editors) + self.num_starting)
            self.now = then
            event()
        for editor in list(self.editors):
            self._count(editor)
        return self._found

    def add_editor(self) -> None:
        name = f"editor {next(self._names)}"
        self.editors.append(SimulatedEditor(name, self._setup, self._costs, lambda: self.now))
        self._pass_on()

    def remove_editor(self, editor: SimulatedEditor) -> None:
        """Let it finish its edits and go."""
        editor.is_leaving = True
        if not editor.edits and not editor.is_busy:
            self._drop(editor)

    def _await_next(self, times: Iterator[float]) -> None:
        due_s = next(times, math.inf)
        self.expects_more = due_s < self._load.end_s
        if self.expects_more:

            def arrive() -> None:
                self._arrive()
                self._await_next(times)

            self.at(due_s, arrive)

    def _arrive(self) -> None:
        self.expects_more = self.now < self._load.end_s
        if self.expects_more:
            edit = next(self._load.edits)
            self._due[edit.number] = self.now
            self._waiting.append(edit)
            self._pass_on()

    def _pass_on(self) -> None:
        """Give waiting edits to editors in their order, as far as these accept them."""
        while self._waiting and (editor := self._choose(self._waiting[0])) is not None:
            editor.add(self._waiting.popleft())
            if not editor.is_busy:
                self._turn(editor)

    def _choose(self, edit: LoadEdit) -> SimulatedEditor | None:
        room = self._setup.max_ongoing_requests
        editors = {editor.name: editor for editor in self.accepting if len(editor.edits) < room}
        if not editors:
            return None
        if self._setup.routing == "balanced":
            two = self._rng.sample(list(editors.values()), min(2, len(editors)))
            return min(two, key=lambda editor: len(editor.edits))
        picture = str(edit.picture)
        name = self._affinity.order(picture, {name: len(editor.edits) for name, editor in editors.items()})[0]
        self._affinity.remember(picture, name)
        return editors[name]

    def _turn(self, editor: SimulatedEditor) -> None:
        turn = editor.turn()
        editor.is_busy = turn is not None
        if turn is None:
            if editor.is_leaving:
                self._drop(editor)
            return
        for edit, done_at in turn.done:
            self._finish(edit, done_at + self._outside_s)
        self.at(turn.ends_at, lambda: self._go_on(editor))

    def _go_on(self, editor: SimulatedEditor) -> None:
        editor.is_busy = False
        self._pass_on()
        if not editor.is_busy:
            self._turn(editor)

    def _finish(self, edit: LoadEdit, answered_at: float) -> None:
        due_s = self._due.pop(edit.number)
        self._found.outcomes.append(Outcome(due_s, answered_at - due_s))
        if self._load.times is None:
            self.at(answered_at, self._arrive)

    def _drop(self, editor: SimulatedEditor) -> None:
        self.editors.remove(editor)
        self._count(editor)

    def _count(self, editor: SimulatedEditor) -> None:
        self._found.num_served.append(editor.num_served)
        self._found.num_hits += editor.num_hits
        self._found.num_encoded += editor.num_encoded


class _Scaler:
    """Serve's default policy: as many editors as the mean number of open requests needs, once a decision has held for
    its delay."""

    def __init__(self, cell: _Cell, settings: Autoscaling) -> None:
        self._cell, self._settings = cell, settings
        self._open: deque[int] = deque(maxlen=round(settings.look_back_s / TICK_S))
        self._since: tuple[int, float] = (0, 0.0)

    def tick(self) -> None:
        cell, settings = self._cell, self._settings
        self._open.append(cell.num_open)
        mean = sum(self._open) / len(self._open)
        needed = math.ceil(mean / settings.target_ongoing_requests)
        wanted = min(settings.max_replicas, max(settings.min_replicas, needed))
        current = len(cell.accepting) + cell.num_starting
        direction = (wanted > current) - (wanted < current)
        if direction != self._since[0]:
            self._since = direction, cell.now
        delay_s = settings.upscale_delay_s if direction > 0 else settings.downscale_delay_s
        if direction and cell.now - self._since[1] >= delay_s:
            self._scale(wanted - current)
            self._since = 0, cell.now
        if cell.expects_more or cell.num_open:
            cell.at(cell.now + TICK_S, self.tick)

    def _scale(self, change: int) -> None:
        for _ in range(change):
            self._cell.num_starting += 1
            self._cell.at(self._cell.now + self._settings.start_s, self._started)
        for editor in sorted(self._cell.accepting, key=lambda editor: len(editor.edits))[: max(0, -change)]:
            self._cell.remove_editor(editor)

    def _started(self) -> None:
        self._cell.num_starting -= 1
        self._cell.add_editor()
