"""The order of waiting edits in the engine: clients take turns."""

import threading
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from serve_app.config import Scheduling
from serve_app.editor.engine.engine import Engine
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.model.edit_model import Prepared
from serve_app.edits.fairness import ACTIVE_S
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, EditRequest, Pictures
from tests.editor.engine.harness import PICTURES, TOKENS_OF_64_PX, Clock, at_step, eventually, open_gate, running
from tests.fakes import FakeModel, edit_request


def submit(engine: Engine, client: str, number: int, *, low_priority: bool = False, steps: int = 1) -> Ticket:
    request = edit_request(f"{client} {number}", steps=steps)
    ticket = Ticket(replace(request, client=client, low_priority=low_priority), PICTURES)
    engine.submit(ticket)
    return ticket


def begun(model: FakeModel) -> list[str]:
    return [name for names in model.begun for name in names]


def hold_back(model: FakeModel, engine: Engine) -> None:
    """An edit in its first step: what is submitted now waits."""
    submit(engine, "", 0)
    at_step(model, 1)


@pytest.fixture
def gated() -> FakeModel:
    return FakeModel(gate=threading.Semaphore(0))


@pytest.mark.parametrize("num_at_once", [1, 8])
def test_four_edits_behind_a_hundred_of_another_client_begin_before_its_fifth(
    gated: FakeModel, num_at_once: int
) -> None:
    with running(gated, max_pack_tokens=num_at_once * TOKENS_OF_64_PX, max_waiting=200) as engine:
        hold_back(gated, engine)
        tickets = [submit(engine, "first", number) for number in range(100)]
        tickets += [submit(engine, "second", number) for number in range(4)]
        eventually(lambda: engine.stats.preparing == 0)
        open_gate(gated)
        for ticket in tickets:
            ticket.future.result(timeout=10)
    order = begun(gated)[1:]
    turns = [f"{client} {number}" for number in range(4) for client in ("second", "first")]
    assert order == [*turns, *(f"first {number}" for number in range(4, 100))]


def test_a_client_with_long_edits_does_not_keep_others_waiting(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=4 * TOKENS_OF_64_PX) as engine:
        for number in range(8):
            submit(engine, "first", number, steps=100)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 2)
        submit(engine, "second", 0, steps=100)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 3)
        assert "second 0" in gated.packs[2]


def test_a_client_takes_half_of_a_step_while_others_send_edits(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=8 * TOKENS_OF_64_PX) as engine:
        submit(engine, "second", 0)
        at_step(gated, 1)
        for number in range(8):
            submit(engine, "first", number, steps=100)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 2)
        assert gated.packs[1] == [f"first {number}" for number in range(4)]


def test_a_client_that_is_alone_for_a_minute_fills_the_step(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=8 * TOKENS_OF_64_PX, clock=clock) as engine:
        submit(engine, "second", 0)
        at_step(gated, 1)
        clock.now += ACTIVE_S
        for number in range(8):
            submit(engine, "first", number, steps=100)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 2)
        assert len(gated.packs[1]) == 8


def test_a_client_begins_although_another_one_has_all_places_of_paused_edits(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, max_paused=1) as engine:
        for number, steps in enumerate((100, 50, 25)):
            submit(engine, "first", number, steps=steps)
            eventually(lambda: engine.stats.preparing == 0)
            at_step(gated, number + 1)
        assert begun(gated) == ["first 0", "first 1"]
        for number in range(2):
            submit(engine, "second", number)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 5)
        assert gated.packs[3:] == [["second 0"], ["second 1"]]


def test_low_priority_saves_up_no_turns_while_it_yields(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        hold_back(gated, engine)
        for number in range(4):
            submit(engine, "low", number, low_priority=True, steps=4)
            submit(engine, "high", number, steps=4)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 9)
        clock.now += LOW_PRIORITY_DELAY_S
        at_step(gated, 15)
        assert {name.split()[0] for (name,) in gated.packs[1:9]} == {"high"}
        assert min(Counter(name.split()[0] for (name,) in gated.packs[9:]).values()) >= 2


@pytest.mark.parametrize("scheduling", ["shortest", "arrival"])
def test_clients_take_turns_under_both_policies(scheduling: Scheduling, gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, scheduling=scheduling) as engine:
        hold_back(gated, engine)
        for client in ("first", "second"):
            for number in range(3):
                submit(engine, client, number)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 7)
        assert [name.split()[0] for (name,) in gated.packs[1:]] == ["second", "first"] * 3


