"""A budget of the bytes of responses that clients have not taken yet."""

import asyncio
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass

from serve_app.errors import Overloaded

MAX_OUTGOING_BYTES = 256 * 2**20
"""Of all responses of one ingress replica."""
MAX_OUTGOING_BYTES_PER_CLIENT = 32 * 2**20
"""Of one API key. More responses at once would not be faster, and others would wait longer. A single response may be
larger than either limit."""
OUTGOING_WAIT_S = 20.0
"""How long a response waits for its part of the budget before it becomes a 429."""
EVENT_S = 20.0
"""How long an event counts after it was sent. No message says when a client has taken one; the proxy closes the
connections of clients that take nothing for so long."""
COUNTED_BYTES = 64 * 2**10
"""Responses and events below this size are not counted."""

_MIB = 2**20


@dataclass(eq=False)
class _Waiter:
    client: str
    num_bytes: int
    turn: "asyncio.Future[None]"


class OutgoingBytes:
    """Lives on one event loop.

    Args:
        total: bytes in all.
        per_client: bytes of one client, so that clients which do not read leave some for the others.
        wait_s: how long `take` waits.
    """

    def __init__(
        self,
        total: int = MAX_OUTGOING_BYTES,
        per_client: int = MAX_OUTGOING_BYTES_PER_CLIENT,
        wait_s: float = OUTGOING_WAIT_S,
    ) -> None:
        self._total = total
        self._per_client = per_client
        self._wait_s = wait_s
        self._taken: Counter[str] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    async def take(self, client: str, num_bytes: int) -> None:
        """Take bytes once they fit, in the order of the calls. A client at its own limit does not delay the others.

        Raises:
            Overloaded: they did not fit within `wait_s`.
        """
        waiter = _Waiter(client, num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._grant()
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter.turn
        except BaseException as problem:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._grant()
            else:
                self.give_back(client, num_bytes)
            if isinstance(problem, TimeoutError):
                raise Overloaded(
                    f"Responses that clients have not read yet hold {self._per_client // _MIB} MiB of this API key, or "
                    f"{self._total // _MIB} MiB in all. Read them, request fewer at once, and try again."
                ) from None
            raise

    def give_back(self, client: str, num_bytes: int) -> None:
        self._taken[client] -= num_bytes
        self._taken += Counter()  # removes zero counts
        self._grant()

    def _grant(self) -> None:
        at_limit: set[str] = set()
        for waiter in tuple(self._waiting):
            if waiter.client in at_limit:
                continue
            if not _fits(waiter.num_bytes, self._taken[waiter.client], self._per_client):
                at_limit.add(waiter.client)
            elif not _fits(waiter.num_bytes, self.num_taken, self._total):
                return  # Smaller responses must not overtake a large one for ever.
            else:
                self._waiting.remove(waiter)
                self._taken[waiter.client] += waiter.num_bytes
                if not waiter.turn.done():
                    waiter.turn.set_result(None)


def _fits(num_bytes: int, taken: int, limit: int) -> bool:
    return taken == 0 or taken + num_bytes <= limit


class ResponseBytes:
    """One response's part of the budget."""

    def __init__(self, budget: OutgoingBytes, client: str, event_s: float = EVENT_S) -> None:
        self._budget = budget
        self._client = client
        self._event_s = event_s
        self._reserved = 0
        self._events: dict[object, tuple[asyncio.TimerHandle, int]] = {}

    def __bool__(self) -> bool:
        return self._reserved > 0 or bool(self._events)

    async def reserve(self, num_bytes: int) -> None:
        """Take what is missing of `num_bytes` that are sent next.

        Raises:
            Overloaded: no room came free in time.
        """
        missing = num_bytes - self._reserved
        if missing >= COUNTED_BYTES:
            await self._budget.take(self._client, missing)
            self._reserved += missing

    def sent_event(self, num_bytes: int) -> None:
        """Give reserved bytes back after `event_s`."""
        num_bytes = min(num_bytes, self._reserved)
        if num_bytes:
            self._reserved -= num_bytes
            event = object()
            timer = asyncio.get_running_loop().call_later(self._event_s, self._expire, event)
            self._events[event] = timer, num_bytes

    def release(self) -> None:
        """Give everything back."""
        for timer, num_bytes in self._events.values():
            timer.cancel()
            self._reserved += num_bytes
        self._budget.give_back(self._client, self._reserved)
        self._reserved, self._events = 0, {}

    def _expire(self, event: object) -> None:
        self._budget.give_back(self._client, self._events.pop(event)[1])


RESPONSE_BYTES: ContextVar[ResponseBytes] = ContextVar("response_bytes")
"""Of the current request."""
