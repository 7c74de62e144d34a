"""The engine's loop with a fake model: which edits share which step, and how each one ends."""

import threading
from dataclasses import replace

import pytest

from serve_app.editor.engine.edit import preview_steps
from serve_app.editor.engine.engine import Engine, StepModel
from serve_app.editor.engine.ticket import Ticket
from serve_app.edits.request import LOW_PRIORITY_DELAY_S, Progress
from serve_app.errors import DeadlineExceeded, EditCancelled, EditFailed, Overloaded, ServiceUnavailable
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
from tests.fakes import FakeModel, edit_request, picture


@pytest.fixture
def gated() -> FakeModel:
    """A model whose steps the test releases one by one."""
    return FakeModel(gate=threading.Semaphore(0))


def test_one_edit_runs_its_steps_and_gives_a_picture() -> None:
    model = FakeModel()
    with running(model) as engine:
        result = submit(engine, edit_request("a", steps=3)).future.result(timeout=10)
    assert model.packs == [["a"]] * 3
    assert result.media_type == "image/png"
    assert result.data.startswith(b"\x89PNG")
    assert (result.timings.num_steps, result.timings.shared_steps) == (3, 0)


def test_a_later_edit_joins_at_the_next_step_and_leaves_when_done(gated: FakeModel) -> None:
    with running(gated) as engine:
        first = submit(engine, edit_request("first", steps=4))
        at_step(gated, 1)
        second = submit(engine, edit_request("second", steps=2))
        open_gate(gated)
        finish(first, second)
    assert gated.packs == [["first"], ["first", "second"], ["first", "second"], ["first"]]
    assert second.future.result().timings.shared_steps == 2


def test_a_cancelled_edit_leaves_at_the_next_step(gated: FakeModel) -> None:
    with running(gated) as engine:
        leaves = submit(engine, edit_request("leaves", steps=9))
        at_step(gated, 1)
        stays = submit(engine, edit_request("stays", steps=3))
        at_step(gated, 3)
        leaves.cancel()
        leaves.cancel()  # idempotent
        open_gate(gated)
        finish(stays, leaves)
        assert isinstance(leaves.future.exception(), EditCancelled)
        assert engine.stats.cancelled == 1
    assert gated.packs == [["leaves"], ["leaves", "stays"], ["leaves", "stays"], ["stays"]]


def test_a_cancelled_waiter_does_not_end_the_engine(gated: FakeModel) -> None:
    """asyncio cancels the future that a cancelled task awaits."""
    with running(gated) as engine:
        left = submit(engine, edit_request("left", steps=3))
        at_step(gated, 1)
        assert not left.future.cancel()
        left.cancel()
        open_gate(gated)
        finish(left)
        assert submit(engine, edit_request("next")).future.result(timeout=10)


def test_equal_edits_are_distinguished(gated: FakeModel) -> None:
    """Tickets hold arrays, whose comparison has no truth value, so tickets must be compared by identity."""
    with running(gated) as engine:
        tickets = [Ticket(edit_request("twin", steps=3), (picture(),)) for _ in range(3)]
        for ticket in tickets:
            engine.submit(ticket)
        eventually(lambda: engine.stats.preparing == 0)
        at_step(gated, 1)
        tickets[1].cancel()
        open_gate(gated)
        finish(*tickets)
        assert engine.alive
    ends = [ticket.future.exception() for ticket in tickets]
    assert [type(end) for end in ends] == [type(None), EditCancelled, type(None)]


def test_a_cancelled_edit_that_waits_never_begins(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        first = submit(engine, edit_request("first", steps=2))
        at_step(gated, 1)
        waiting = submit(engine, edit_request("waiting"))
        waiting.cancel()
        open_gate(gated)
        finish(first, waiting)
    assert isinstance(waiting.future.exception(), EditCancelled)
    assert gated.packs == [["first"]] * 2


def test_the_pack_stays_within_its_budget(gated: FakeModel) -> None:
    with running(gated, scheduling="arrival", max_pack_tokens=2 * TOKENS_OF_64_PX) as engine:
        tickets = [submit(engine, edit_request("a", steps=3))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request(name, steps=2)) for name in "bc"]
        open_gate(gated)
        finish(*tickets)
    assert gated.packs == [["a"], ["a", "b"], ["a", "b"], ["c"], ["c"]]


