"""What clients may occupy at once: open requests, and bytes of bodies."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

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
        self._by_client: Counter[bytes] = Counter()

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
class Reservation:
    client: bytes
    num_bytes: int
    admitted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class BodyBytes:
    """Bytes of bodies that requests hold, in total and by client. A request reserves them before any of its body is
    read, so that no two half-received bodies wait for each other. First come, first served; who has to wait for its own
    requests only does not delay others.

    Attributes:
        limit: of the total; a client may hold half of it. A larger body is admitted alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._total = 0
        self._by_client: Counter[bytes] = Counter()
        self._waiting: list[Reservation] = []

    @asynccontextmanager
    async def reserved(self, client: bytes, num_bytes: int) -> AsyncIterator[Reservation]:
        """Hold so many bytes; waits for them up to `WAIT_S`.

        Raises:
            Rejected: they were not free in time.
        """
        reservation = Reservation(client, num_bytes)
        self._waiting.append(reservation)
        self._admit()
        try:
            await self._admission(reservation)
            yield reservation
        finally:
            if reservation in self._waiting:
                self._waiting.remove(reservation)
                self._admit()
            else:
                self.shrink(reservation, 0)

    async def _admission(self, reservation: Reservation) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                await reservation.admitted
        except TimeoutError:
            message = "The bodies of other requests take all memory that is set aside for them; try again later."
            raise Rejected(Overloaded(message)) from None

    def shrink(self, reservation: Reservation, num_bytes: int) -> None:
        """Hold only so many bytes from now on."""
        freed = reservation.num_bytes - num_bytes
        self._total -= freed
        _subtract(self._by_client, reservation.client, freed)
        reservation.num_bytes = num_bytes
        self._admit()

    def _admit(self) -> None:
        delayed = set()
        for each in tuple(self._waiting):
            share = self._by_client[each.client]
            if each.client in delayed or not _fits(each.num_bytes, share, self.limit // 2):
                delayed.add(each.client)
            elif _fits(each.num_bytes, self._total, self.limit):
                self._waiting.remove(each)
                self._total += each.num_bytes
                self._by_client[each.client] += each.num_bytes
                each.admitted.set_result(None)
            else:
                break


def _fits(num_bytes: int, used: int, limit: int) -> bool:
    return num_bytes == 0 or used == 0 or used + num_bytes <= limit


def _subtract(counter: Counter[bytes], name: bytes, number: int) -> None:
    counter[name] -= number
    if counter[name] <= 0:
        del counter[name]
