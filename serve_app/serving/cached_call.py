"""A cache for the result of an expensive call."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class CachedCall(Generic[T]):
    """An async function without arguments whose result or error is cached for some time. Concurrent callers share one
    call, which continues when one of them is cancelled.

    Args:
        keep_s: seconds from the end of a call during which its result is returned.
        clock: seconds.
    """

    def __init__(
        self, function: Callable[[], Awaitable[T]], keep_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._function = function
        self._keep_s = keep_s
        self._clock = clock
        self._call: asyncio.Task[T] | None = None
        self._ended_at = 0.0

    async def __call__(self) -> T:
        if self._call is None or self._call.cancelled() or self._is_old(self._call):
            self._call = asyncio.create_task(self._run())
        return await asyncio.shield(self._call)

    def _is_old(self, call: "asyncio.Task[T]") -> bool:
        return call.done() and self._clock() >= self._ended_at + self._keep_s

    async def _run(self) -> T:
        try:
            return await self._function()
        finally:
            self._ended_at = self._clock()
