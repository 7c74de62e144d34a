"""Open and closed loops: when the requests of a load are sent."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from serve_app.tools.load.dialects import Answer, Send

Make = Callable[[int], Send]
"""Builds the request of this number. It runs on a thread, one at a time, before the request's time begins."""

GoesOn = Callable[[int], bool]
"""Whether the request of this number is still to be sent."""


@dataclass(frozen=True)
class Outcome:
    """A request's times in seconds, from the begin of the load.

    Attributes:
        due_s: when it was sent; in an open loop, when it was to be sent, so that a slow client hides no waiting.
        elapsed_s: from then to its answer.
        first_preview_s: from then to its first preview.
    """

    due_s: float
    elapsed_s: float
    error: str | None = None
    first_preview_s: float | None = None

    @property
    def ended_s(self) -> float:
        return self.due_s + self.elapsed_s


def arrival_times(rate_per_s: float, seed: int) -> Iterator[float]:
    """Endless times in seconds of a Poisson process, the same for the same seed."""
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(rate_per_s)
        yield now


async def open_loop(make: Make, times: Iterator[float]) -> list[Outcome]:
    """Send a request at each of these times, whether or not earlier ones are answered."""
    began, tasks = time.monotonic(), []
    for number, due_s in enumerate(times):
        send = await asyncio.to_thread(make, number)
        await asyncio.sleep(began + due_s - time.monotonic())
        tasks.append(asyncio.create_task(_timed(send, began, due_s)))
    return await asyncio.gather(*tasks)


async def closed_loop(make: Make, num_clients: int, goes_on: GoesOn) -> list[Outcome]:
    """Let each client send its next request when its last one is answered."""
    began, numbers, making = time.monotonic(), count(), asyncio.Lock()
    outcomes: list[Outcome] = []

    async def client() -> None:
        while goes_on(number := next(numbers)):
            async with making:
                send = await asyncio.to_thread(make, number)
            outcomes.append(await _timed(send, began, time.monotonic() - began))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return outcomes


async def _timed(send: Send, began: float, due_s: float) -> Outcome:
    answer: Answer = await send()
    ended_s, preview_at = time.monotonic() - began, answer.first_preview_at
    return Outcome(due_s, ended_s - due_s, answer.error, None if preview_at is None else preview_at - began - due_s)
