"""Concurrent callers share one call, whose result is cached for some time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve_app.serving.cached_call import CachedCall


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def counting(gate: asyncio.Event | None = None) -> Callable[[], Awaitable[int]]:
    """Returns how often it was called; with a gate, once it is open."""
    num_calls = 0

    async def count() -> int:
        nonlocal num_calls
        num_calls += 1
        if gate is not None:
            await gate.wait()
        return num_calls

    return count


def test_a_result_is_kept_for_its_time() -> None:
    clock = Clock()
    call = CachedCall(counting(), 1.0, clock)

    async def at(now_s: float) -> int:
        clock.now_s = now_s
        return await call()

    # Each in an event loop of its own, too.
    assert [asyncio.run(at(now_s)) for now_s in (5.0, 5.9, 6.0, 6.5, 100.0)] == [1, 1, 2, 2, 3]


def test_the_time_begins_at_the_end_of_the_call() -> None:
    async def scenario() -> None:
        clock, gate = Clock(), asyncio.Event()
        call = CachedCall(counting(gate), 1.0, clock)
        first = asyncio.create_task(call())
        await asyncio.sleep(0)
        clock.now_s = 10.0
        second = asyncio.create_task(call())
        await asyncio.sleep(0)
        gate.set()
        assert [await first, await second, await call()] == [1, 1, 1]

    asyncio.run(scenario())


def test_a_caller_that_leaves_does_not_end_the_call() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        call = CachedCall(counting(gate), 1.0, Clock())
        leaving, staying = asyncio.create_task(call()), asyncio.create_task(call())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        gate.set()
        assert await staying == 1

    asyncio.run(scenario())


def test_a_call_that_was_cut_off_is_made_again() -> None:
    call = CachedCall(counting(), 1.0, Clock())

    async def cut_off() -> None:
        asyncio.create_task(call())  # noqa: RUF006 - the end of the loop cancels it
        await asyncio.sleep(0)

    asyncio.run(cut_off())
    assert asyncio.run(call()) == 1


def test_an_error_is_kept_as_a_result_is() -> None:
    clock = Clock()
    num_calls = 0

    async def fail() -> int:
        nonlocal num_calls
        num_calls += 1
        raise ValueError("broken")

    call = CachedCall(fail, 1.0, clock)

    async def scenario() -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                await call()
        assert num_calls == 1
        clock.now_s += 1.0
        with pytest.raises(ValueError, match="broken"):
            await call()
        assert num_calls == 2

    asyncio.run(scenario())
