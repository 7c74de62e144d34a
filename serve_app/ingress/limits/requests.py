"""What requests may take up: how many are open, the size of a body, and the bytes of all bodies together."""

from collections import Counter
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import BodyTooLarge, Overloaded, ServiceError
from serve_app.ingress.limits.budget import ByteBudget

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
            self._by_client -= Counter({client: 1})


def too_large(max_body_bytes: int) -> BodyTooLarge:
    """The error of a body, as it is sent or decompressed."""
    return BodyTooLarge(f"The body is larger than the {max_body_bytes} bytes that this server takes.")


class BodySize:
    """Counts the bytes of one request's body.

    Attributes:
        announced: its Content-Length; None: it has none.
        received: the bytes that have arrived.
        is_complete: all of it has arrived.
    """

    def __init__(self, scope: Scope, max_body_bytes: int) -> None:
        headers = Headers(scope=scope)
        text = headers.get("content-length", "")
        # 19 digits are more than any limit; Python reads no number of 5,000.
        self.announced = int(text[:19]) if text.isdecimal() else None
        self.received = 0
        self.is_complete = self.announced is None and "transfer-encoding" not in headers
        self._max_body_bytes = max_body_bytes

    @property
    def largest(self) -> int:
        """The most bytes that may arrive."""
        if self.is_complete:
            return self.received
        return self._max_body_bytes if self.announced is None else self.announced

    def check(self) -> None:
        """
        Raises:
            BodyTooLarge: more bytes are announced or have arrived than are allowed.
        """
        if max(self.announced or 0, self.received) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)

    def add(self, message: Message) -> None:
        """Count a message of `receive`.

        Raises:
            BodyTooLarge: more bytes have arrived than are allowed.
        """
        self.received += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        self.check()


class BodyLimit:
    """Raises BodyTooLarge when more than `max_body_bytes` of a body are announced or received. FastAPI's own
    `max_body_size` answers in plain text, past every exception handler; clients of either dialect need JSON."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = BodySize(scope, self._max_body_bytes)

        async def receive_limited() -> Message:
            size.check()
            message = await receive()
            size.add(message)
            return message

        await self._app(scope, receive_limited, send)


@dataclass(eq=False)
class Reservation:
    client: bytes
    num_bytes: int


class BodyBytes:
    """Bytes of bodies that requests hold. A request reserves them before any of its body is read, so that no two
    half-received bodies wait for each other.

    Args:
        limit: of the total; a client may hold half of it.
    """

    def __init__(self, limit: int) -> None:
        self._budget = ByteBudget(limit, limit // 2, WAIT_S)

    def set_limit(self, limit: int) -> None:
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
