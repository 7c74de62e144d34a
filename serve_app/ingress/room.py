"""Room in the queue of jobs, asked for before a request's pictures are decoded."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from serve_app.edits.job import JobsPort
from serve_app.errors import Overloaded

FULL_S = 0.1
"""For so long a queue that was full is taken to be full."""


class Room:
    """Lets no more requests be prepared than the queue has room for. However many clients storm it, the queue is asked
    when the places that it named are given away, and once in a while as long as it is full. Where several replicas of
    the ingress ask at once it may let in too many: the queue itself has the last word. Lives on one event loop."""

    def __init__(self, jobs: JobsPort, clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = jobs
        self._clock = clock
        self._num_free = 0
        self._num_preparing = 0
        self._full_until = -math.inf
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Held while a request is prepared, and left before it is queued, from when on the queue counts it.

        Raises:
            Overloaded: the queue is full, or will be.
        """
        async with self._asking:
            if self._num_free <= 0 and self._clock() >= self._full_until:
                self._num_free = await self._jobs.room() - self._num_preparing
                self._full_until = self._clock() + (FULL_S if self._num_free <= 0 else 0)
            if self._num_free <= 0:
                raise Overloaded("The queue of jobs is full; try again later.")
            self._num_free -= 1
        self._num_preparing += 1
        try:
            yield
        except BaseException:
            self._num_free += 1  # It is not going to be queued.
            raise
        finally:
            self._num_preparing -= 1
