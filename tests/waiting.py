"""Waiting for what others do. The time limit ends a test that would hang; it is no measurement."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 60.0, pause_s: float = 0.02) -> T:
    """What the condition returns, once that is true.

    Raises:
        AssertionError: it was not within the time limit; the message has the last value.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still {value!r}")
        time.sleep(pause_s)
    return value