def test_clients_get_equal_parts_whatever_their_edits_take(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        hold_back(gated, engine)
        for number in range(12):
            submit(engine, "first", number, steps=2)
        submit(engine, "second", 0, steps=8)
        submit(engine, "second", 1, steps=8)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 33)
        taken = [name.split()[0] for (name,) in gated.packs[1:]]
        assert taken == [*["first"] * 6, *["second"] * 8, *["first"] * 8, *["second"] * 8, *["first"] * 2]


def test_low_priority_yields_to_the_other_clients_for_a_while(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        hold_back(gated, engine)
        tickets = [submit(engine, "low", number, low_priority=True) for number in range(2)]
        clock.now += 1
        tickets += [submit(engine, "high", number) for number in range(3)]
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 3)  # two of high's have begun
        assert begun(gated) == [" 0", "high 0", "high 1"]
        clock.now += LOW_PRIORITY_DELAY_S
        open_gate(gated)
        for ticket in tickets:
            ticket.future.result(timeout=10)
    assert begun(gated)[3:] == ["low 0", "high 2", "low 1"]


@dataclass
class SlowModel(FakeModel):
    """Its first edit is prepared once `opened` is set.

    Attributes:
        prepared: the names of the edits in the order of their preparation.
    """

    opened: threading.Event = field(default_factory=threading.Event)
    prepared: list[str] = field(default_factory=list)

    def prepare(self, request: EditRequest, pictures: Pictures) -> Prepared:
        self.prepared.append(request.prompt)
        if not self.opened.wait(timeout=10):
            raise TimeoutError("the test never opened the preparation")
        return super().prepare(request, pictures)


def test_clients_take_turns_in_preparation_too() -> None:
    model = SlowModel()
    with running(model) as engine:
        tickets = [submit(engine, "first", number) for number in range(4)]
        eventually(lambda: model.prepared == ["first 0"])
        tickets += [submit(engine, "second", number) for number in range(2)]
        model.opened.set()
        for ticket in tickets:
            ticket.future.result(timeout=10)
    assert model.prepared == ["first 0", "second 0", "first 1", "second 1", "first 2", "first 3"]


def test_a_large_edit_is_not_passed_over_for_ever(gated: FakeModel) -> None:
    """It fits beside no other one, and both clients always have smaller ones, two of which fill a step."""
    with running(gated, max_pack_tokens=3 * TOKENS_OF_64_PX) as engine:
        hold_back(gated, engine)
        large = replace(edit_request("large", steps=2, side_px=128), client="first")
        engine.submit(Ticket(large, PICTURES))
        for step in range(1, 120):
            for client in ("first", "second"):
                submit(engine, client, step, steps=1)
            eventually(lambda: engine.stats.preparing == 0)
            at_step(gated, step + 1)
            if ["large"] in gated.packs:
                break
        assert len(gated.packs) < 60


@pytest.mark.parametrize("max_paused", [0, 1, 16])
def test_new_edits_begin_where_there_is_room(max_paused: int, gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=4 * TOKENS_OF_64_PX, max_paused=max_paused) as engine:
        submit(engine, "", 0, steps=20)
        at_step(gated, 1)
        for number in range(1, 4):
            submit(engine, "", number, steps=3)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 2)
        assert len(gated.packs[1]) == 4


def test_by_arrival_no_begun_edit_pauses_for_another_client(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=8 * TOKENS_OF_64_PX, scheduling="arrival") as engine:
        for number in range(6):
            submit(engine, "first", number, steps=20)
            eventually(lambda: engine.stats.preparing == 0)
            at_step(gated, number + 1)
        submit(engine, "second", 0, steps=20)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 7)
        assert len(gated.packs[6]) == 7


def test_urgent_edits_do_not_keep_another_one_waiting_for_ever(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        hold_back(gated, engine)
        submit(engine, "", 1, steps=4)
        for step in range(1, 100):
            ticket = Ticket(edit_request("urgent", steps=1), PICTURES, timeout_s=4)
            engine.submit(ticket)
            eventually(lambda: engine.stats.preparing == 0)
            clock.now += 1
            at_step(gated, step + 1)
            if [" 1"] in gated.packs:
                break
        assert len(gated.packs) < 40