def test_an_edit_above_the_budget_runs_alone_and_in_its_turn(gated: FakeModel) -> None:
    with running(gated, scheduling="arrival", max_pack_tokens=TOKENS_OF_64_PX) as engine:
        small = submit(engine, edit_request("small", steps=2))
        at_step(gated, 1)
        big = submit(engine, edit_request("big", steps=2, side_px=256))
        after = submit(engine, edit_request("after", steps=2))
        open_gate(gated)
        finish(small, big, after)
    assert gated.packs == [["small"], ["small"], ["big"], ["big"], ["after"], ["after"]]


def test_an_expired_edit_is_gone_at_the_next_step_and_its_room_is_used_in_it(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, scheduling="arrival", max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        late = submit(engine, edit_request("late", steps=9), timeout_s=5.0)
        at_step(gated, 1)
        next_one = submit(engine, edit_request("next", steps=2))
        clock.now += 4.9
        at_step(gated, 2)
        clock.now += 0.1
        open_gate(gated)
        finish(late, next_one)
        assert engine.stats.expired == 1
    assert isinstance(late.future.exception(), DeadlineExceeded)
    assert str(late.future.exception()) == "The edit was not done within its 5.0 s."
    assert gated.packs == [["late"], ["late"], ["next"], ["next"]]


def test_a_cancelled_edits_room_is_used_in_the_same_step(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        leaves = submit(engine, edit_request("leaves", steps=9))
        at_step(gated, 1)
        next_one = submit(engine, edit_request("next", steps=1))
        leaves.cancel()
        open_gate(gated)
        finish(leaves, next_one)
    assert gated.packs == [["leaves"], ["next"]]


def test_an_edit_that_expires_while_it_waits_never_begins(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        first = submit(engine, edit_request("first", steps=2))
        at_step(gated, 1)
        waiting = submit(engine, edit_request("waiting"), timeout_s=1.0)
        clock.now += 1.0
        open_gate(gated)
        finish(first, waiting)
    assert isinstance(waiting.future.exception(), DeadlineExceeded)
    assert gated.begun == [["first"]]


def test_low_priority_lets_others_go_first_but_not_for_ever(gated: FakeModel) -> None:
    clock = Clock()
    with running(gated, scheduling="arrival", max_pack_tokens=TOKENS_OF_64_PX, clock=clock) as engine:
        tickets = [submit(engine, edit_request("running", steps=1))]
        at_step(gated, 1)
        tickets.append(submit(engine, replace(edit_request("low", steps=1), low_priority=True)))
        clock.now += 1
        tickets.append(submit(engine, edit_request("soon", steps=1)))
        clock.now += LOW_PRIORITY_DELAY_S
        tickets.append(submit(engine, edit_request("much later", steps=1)))
        open_gate(gated)
        finish(*tickets)
    assert gated.packs == [["running"], ["soon"], ["low"], ["much later"]]


def test_what_is_admitted_together_is_encoded_together(gated: FakeModel) -> None:
    with running(gated) as engine:
        tickets = [submit(engine, edit_request("first", steps=2))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request(name, steps=1)) for name in "ab"]
        open_gate(gated)
        finish(*tickets)
    assert gated.begun == [["first"], ["a", "b"]]


def test_every_step_is_reported_with_its_previews() -> None:
    events: list[Progress] = []
    with running(FakeModel()) as engine:
        ticket = Ticket(replace(edit_request("a", steps=4), num_previews=1), PICTURES, on_progress=events.append)
        engine.submit(ticket)
        finish(ticket)
    assert [(progress.step, progress.num_steps) for progress in events] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [progress.step for progress in events if progress.preview is not None] == [2]
    assert events[2].preview is not None
    assert events[2].preview.startswith(b"\x89PNG")


def test_a_preview_that_fails_harms_nobody() -> None:
    events: list[Progress] = []
    with running(FakeModel(failing={"a": "preview"})) as engine:
        ticket = Ticket(replace(edit_request("a", steps=4), num_previews=3), PICTURES, on_progress=events.append)
        engine.submit(ticket)
        assert ticket.future.result(timeout=10)
    assert [(progress.step, progress.preview) for progress in events] == [(step, None) for step in range(5)]


def test_a_listener_that_raises_harms_nobody() -> None:
    def raises(progress: Progress) -> None:
        raise RuntimeError("broken listener")

    with running(FakeModel()) as engine:
        ticket = Ticket(edit_request("a"), PICTURES, on_progress=raises)
        engine.submit(ticket)
        assert ticket.future.result(timeout=10)


@pytest.mark.parametrize(
    ("num_previews", "num_steps", "due"),
    [(0, 4, []), (1, 4, [2]), (2, 4, [1, 3]), (3, 4, [1, 2, 3]), (3, 8, [2, 4, 6]), (3, 2, [1]), (3, 1, [])],
)
def test_previews_are_spread_evenly(num_previews: int, num_steps: int, due: list[int]) -> None:
    assert sorted(preview_steps(num_previews, num_steps)) == due


def test_guidance_counts_twice_in_the_budget(gated: FakeModel) -> None:
    with running(gated, scheduling="arrival", max_pack_tokens=2 * TOKENS_OF_64_PX) as engine:
        tickets = [submit(engine, edit_request("guided", steps=2, guidance=2.0))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request("plain", steps=1))]
        open_gate(gated)
        finish(*tickets)
    assert gated.packs == [["guided"], ["guided"], ["plain"]]


@pytest.mark.parametrize("stage", ["prepare", "begin", "step", "finish"])
def test_a_failing_edit_fails_alone(stage: str, gated: FakeModel) -> None:
    gated.failing = {"bad": stage}
    with running(gated) as engine:
        good, bad, other = (submit(engine, edit_request(name, steps=3)) for name in ("good", "bad", "other"))
        open_gate(gated)
        finish(good, bad, other)
        assert isinstance(bad.future.exception(), EditFailed)
        assert "breaks" not in str(bad.future.exception())
        assert good.future.exception() is None
        assert other.future.exception() is None
        assert (engine.stats.completed, engine.stats.failed) == (2, 1)
        # The engine still works.
        assert submit(engine, edit_request("next")).future.result(timeout=10)


def test_a_full_queue_refuses_at_once(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX, max_waiting=2) as engine:
        tickets = [submit(engine, edit_request("running"))]
        eventually(lambda: engine.stats.running == 1)
        tickets += [submit(engine, edit_request("waiting")) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 edits are waiting"):
            submit(engine, edit_request("too many"))
        open_gate(gated)
        finish(*tickets)


def test_closing_fails_what_runs_and_waits_and_refuses_the_rest(gated: FakeModel) -> None:
    with running(gated, max_pack_tokens=TOKENS_OF_64_PX) as engine:
        tickets = [submit(engine, edit_request(name)) for name in ("running", "waiting")]
        eventually(lambda: engine.stats.running == 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        eventually(lambda: not engine.alive)
        open_gate(gated)
        closing.join(10)
        finish(*tickets)
        assert [type(ticket.future.exception()) for ticket in tickets] == [ServiceUnavailable] * 2
        assert not engine.alive
        with pytest.raises(ServiceUnavailable):
            submit(engine, edit_request("late"))


def test_a_model_that_does_not_load_fails_the_start() -> None:
    def broken() -> StepModel:
        raise RuntimeError("no weights")

    engine = Engine(broken, max_pack_tokens=1, max_waiting=1)
    with pytest.raises(RuntimeError, match="no weights"):
        engine.start()


def test_the_stats_count_shared_steps(gated: FakeModel) -> None:
    with running(gated) as engine:
        tickets = [submit(engine, edit_request("a", steps=3))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request("b", steps=1))]
        open_gate(gated)
        finish(*tickets)
        stats = engine.stats
    assert (stats.num_steps, stats.num_edit_steps) == (3, 4)
    assert (stats.running, stats.waiting, stats.completed) == (0, 0, 2)
