"""The engine after an out-of-memory error, a lost device and a call that never ends: how each edit ends, and whether
the engine goes on."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.config import AppSettings
from serve_app.editor.engine.budget import TokenBudget
from serve_app.editor.engine.failures import service_error
from serve_app.editor.engine.ticket import Ticket
from serve_app.editor.loading.load import load_model
from serve_app.editor.model.edit_model import Draft, Prepared
from serve_app.edits.request import Pixels, Progress
from serve_app.errors import EditFailed, InvalidInput, OutOfMemory, ServiceUnavailable
from serve_app.weights.faults import Fault, fault_of
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

NEVER_S = 100_000.0
"""Longer than any test may take."""


def no_memory(text: str) -> Exception:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate 2.00 GiB. {text}")


def illegal_access(text: str) -> Exception:
    return RuntimeError(f"CUDA error: an illegal memory access was encountered\n{text}")


@pytest.fixture
def gated() -> FakeModel:
    """A model whose steps the test releases one by one."""
    return FakeModel(gate=threading.Semaphore(0))


def ends(*tickets: Ticket) -> list[type[BaseException] | None]:
    """The edits' errors; None for one that ended with a picture."""
    finish(*tickets)
    problems = [ticket.future.exception() for ticket in tickets]
    return [None if problem is None else type(problem) for problem in problems]


@pytest.mark.parametrize(
    ("problem", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), Fault.MEMORY),
        (MemoryError(), Fault.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Fault.MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory"), Fault.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Fault.MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), Fault.MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Fault.DEVICE),
        (RuntimeError("CUDA error: device-side assert triggered"), Fault.DEVICE),
        (RuntimeError("CUDA driver error: unspecified launch failure"), Fault.DEVICE),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), Fault.DEVICE),
        (torch.AcceleratorError("unspecified launch failure"), Fault.DEVICE),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), Fault.CALL),
        (ValueError("CUDA error: as a client may have written"), Fault.CALL),
        (InvalidInput("prompt: 'CUDA error: out of memory' is too long"), Fault.CALL),
    ],
)
def test_faults_are_classified(problem: Exception, fault: Fault) -> None:
    assert fault_of(problem) is fault


def test_what_torch_itself_raises_for_lack_of_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    assert fault_of(caught.value) is Fault.MEMORY


def test_the_message_names_the_fix() -> None:
    error = service_error(no_memory(""))
    assert (error.status, error.code) == (500, "out_of_memory")
    assert "width, height" in str(error)
    assert "GiB" not in str(error)


# Memory


@pytest.mark.parametrize("stage", ["prepare", "begin", "step", "finish"])
def test_who_asks_for_too_much_fails_alone(stage: str, gated: FakeModel) -> None:
    gated.failing, gated.problem = {"huge": stage}, no_memory
    with running(gated) as engine:
        tickets = [submit(engine, edit_request(name, steps=3)) for name in ("good", "huge", "other")]
        open_gate(gated)
        assert ends(*tickets) == [None, OutOfMemory, None]
        assert engine.alive
        assert ends(submit(engine, edit_request("next"))) == [None]


def test_a_preview_for_which_there_is_no_memory_is_left_out() -> None:
    events: list[Progress] = []
    with running(FakeModel(failing={"a": "preview"}, problem=no_memory)) as engine:
        ticket = Ticket(edit_request("a"), PICTURES, on_progress=events.append)
        engine.submit(ticket)
        assert ends(ticket) == [None]


def test_a_single_edit_has_a_second_try_with_memory_made_free() -> None:
    class Tight(FakeModel):
        def finish(self, draft: Draft) -> Pixels:
            if self.num_freed == 0:
                raise no_memory("")
            return super().finish(draft)

    model = Tight()
    with running(model) as engine:
        assert ends(submit(engine, edit_request("a"))) == [None]
        assert engine.stats.token_budget == 10_000
    assert model.num_freed == 1


def test_a_pack_that_is_too_large_goes_on_in_smaller_ones(gated: FakeModel) -> None:
    with running(gated) as engine:
        tickets = [submit(engine, edit_request("a", steps=3))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request(name, steps=2)) for name in "bcd"]
        gated.memory = 3
        open_gate(gated)
        assert ends(*tickets) == [None] * 4
        assert engine.stats.token_budget == 2 * TOKENS_OF_64_PX
    assert gated.packs == [["a"], ["a", "b", "c", "d"], *([name] for name in "abcd"), ["a", "b"], ["c", "d"]]
    assert gated.num_freed == 1


