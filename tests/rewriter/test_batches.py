"""Batches of waiting rewrites: who shares one, who leaves, and what a failure does. The model is a fake on a thread."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from transformers import BatchFeature

from serve_app.config import RewriterSettings, WeightsSource
from serve_app.edits.request import Pictures, Rewrite, RewriteRequest
from serve_app.errors import ServiceUnavailable
from serve_app.rewriter.batches import RewriteBatches
from serve_app.rewriter.instructions import FAILED
from serve_app.rewriter.model import Row
from tests.waiting import until_async


@dataclass(frozen=True, eq=False)
class NamedRow(Row):
    name: str = ""


@dataclass
class FakeModel:
    """A RewriterModel that answers in capitals.

    Attributes:
        batches: the prompts of each batch, added when it begins.
        max_rows: how many fit into one batch.
        failing: prompts with which every batch fails; with a leading "-", they fail when they are prepared.
        gate: if set, every batch waits for one release.
        problem: the text of a batch's failure.
    """

    batches: list[list[str]] = field(default_factory=list)
    max_rows: int = 8
    failing: set[str] = field(default_factory=set)
    gate: threading.Semaphore | None = None
    problem: str = "no"
    num_prepared: int = 0
    wanted: list[list[bool]] = field(default_factory=list)

    def prepare(self, prompt: str, pictures: Pictures, is_wanted: Callable[[], bool]) -> NamedRow:
        self.num_prepared += 1
        if f"-{prompt}" in self.failing:
            raise ValueError(prompt)
        return NamedRow(BatchFeature(), is_wanted, prompt)

    def fits(self, rows: Sequence[NamedRow]) -> bool:
        return len(rows) <= self.max_rows

    def rewrite(self, rows: Sequence[NamedRow]) -> list[Rewrite]:
        names = [row.name for row in rows]
        self.batches.append(names)
        if self.gate is not None and not self.gate.acquire(timeout=10):
            raise TimeoutError("the test never released this batch")
        self.wanted.append([row.is_wanted() for row in rows])
        if self.failing & set(names):
            raise RuntimeError(self.problem)
        return [Rewrite(name.upper()) for name in names]


Send = Callable[[str], asyncio.Task[Rewrite]]


def run(model: FakeModel, scenario: Callable[[Send], Awaitable[Any]], **update: float) -> Any:
    """Run a scenario, whose `send` rewrites a prompt in a task."""
    settings = RewriterSettings(
        source=WeightsSource(path="unused"), **cast(Any, {"batch_wait_timeout_s": 0.01, **update})
    )

    async def main() -> Any:
        with ThreadPoolExecutor(1) as thread:
            batches = RewriteBatches(cast(Any, model), settings, thread)
            return await scenario(lambda name: asyncio.create_task(batches.rewrite(RewriteRequest(name, name), ())))

    return asyncio.run(main())


async def all_of(send: Send, names: Sequence[str]) -> list[Rewrite]:
    return list(await asyncio.gather(*map(send, names)))


def test_those_that_arrive_together_are_one_batch() -> None:
    model = FakeModel()
    assert run(model, lambda send: all_of(send, "abc")) == [Rewrite("A"), Rewrite("B"), Rewrite("C")]
    assert model.batches == [["a", "b", "c"]]


def test_those_that_arrive_while_a_batch_runs_are_the_next_one() -> None:
    model = FakeModel(gate=threading.Semaphore(0))

    async def scenario(send: Send) -> None:
        tasks = [send("a")]
        await until_async(lambda: len(model.batches) == 1)
        tasks += [send("b"), send("c")]
        await asyncio.sleep(0)
        assert model.gate is not None
        model.gate.release(2)
        await asyncio.gather(*tasks)

    run(model, scenario)
    assert model.batches == [["a"], ["b", "c"]]


def test_a_batch_has_no_more_rows_than_configured() -> None:
    model = FakeModel()
    run(model, lambda send: all_of(send, "abcde"), max_batch_size=2)
    assert model.batches == [["a", "b"], ["c", "d"], ["e"]]


def test_a_full_batch_waits_for_no_more() -> None:
    model = FakeModel()
    run(model, lambda send: all_of(send, "abcd"), max_batch_size=2, batch_wait_timeout_s=3600)
    assert model.batches == [["a", "b"], ["c", "d"]]


def test_what_does_not_fit_waits_for_the_next_batch_and_is_prepared_once() -> None:
    model = FakeModel(max_rows=2)
    assert run(model, lambda send: all_of(send, "abcde")) == [Rewrite(name) for name in "ABCDE"]
    assert model.batches == [["a", "b"], ["c", "d"], ["e"]]
    assert model.num_prepared == 5


def test_a_caller_who_leaves_before_its_batch_is_skipped() -> None:
    model = FakeModel(gate=threading.Semaphore(0))

    async def scenario(send: Send) -> None:
        first = send("a")
        await until_async(lambda: len(model.batches) == 1)
        left, stays = send("left"), send("b")
        await asyncio.sleep(0)
        left.cancel()
        assert model.gate is not None
        model.gate.release(2)
        assert await first == Rewrite("A")
        assert await stays == Rewrite("B")

    run(model, scenario)
    assert model.batches == [["a"], ["b"]]


def test_a_caller_who_leaves_a_running_batch_is_not_wanted_there() -> None:
    model = FakeModel(gate=threading.Semaphore(0))

    async def scenario(send: Send) -> None:
        left, stays = send("left"), send("b")
        await until_async(lambda: len(model.batches) == 1)
        left.cancel()
        await asyncio.sleep(0)
        assert model.gate is not None
        model.gate.release()
        assert await stays == Rewrite("B")

    run(model, scenario)
    assert model.wanted == [[False, True]]


def test_one_bad_rewrite_fails_no_other_of_its_batch(caplog: pytest.LogCaptureFixture) -> None:
    model = FakeModel(failing={"b"})
    assert run(model, lambda send: all_of(send, "abc")) == [Rewrite("A"), FAILED, Rewrite("C")]
    assert model.batches == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert [record.getMessage() for record in caplog.records] == [
        "a batch of 3 rewrites failed; they run one by one",
        "rewriting failed for b",
    ]


def test_a_rewrite_that_cannot_be_prepared_fails_alone() -> None:
    model = FakeModel(failing={"-a"})
    assert run(model, lambda send: all_of(send, "abc")) == [FAILED, Rewrite("B"), Rewrite("C")]
    assert model.batches == [["b", "c"]]


def test_it_goes_on_after_all_have_left() -> None:
    model = FakeModel()

    async def scenario(send: Send) -> Rewrite:
        left = send("left")
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0.05)  # the runner ends, since nobody waits
        return await send("a")

    assert run(model, scenario) == Rewrite("A")
    assert model.batches == [["a"]]


def healthy(batches: RewriteBatches) -> bool:
    try:
        batches.check_health()
    except ServiceUnavailable:
        return False
    return True


def batches_of(model: FakeModel, thread: ThreadPoolExecutor, timeout_s: float = 20.0) -> RewriteBatches:
    settings = RewriterSettings(source=WeightsSource(path="unused"), timeout_s=timeout_s, batch_wait_timeout_s=0)
    return RewriteBatches(cast(Any, model), settings, thread)


@pytest.mark.parametrize(("problem", "is_lost"), [("CUDA error: an illegal memory access", True), ("no", False)])
def test_only_a_lost_device_makes_it_unhealthy_for_good(problem: str, is_lost: bool) -> None:
    async def main(thread: ThreadPoolExecutor) -> None:
        batches = batches_of(FakeModel(failing={"bad"}, problem=problem), thread)
        assert healthy(batches)
        assert await batches.rewrite(RewriteRequest("bad", "bad"), ()) == FAILED
        await batches.rewrite(RewriteRequest("good", "good"), ())
        assert healthy(batches) is not is_lost

    with ThreadPoolExecutor(1) as thread:
        asyncio.run(main(thread))


def test_a_batch_that_does_not_end_makes_it_unhealthy_until_it_does() -> None:
    async def main(thread: ThreadPoolExecutor) -> None:
        gate = threading.Semaphore(0)
        batches = batches_of(FakeModel(gate=gate), thread, timeout_s=0.01)
        rewriting = asyncio.create_task(batches.rewrite(RewriteRequest("slow", "slow"), ()))
        await until_async(lambda: not healthy(batches))
        gate.release()
        assert await rewriting == Rewrite("SLOW")
        assert healthy(batches)

    with ThreadPoolExecutor(1) as thread:
        asyncio.run(main(thread))
