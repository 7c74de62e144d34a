"""A budget of bytes, and that of the responses that clients have not taken yet."""

import asyncio
from collections import Counter
from collections.abc import Hashable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from serve_app.edits.request import EditOutcome
from serve_app.errors import Overloaded

MAX_OUTGOING_BYTES = 256 * 2**20
"""Of all responses of one ingress replica."""
MAX_OUTGOING_BYTES_PER_CLIENT = 32 * 2**20
"""Of one API key. More responses at once would not be faster, and others would wait longer. A single response may be
larger than either limit."""
MAX_STARTING_BYTES_PER_CLIENT = 8 * 2**20
"""Of the responses of one API key that began within the last `STARTING_S` and that the client has not taken; an event
of a stream counts for all of that time. The more large responses pass through the replica and the proxy at the same
time, the longer those of other clients wait there."""
STARTING_S = 0.5
"""How long a response counts as beginning."""
OUTGOING_WAIT_S = 20.0
"""How long a response waits for its part of the budget before it becomes a 429."""
EVENT_S = 20.0
"""How long an event counts after it was sent. No message says when a client has taken one; the proxy closes the
connections of clients that take nothing for so long."""
COUNTED_BYTES = 64 * 2**10
"""Responses and events below this size are not counted."""

_MIB = 2**20


def num_base64_bytes(outcomes: Iterable[EditOutcome]) -> int:
    """The size of these pictures in base64, without padding."""
    return sum(-(-len(outcome.result.data) * 4 // 3) for outcome in outcomes)


@dataclass(eq=False)
class _Waiter:
    client: Hashable
    num_bytes: int
    turn: "asyncio.Future[None]"


class ByteBudget:
    """Bytes that clients hold, in total and by client. First come, first served; a client that has to wait for its own
    bytes does not delay the others. More bytes than `per_client` are granted to a client that holds none, more than
    `total` when no client holds any. Lives on one event loop.

    Attributes:
        total: bytes of all clients. It and `per_client` may be changed; bytes that are held stay.
        per_client: bytes of one client.
    """

    def __init__(self, total: int, per_client: int, wait_s: float) -> None:
        self.total = total
        self.per_client = per_client
        self._wait_s = wait_s
        self._taken: Counter[Hashable] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def num_taken(self) -> int:
        return self._taken.total()

    async def take(self, client: Hashable, num_bytes: int) -> None:
        """Take bytes once they fit.

        Raises:
            TimeoutError: they did not fit within `wait_s`.
        """
        waiter = _Waiter(client, num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._grant()
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter.turn
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._grant()
            else:
                self.give_back(client, num_bytes)
            raise

    def give_back(self, client: Hashable, num_bytes: int) -> None:
        self._taken -= Counter({client: num_bytes})
        self._grant()

    def _grant(self) -> None:
        delayed: set[Hashable] = set()
        for waiter in tuple(self._waiting):
            taken = self._taken[waiter.client]
            if waiter.client in delayed or not _fits(waiter.num_bytes, taken, self.per_client):
                delayed.add(waiter.client)
            elif not _fits(waiter.num_bytes, self.num_taken, self.total):
                return  # Smaller requests must not overtake a large one for ever.
            else:
                self._waiting.remove(waiter)
                self._taken[waiter.client] += waiter.num_bytes
                if not waiter.turn.done():
                    waiter.turn.set_result(None)


def _fits(num_bytes: int, taken: int, limit: int) -> bool:
    return num_bytes == 0 or taken == 0 or taken + num_bytes <= limit


class OutgoingBytes(ByteBudget):
    """The bytes of responses.

    Attributes:
        starting: those of responses that began within the last `STARTING_S`.
    """

    def __init__(
        self,
        total: int = MAX_OUTGOING_BYTES,
        per_client: int = MAX_OUTGOING_BYTES_PER_CLIENT,
        wait_s: float = OUTGOING_WAIT_S,
        starting_per_client: int = MAX_STARTING_BYTES_PER_CLIENT,
    ) -> None:
        super().__init__(total, per_client, wait_s)
        self.starting = ByteBudget(total, starting_per_client, wait_s)

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

    async def start(self, client: Hashable, num_bytes: int) -> None:
        """Wait until so many bytes may begin, and count them in `starting`.

        Raises:
            Overloaded: they could not begin within `wait_s`.
        """
        try:
            await self.starting.take(client, num_bytes)
        except TimeoutError:
            raise Overloaded(
                "Too many large responses of this API key begin at once. Request fewer at once, and try again."
            ) from None


class _TimedBytes:
    """Bytes that go back to their budget after a time."""

    def __init__(self, budget: ByteBudget, client: str, seconds: float) -> None:
        self._budget = budget
        self._client = client
        self._seconds = seconds
        self._parts: dict[object, tuple[asyncio.TimerHandle, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, num_bytes: int) -> None:
        part = object()
        timer = asyncio.get_running_loop().call_later(self._seconds, self._expire, part)
        self._parts[part] = timer, num_bytes

    def release(self) -> None:
        """Give them back at once."""
        for part, (timer, _) in tuple(self._parts.items()):
            timer.cancel()
            self._expire(part)

    def _expire(self, part: object) -> None:
        self._budget.give_back(self._client, self._parts.pop(part)[1])


class ResponseBytes:
    """One response's part of the budget."""

    def __init__(self, budget: OutgoingBytes, client: str, event_s: float = EVENT_S) -> None:
        self._budget = budget
        self._client = client
        self._reserved = 0
        self._events = _TimedBytes(budget, client, event_s)
        self._starting = _TimedBytes(budget.starting, client, STARTING_S)

    def __bool__(self) -> bool:
        return self._reserved > 0 or bool(self._events)

    async def reserve(self, num_bytes: int) -> None:
        """Take what is missing of `num_bytes` that are sent next.

        Raises:
            Overloaded: the bytes did not fit in time.
        """
        missing = num_bytes - self._reserved
        if missing >= COUNTED_BYTES:
            await self._budget.take(self._client, missing)
            self._reserved += missing

    async def start(self, num_bytes: int) -> None:
        """Reserve what `num_bytes` lacks, then wait until the response or event may be sent.

        Raises:
            Overloaded: the bytes did not fit in time.
        """
        await self.reserve(num_bytes)
        if num_bytes >= COUNTED_BYTES:
            await self._budget.start(self._client, num_bytes)
            self._starting.add(num_bytes)

    def sent_event(self, num_bytes: int) -> None:
        """Give reserved bytes back after `event_s`."""
        num_bytes = min(num_bytes, self._reserved)
        if num_bytes:
            self._reserved -= num_bytes
            self._events.add(num_bytes)

    def release(self) -> None:
        """Give everything back."""
        self._starting.release()
        self._events.release()
        self._budget.give_back(self._client, self._reserved)
        self._reserved = 0


RESPONSE_BYTES: ContextVar[ResponseBytes] = ContextVar("response_bytes")
"""Of the current request."""
