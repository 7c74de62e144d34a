"""Polling until a condition holds. The time limit only ends a test that would hang; it measures nothing."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 60.0, pause_s: float = 0.02) -> T:
    """Poll until the condition returns a true value, and return that value.

    Raises:
        AssertionError: the time limit has passed; the message has the last value.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still {value!r}")
        time.sleep(pause_s)
    return value


async def until_async(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 20.0) -> None:
    """Poll in an event loop until the condition is true.

    Raises:
        TimeoutError: the time limit has passed.
    """
    async with asyncio.timeout(timeout_s):
        while not (await met if inspect.isawaitable(met := condition()) else met):
            await asyncio.sleep(0.01)
