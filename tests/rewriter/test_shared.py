"""Recent rewrites are kept, equal requests at once are made once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from serve_app.edits.request import PreparedPicture, Rewrite
from serve_app.rewriter.shared import SharedRewrites, content_key

GOOD = Rewrite("a precise wish")
BAD = Rewrite(None, "no")


def picture(value: int, shape: tuple[int, int] = (32, 64)) -> PreparedPicture:
    pixels = np.full((*shape, 3), value, np.uint8)
    return PreparedPicture(pixels, pixels)


class Source:
    """Makes rewrites, each after one release if there is a gate, and counts them."""

    def __init__(self, rewrite: Rewrite = GOOD, gate: asyncio.Semaphore | None = None) -> None:
        self.num_made = self.num_cancelled = 0
        self._rewrite = rewrite
        self._gate = gate

    async def __call__(self) -> Rewrite:
        self.num_made += 1
        try:
            if self._gate is not None:
                await self._gate.acquire()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return self._rewrite


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


KEYS = [
    ("a", (picture(1),)),
    ("b", (picture(1),)),
    ("a", (picture(2),)),
    ("a", (picture(1), picture(1))),
    ("a", (picture(1, (64, 32)),)),
    ("a", (picture(1, (64, 64)),)),
    ("a", (picture(1), picture(2))),
    ("a", (picture(2), picture(1))),
    ("a", ()),
    ("half \ud83d", ()),
]


def test_the_key_depends_on_the_prompt_and_on_each_picture_and_their_order() -> None:
    assert len({content_key(prompt, pictures) for prompt, pictures in KEYS}) == len(KEYS)
    assert content_key("a", (picture(1),)) == content_key("a", (picture(1),))


@pytest.mark.parametrize(("rewrite", "num_made"), [(GOOD, 1), (BAD, 3)])
def test_only_a_successful_rewrite_is_kept(rewrite: Rewrite, num_made: int) -> None:
    async def scenario() -> None:
        shared, source = SharedRewrites(10_000), Source(rewrite)
        for _ in range(3):
            assert await shared.get("a", (picture(1),), source) == rewrite
        assert source.num_made == num_made

    run(scenario)


def test_what_is_kept_is_bounded() -> None:
    async def scenario() -> None:
        shared, source = SharedRewrites(1200), Source()
        for prompt in ("a", "b", "a", "c", "a", "b"):
            await shared.get(prompt, (), source)
        assert source.num_made == 4  # a, b, c, and b again, which c has replaced
        off, source = SharedRewrites(0), Source()
        for _ in range(2):
            assert await off.get("a", (), source) == GOOD
        assert source.num_made == 2

    run(scenario)


def test_equal_requests_at_once_are_made_once_and_one_may_leave() -> None:
    async def scenario() -> None:
        gate = asyncio.Semaphore(0)
        shared, source = SharedRewrites(0), Source(gate=gate)
        first, second = (asyncio.create_task(shared.get("a", (), source)) for _ in range(2))
        other = asyncio.create_task(shared.get("b", (), source))
        while not (len(shared._calls) == 2 and sum(call.num_callers for call in shared._calls.values()) == 3):
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.wait([first])
        gate.release()
        gate.release()
        assert [await second, await other] == [GOOD, GOOD]
        assert (source.num_made, source.num_cancelled) == (2, 0)

    run(scenario)


def test_a_rewrite_that_nobody_waits_for_is_cancelled_and_made_again_for_the_next() -> None:
    async def scenario() -> None:
        gate = asyncio.Semaphore(0)
        shared, source = SharedRewrites(0), Source(gate=gate)
        caller = asyncio.create_task(shared.get("a", (), source))
        while not source.num_made:
            await asyncio.sleep(0.001)
        caller.cancel()
        await asyncio.wait([caller])
        gate.release()
        assert await shared.get("a", (), source) == GOOD
        assert (source.num_made, source.num_cancelled) == (2, 1)

    run(scenario)


def test_all_who_wait_get_the_error() -> None:
    async def fails() -> Rewrite:
        await asyncio.sleep(0.01)
        raise RuntimeError("no")

    async def scenario() -> None:
        shared = SharedRewrites(0)
        results = await asyncio.gather(*(shared.get("a", (), fails) for _ in range(2)), return_exceptions=True)
        assert [str(each) for each in results] == ["no", "no"]
        assert await shared.get("a", (), Source()) == GOOD

    run(scenario)
