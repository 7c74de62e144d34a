"""An engine with a fake model, whose steps and clock the test controls."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager

from serve_app.config import Scheduling
from serve_app.editor.engine.engine import Engine, StepModel
from serve_app.editor.engine.ticket import Ticket
from serve_app.edits.request import EditRequest
from tests.fakes import FakeModel, picture

PICTURES = (picture(),)
TOKENS_OF_64_PX = 32  # 16 for the output, 16 for the reference


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def running(
    model: StepModel,
    *,
    max_pack_tokens: int = 10_000,
    max_waiting: int = 100,
    max_paused: int = 16,
    scheduling: Scheduling = "shortest",
    wedged_after_s: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Engine]:
    engine = Engine(
        lambda: model,
        max_pack_tokens=max_pack_tokens,
        max_waiting=max_waiting,
        max_paused=max_paused,
        scheduling=scheduling,
        wedged_after_s=wedged_after_s,
        clock=clock,
    )
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(model, FakeModel) and model.gate is not None:
            model.gate.release(100)
        engine.close()


def submit(engine: Engine, request: EditRequest, timeout_s: float | None = None) -> Ticket:
    ticket = Ticket(request, PICTURES, timeout_s=timeout_s)
    engine.submit(ticket)
    eventually(lambda: engine.stats.preparing == 0)
    return ticket


def at_step(model: FakeModel, number: int) -> None:
    """Let steps run until the step of this number (from 1) has begun and waits to be released."""
    assert model.gate is not None
    eventually(lambda: len(model.packs) >= 1)
    for done in range(len(model.packs), number):
        model.gate.release()
        eventually(lambda done=done: len(model.packs) > done)  # type: ignore[misc]


def open_gate(model: FakeModel) -> None:
    """Let all steps run from now on."""
    assert model.gate is not None
    model.gate.release(1000)


def eventually(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.005)):
        if holds():
            return
        pause.wait(0.005)
    raise AssertionError("it never came to hold")


def finish(*tickets: Ticket) -> None:
    done = wait([ticket.future for ticket in tickets], timeout=10)
    assert not done.not_done