def test_what_waits_respects_the_smaller_budget(gated: FakeModel) -> None:
    with running(gated) as engine:
        tickets = [submit(engine, edit_request("a", steps=2))]
        at_step(gated, 1)
        tickets += [submit(engine, edit_request(name, steps=1)) for name in "bc"]
        gated.memory = 1
        at_step(gated, 2)
        tickets += [submit(engine, edit_request(name, steps=1)) for name in "de"]
        open_gate(gated)
        assert ends(*tickets) == [None] * 5
        assert engine.stats.token_budget == TOKENS_OF_64_PX
    # Encoding b and c together ran out of memory already.
    assert gated.begun == [["a"], ["b", "c"], ["b"], ["c"], ["d"], ["e"]]
    assert gated.packs[1:] == [["a"], ["b"], ["c"], ["d"], ["e"]]


def test_edits_that_a_failed_step_has_moved_are_not_moved_again(gated: FakeModel) -> None:
    class Halfway(FakeModel):
        def step(self, drafts: Sequence[Draft]) -> None:
            if len(drafts) == 2 and self.num_freed == 0:
                drafts[0].index += 1
                raise no_memory("")
            super().step(drafts)

    model = Halfway(gate=threading.Semaphore(0))
    with running(model) as engine:
        tickets = [submit(engine, edit_request("a", steps=2))]
        at_step(model, 1)
        tickets += [submit(engine, edit_request("b", steps=1))]
        open_gate(model)
        assert ends(*tickets) == [None, None]
    assert model.packs == [["a"], ["b"]]


def test_the_budget_grows_back() -> None:
    clock = Clock()
    budget = TokenBudget(1000, clock)
    budget.cut(800)
    assert budget.tokens == 400
    clock.now += 60
    assert budget.tokens == 500
    budget.cut(5000)
    assert budget.tokens == 250
    clock.now += 3600
    assert budget.tokens == 1000


def test_the_budget_never_falls_to_nothing() -> None:
    budget = TokenBudget(1000, Clock())
    for _ in range(20):
        budget.cut(1)
    assert budget.tokens == 1


def test_what_failed_is_let_go_before_the_next_try(gated: FakeModel) -> None:
    """Its frames hold tensors, whose memory the second attempt needs."""
    alive: list[int] = []

    class Activations:
        def __del__(self) -> None:
            alive.pop()

    class Holding(FakeModel):
        def step(self, drafts: Sequence[Draft]) -> None:
            assert not alive
            activations = Activations()
            alive.append(1)
            if len(drafts) > 1:
                raise no_memory("")
            del activations
            super().step(drafts)

    model = Holding(gate=threading.Semaphore(0))
    with running(model) as engine:
        tickets = [submit(engine, edit_request("a", steps=2))]
        at_step(model, 1)
        tickets += [submit(engine, edit_request("b", steps=1))]
        open_gate(model)
        assert ends(*tickets) == [None, None]


# The device


@pytest.mark.parametrize("stage", ["begin", "step", "preview", "finish"])
def test_a_lost_device_ends_the_engine_at_once(stage: str, gated: FakeModel, caplog: pytest.LogCaptureFixture) -> None:
    gated.failing, gated.problem = {"bad": stage}, illegal_access
    with running(gated) as engine:
        bad = Ticket(replace(edit_request("bad"), num_previews=1), PICTURES, on_progress=lambda progress: None)
        engine.submit(bad)
        open_gate(gated)
        finish(bad)
        assert not engine.alive
        with pytest.raises(ServiceUnavailable):
            engine.check_health()
        with pytest.raises(ServiceUnavailable):
            submit(engine, edit_request("next"))
    assert type(bad.future.exception()) is EditFailed
    assert "CUDA" not in str(bad.future.exception())
    assert "illegal memory access" in caplog.text
    assert gated.num_freed == 0


def test_of_a_pack_that_loses_the_device_the_newest_is_not_run_again(gated: FakeModel) -> None:
    gated.problem = illegal_access
    with running(gated, scheduling="arrival", max_pack_tokens=3 * TOKENS_OF_64_PX) as engine:
        tickets = [submit(engine, edit_request("old", steps=9)), submit(engine, edit_request("young", steps=9))]
        at_step(gated, 2)
        tickets += [submit(engine, edit_request("bad", steps=9)), submit(engine, edit_request("waits"))]
        gated.failing = {"bad": "step"}
        open_gate(gated)
        assert ends(*tickets) == [ServiceUnavailable, ServiceUnavailable, EditFailed, ServiceUnavailable]
        assert engine.stats.failed == 4
    assert gated.packs[-1] == ["old", "young", "bad"]


