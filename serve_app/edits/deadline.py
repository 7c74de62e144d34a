"""Deadlines of requests, on the event loop's clock."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from serve_app.errors import DeadlineExceeded

T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """When a request must be done.

    Attributes:
        timeout_s: seconds from its arrival; None: no limit.
        until: the deadline on the event loop's clock; None: no limit.
    """

    timeout_s: float | None = None
    until: float | None = None

    @classmethod
    def after(cls, timeout_s: float | None) -> Self:
        """The deadline of a request that arrives now."""
        return cls(timeout_s, None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s)

    @property
    def left_s(self) -> float | None:
        """Seconds that are left, at least 0; None without a limit."""
        return None if self.until is None else max(0.0, self.until - asyncio.get_running_loop().time())

    @property
    def spent_s(self) -> float:
        """Seconds since the request's arrival; 0 without a limit."""
        return 0.0 if self.timeout_s is None or self.left_s is None else self.timeout_s - self.left_s

    def later(self, margin_s: float) -> "Deadline":
        """The same deadline with a margin, for callers that wait for work with this one."""
        return self if self.until is None else replace(self, until=self.until + margin_s)

    async def bound(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled at the deadline.

        Raises:
            DeadlineExceeded: it was not finished in time.
        """
        try:
            async with asyncio.timeout_at(self.until) as limit:
                return await work
        except TimeoutError as problem:
            if self.timeout_s is not None and limit.expired():
                raise DeadlineExceeded(too_late(self.timeout_s)) from problem
            raise


def too_late(timeout_s: float) -> str:
    return f"The request was not done within {timeout_s:g} s (timeout_s)."
