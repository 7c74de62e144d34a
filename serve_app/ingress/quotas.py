"""What clients may occupy at once: open requests, and bytes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from serve_app.errors import Overloaded, ServiceError

MAX_REQUESTS = 448
"""Requests of all clients at once, fewer than `max_ongoing_requests` of the shipped Ingress: the rest is for health."""

WAIT_S = 20.0
"""How long a request waits until the bytes of its body may be held."""


class Rejected(Exception):
    """A request is rejected before the application has answered it."""

    def __init__(self, problem: ServiceError) -> None:
        super().__init__(problem)
        self.problem = problem


class OpenRequests:
    """Counts the requests that are open, in total and by client."""

    def __init__(self) -> None:
        self._by_client: Counter[Hashable] = Counter()

    @contextmanager
    def counted(self, client: bytes, max_of_client: int | None) -> Iterator[None]:
        """Count one request. `max_of_client` None: only the total is limited.

        Raises:
            Rejected: there are too many.
        """
        if self._by_client.total() >= MAX_REQUESTS:
            raise Rejected(Overloaded(f"This server has {MAX_REQUESTS} requests open already; try again later."))
        if max_of_client is not None and self._by_client[client] >= max_of_client:
            message = f"This API key has {max_of_client} requests open already; end one of them, or try again later."
            raise Rejected(Overloaded(message))
        self._by_client[client] += 1
        try:
            yield
        finally:
            _subtract(self._by_client, client, 1)


@dataclass(eq=False)
class _Waiter:
    client: Hashable
    num_bytes: int
    turn: "asyncio.Future[None]"


class ByteBudget:
    """Bytes that clients hold, in total and by client. First come, first served; a client that has to wait for its own
    bytes does not delay the others. More than a limit are granted to who holds nothing. Lives on one event loop.

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
        _subtract(self._taken, client, num_bytes)
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


@dataclass(eq=False)
class Reservation:
    client: bytes
    num_bytes: int


class BodyBytes:
    """Bytes of bodies that requests hold. A request reserves them before any of its body is read, so that no two
    half-received bodies wait for each other.

    Args:
        limit: of the total; a client may hold half of it. It may be changed.
    """

    def __init__(self, limit: int) -> None:
        self._budget = ByteBudget(limit, limit // 2, WAIT_S)

    @property
    def limit(self) -> int:
        return self._budget.total

    @limit.setter
    def limit(self, limit: int) -> None:
        self._budget.total, self._budget.per_client = limit, limit // 2

    @asynccontextmanager
    async def reserved(self, client: bytes, num_bytes: int) -> AsyncIterator[Reservation]:
        """Hold so many bytes; waits for them up to `WAIT_S`.

        Raises:
            Rejected: they were not free in time.
        """
        try:
            await self._budget.take(client, num_bytes)
        except TimeoutError:
            message = "The bodies of other requests take all memory that is set aside for them; try again later."
            raise Rejected(Overloaded(message)) from None
        reservation = Reservation(client, num_bytes)
        try:
            yield reservation
        finally:
            self.shrink(reservation, 0)

    def shrink(self, reservation: Reservation, num_bytes: int) -> None:
        """Hold only so many bytes from now on."""
        freed = reservation.num_bytes - num_bytes
        reservation.num_bytes = num_bytes
        self._budget.give_back(reservation.client, freed)


def _subtract(counter: Counter[Hashable], name: Hashable, number: int) -> None:
    counter[name] -= number
    if counter[name] <= 0:
        del counter[name]