def test_those_that_began_together_are_all_suspect(gated: FakeModel) -> None:
    gated.problem = illegal_access
    with running(gated) as engine:
        old = submit(engine, edit_request("old", steps=9))
        at_step(gated, 1)
        gated.failing = {"b": "begin"}
        tickets = [submit(engine, edit_request(name)) for name in "abc"]
        open_gate(gated)
        assert ends(old, *tickets) == [ServiceUnavailable, EditFailed, EditFailed, EditFailed]


def test_no_edit_is_forgotten_while_others_are_begun_apart(gated: FakeModel) -> None:
    def in_turn(text: str) -> Exception:
        return illegal_access(text) if len(gated.begun) > 2 else ValueError(text)

    gated.problem = in_turn
    with running(gated) as engine:
        old = submit(engine, edit_request("old", steps=9))
        at_step(gated, 1)
        gated.failing = {"a": "begin"}
        tickets = [submit(engine, edit_request(name)) for name in "abc"]
        open_gate(gated)
        assert ends(old, *tickets) == [ServiceUnavailable, EditFailed, ServiceUnavailable, ServiceUnavailable]


# A call that never ends


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_stuck_engine_is_found_and_its_edits_are_failed(gated: FakeModel, clock: Clock) -> None:
    with running(
        gated, scheduling="arrival", max_pack_tokens=2 * TOKENS_OF_64_PX, wedged_after_s=300, clock=clock
    ) as engine:
        old = submit(engine, edit_request("old", steps=9))
        at_step(gated, 1)
        new, waits = submit(engine, edit_request("new", steps=9)), submit(engine, edit_request("waits"))
        at_step(gated, 2)
        clock.now += 300
        engine.check_health()
        clock.now += 1
        assert not engine.alive
        with pytest.raises(ServiceUnavailable):
            engine.check_health()
        assert ends(old, new, waits) == [ServiceUnavailable, EditFailed, ServiceUnavailable]
        engine.close(timeout_s=NEVER_S)
        assert engine._thread.is_alive()  # It was found stuck before, so `close` did not wait.
        with pytest.raises(ServiceUnavailable):
            submit(engine, edit_request("next"))
        # The thread resumes after all: no edit ends twice, and no further step runs.
        open_gate(gated)
        eventually(lambda: not engine._thread.is_alive())
        assert engine.stats.failed == 3
        with pytest.raises(ServiceUnavailable):
            engine.check_health()
    assert gated.packs == [["old"], ["old", "new"]]


def test_an_engine_that_steps_on_is_not_stuck_however_long_its_edits_take(gated: FakeModel, clock: Clock) -> None:
    with running(gated, wedged_after_s=300, clock=clock) as engine:
        ticket = submit(engine, edit_request("long", steps=5))
        for step in range(1, 6):
            at_step(gated, step)
            clock.now += 299
            engine.check_health()
        open_gate(gated)
        assert ends(ticket) == [None]


def test_an_idle_engine_is_not_stuck(clock: Clock) -> None:
    with running(FakeModel(), wedged_after_s=300, clock=clock) as engine:
        assert ends(submit(engine, edit_request("a"))) == [None]
        clock.now += 100_000
        engine.check_health()
        assert engine.alive


def test_closing_leaves_a_stuck_thread_behind(gated: FakeModel) -> None:
    with running(gated) as engine:
        ticket = submit(engine, edit_request("stuck"))
        at_step(gated, 1)
        engine.close(timeout_s=0.1)
        assert engine._thread.is_alive()
        assert ends(ticket) == [ServiceUnavailable]
        # When it resumes, it finds the engine closed and ends.
        open_gate(gated)
        eventually(lambda: not engine._thread.is_alive())


def test_health_does_not_wait_for_the_model(gated: FakeModel) -> None:
    with running(gated) as engine:
        submit(engine, edit_request("a"))
        at_step(gated, 1)
        for _ in range(1000):
            engine.check_health()
        assert (engine.stats.running, engine.stats.num_steps) == (1, 0)  # The first step is still not released.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_found_at_once() -> None:
    class Deadly(FakeModel):
        def begin(self, edits: Sequence[Prepared]) -> list[Draft]:
            raise SystemExit

    with running(Deadly()) as engine:
        ticket = submit(engine, edit_request("a"))
        assert ends(ticket) == [ServiceUnavailable]
        assert not engine.alive
        with pytest.raises(ServiceUnavailable):
            engine.check_health()
        engine._thread.join(5)  # its exception must be reported in this test, not in the next one


def test_the_real_model_gives_memory_back(tiny_settings: AppSettings) -> None:
    model = load_model(tiny_settings.editor)
    prepared = model.prepare(edit_request("a"), PICTURES)
    model.begin([prepared])
    assert model.cache_stats["prompts"].held_bytes > 0
    model.free()
    assert {stats.held_bytes for stats in model.cache_stats.values()} == {0}
