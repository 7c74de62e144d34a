"""Which edits a step runs and which it pauses, in the engine with a fake model; each step runs one edit unless said."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from serve_app.config import AppSettings
from serve_app.editor.engine.engine import Engine
from serve_app.editor.engine.scheduler import AGEING
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.loading.load import load_model
from serve_app.editor.model.edit_model import Draft
from serve_app.edits.request import Progress
from serve_app.errors import DeadlineExceeded, EditCancelled, ServiceUnavailable
from tests.editor.engine.harness import (
    PICTURES,
    TOKENS_OF_64_PX,
    Clock,
    at_step,
    eventually,
    finish,
    open_gate,
    running,
    submit,
)
from tests.fakes import FakeModel, edit_request


@pytest.fixture
def gated() -> FakeModel:
    return FakeModel(gate=threading.Semaphore(0))


def begin(model: FakeModel, engine: Engine, name: str, steps: int) -> Ticket:
    """An edit in its first step."""
    ticket = submit(engine, edit_request(name, steps=steps))
    at_step(model, 1)
    return ticket


def names(model: FakeModel) -> list[str]:
    """The edits in each step."""
    return ["+".join(pack) for pack in model.packs]


def test_an_edit_with_less_work_left_pauses_a_longer_one(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        tickets = [begin(gated, engine, "long", 5)]
        tickets += [submit(engine, edit_request("short", steps=2))]
        open_gate(gated)
        finish(*tickets)
    assert names(gated) == ["long", "short", "short", "long", "long", "long", "long"]


def test_an_edit_that_has_less_left_than_a_new_one_goes_on(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        tickets = [begin(gated, engine, "old", 3)]
        tickets += [submit(engine, edit_request("new", steps=3))]
        open_gate(gated)
        finish(*tickets)
    assert names(gated) == ["old"] * 3 + ["new"] * 3


def test_by_arrival_no_edit_pauses(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, scheduling="arrival") as engine:
        tickets = [begin(gated, engine, "long", 5)]
        tickets += [submit(engine, edit_request("short", steps=2))]
        open_gate(gated)
        finish(*tickets)
    assert names(gated) == ["long"] * 5 + ["short"] * 2


def test_a_smaller_edit_fills_what_a_larger_one_leaves(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=3 * TOKENS_OF_64_PX) as engine:
        tickets = [begin(gated, engine, "first", 2)]
        tickets += [submit(engine, edit_request("large", steps=2, side_px=128))]  # 80 tokens of 96
        tickets += [submit(engine, edit_request("small", steps=8))]
        open_gate(gated)
        finish(*tickets)
    assert names(gated)[:2] == ["first", "first+small"]
    assert names(gated)[2:4] == ["large", "large"]


def test_a_long_edit_is_overtaken_only_by_those_that_come_soon_after_it(gated: FakeModel) -> None:
    """An eight-step edit yields to two-step ones that come before the engine has done `6 / AGEING` steps more."""
    bound = int((8 - 2) / AGEING)
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        tickets = [begin(gated, engine, "first", 1)]
        tickets += [submit(engine, edit_request("long", steps=8))]
        for step in range(1, 2 * bound, 2):  # Another one comes as soon as one is done.
            tickets.append(submit(engine, edit_request("short", steps=2)))
            at_step(gated, step + 2)
        open_gate(gated)
        finish(*tickets)
    assert names(gated).index("long") == pytest.approx(bound, abs=3)


def test_an_urgent_edit_goes_first(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        tickets = [begin(gated, engine, "long", 3)]
        for step in range(2, 4):
            clock.now += 1  # so long a step takes
            at_step(gated, step)
        tickets += [submit(engine, edit_request("urgent", steps=4), timeout_s=7)]
        tickets += [submit(engine, edit_request("calm", steps=2), timeout_s=100)]
        clock.now += 1
        open_gate(gated)
        finish(*tickets)
    assert names(gated)[3:] == ["urgent"] * 4 + ["calm"] * 2


def test_an_edit_that_cannot_meet_its_deadline_delays_no_other(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        tickets = [begin(gated, engine, "long", 3)]
        for step in range(2, 4):
            clock.now += 1
            at_step(gated, step)
        tickets += [submit(engine, edit_request("hopeless", steps=9), timeout_s=7)]
        tickets += [submit(engine, edit_request("calm", steps=2))]
        clock.now += 1
        open_gate(gated)
        finish(*tickets)
    assert names(gated)[3:5] == ["calm"] * 2


@pytest.mark.parametrize("max_paused", [0, 1, 2])
def test_no_more_edits_pause_than_configured(max_paused: int, gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, max_paused=max_paused) as engine:
        tickets = [begin(gated, engine, "9", 9)]
        for number in (6, 4, 2):
            tickets.append(submit(engine, edit_request(str(number), steps=number)))
            at_step(gated, len(gated.packs) + 1)
        assert engine.stats.paused == max_paused
        assert len(gated.begun) == 1 + max_paused
        open_gate(gated)
        finish(*tickets)
    assert all(ticket.future.exception() is None for ticket in tickets)


def test_a_pause_is_reported_once_and_its_time_is_counted(gated: FakeModel) -> None:
    clock, events = Clock(), list[Progress]()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        long = Ticket(edit_request("long", steps=4), PICTURES, on_progress=events.append)
        engine.submit(long)
        at_step(gated, 1)
        short = submit(engine, edit_request("short", steps=2))
        for step in range(2, 7):
            clock.now += 1
            at_step(gated, step)
        clock.now += 1
        open_gate(gated)
        finish(long, short)
        assert engine.stats.paused == 0
    assert [(event.step, event.is_paused) for event in events] == [
        *[(0, False), (1, False)],
        (1, True),
        *[(2, False), (3, False), (4, False)],
    ]
    timings = long.future.result().timings
    assert (timings.steps_s, timings.paused_s, timings.shared_steps) == (4, 2, 0)
    assert short.future.result().timings.paused_s == 0


def pause(model: FakeModel, engine: Engine, **options: float) -> tuple[Ticket, Ticket]:
    """An edit that has done a step of eight and is paused, and the one that runs, in the first of its four steps."""
    paused = Ticket(edit_request("paused", steps=8), PICTURES, **options)  # type: ignore[arg-type]
    engine.submit(paused)
    at_step(model, 1)
    runs = submit(engine, edit_request("runs", steps=4))
    at_step(model, 2)
    assert engine.stats.paused == 1
    return paused, runs


def test_a_paused_edit_is_cancelled(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        paused, runs = pause(gated, engine)
        paused.cancel()
        gated.gate.release()  # type: ignore[union-attr]
        finish(paused)
        assert isinstance(paused.future.exception(), EditCancelled)
        assert engine.stats.paused == 0
        open_gate(gated)
        finish(runs)


def test_a_paused_edit_expires(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        paused, runs = pause(gated, engine, timeout_s=5)
        clock.now += 5
        open_gate(gated)
        finish(paused, runs)
    assert isinstance(paused.future.exception(), DeadlineExceeded)
    assert names(gated) == ["paused"] + ["runs"] * 4


def test_a_paused_edit_fails_with_an_engine_that_closes(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        tickets = pause(gated, engine)
        closing = threading.Thread(target=engine.close)
        closing.start()
        eventually(lambda: not engine.alive)
        open_gate(gated)
        closing.join(10)
    assert [type(ticket.future.exception()) for ticket in tickets] == [ServiceUnavailable] * 2


def test_previews_of_a_paused_edit_come_once(gated: FakeModel) -> None:
    events = list[Progress]()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        request = replace(edit_request("paused", steps=4), num_previews=3)
        paused = Ticket(request, PICTURES, on_progress=events.append)
        engine.submit(paused)
        at_step(gated, 1)
        runs = submit(engine, edit_request("runs", steps=2))
        open_gate(gated)
        finish(paused, runs)
    assert [event.step for event in events if event.preview is not None] == [1, 2, 3]


def test_a_paused_edit_survives_when_others_run_out_of_memory(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=2 * TOKENS_OF_64_PX) as engine:
        tickets = [submit(engine, edit_request("long", steps=9, side_px=128))]  # alone: 80 tokens
        at_step(gated, 1)
        gated.memory = 1
        tickets += [submit(engine, edit_request(name, steps=2)) for name in "ab"]
        open_gate(gated)
        finish(*tickets)
        assert all(ticket.future.exception() is None for ticket in tickets)
        assert engine.stats.token_budget < 2 * TOKENS_OF_64_PX
    assert names(gated).count("long") == 9


def test_a_paused_edits_picture_is_the_same_bit_for_bit(
    tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One edit in a step, so that the company of an edit does not change either."""
    model, gate, steps = load_model(tiny_settings.editor), threading.Event(), list[Draft]()
    really_step = model.step

    def step(drafts: Sequence[Draft]) -> None:
        steps.extend(drafts)
        assert gate.wait(timeout=60)
        really_step(drafts)

    monkeypatch.setattr(model, "step", step)
    request = edit_request("a chair", steps=6)
    with running(model, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        gate.set()
        alone = submit(engine, request).future.result(timeout=60)
        steps.clear()
        gate.clear()
        tickets = [submit(engine, request)]
        eventually(lambda: len(steps) == 1)
        tickets += [submit(engine, edit_request(f"a table {number}", steps=1)) for number in range(3)]
        gate.set()
        finish(*tickets)
    assert [draft is steps[0] for draft in steps] == [True] + [False] * 3 + [True] * 5
    assert tickets[0].future.result().data == alone.data
