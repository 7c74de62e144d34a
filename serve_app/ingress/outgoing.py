"""A budget of the bytes of responses that clients have not taken yet."""

import asyncio
from collections.abc import Hashable
from contextvars import ContextVar

from serve_app.errors import Overloaded
from serve_app.ingress.quotas import ByteBudget

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


class OutgoingBytes(ByteBudget):
    """The bytes of responses."""

    def __init__(
        self,
        total: int = MAX_OUTGOING_BYTES,
        per_client: int = MAX_OUTGOING_BYTES_PER_CLIENT,
        wait_s: float = OUTGOING_WAIT_S,
    ) -> None:
        super().__init__(total, per_client, wait_s)

    async def take(self, client: Hashable, num_bytes: int) -> None:
        """As the budget's.

        Raises:
            Overloaded: they did not fit within `wait_s`.
        """
        try:
            await super().take(client, num_bytes)
        except TimeoutError:
            raise Overloaded(
                f"Responses that clients have not read yet hold {self.per_client // _MIB} MiB of this API key, or "
                f"{self.total // _MIB} MiB in all. Read them, request fewer at once, and try again."
            ) from None


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
