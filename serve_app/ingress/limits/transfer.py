"""ASGI middleware that bounds what clients occupy while their requests and responses are transferred: how many requests
are open, how many bytes of bodies are held, and how slowly they arrive.

Serve's proxy and replica read a body as fast as `receive` returns it, whatever the application reads, so only this
bounds what they buffer. While nobody calls `receive`, uvicorn does not read from the socket.
"""

import asyncio
import hashlib
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import RequestTimeout, ServiceError
from serve_app.ingress.auth import credentials
from serve_app.ingress.dialects import route_path
from serve_app.ingress.health import OPEN_PATHS, OPERATOR_PATHS
from serve_app.ingress.limits.report import LIMITS_HEADER, LimitsReport
from serve_app.ingress.limits.requests import BodyBytes, BodySize, OpenRequests, Rejected, Reservation
from serve_app.ingress.limits.responses import disconnected, in_chunks
from serve_app.ingress.metrics import MetricsMiddleware, RequestMetrics
from serve_app.ingress.middleware import RequestId, closing_response

MIN_BYTES_PER_S, GRACE_S = 8 * 2**10, 10.0
"""How fast a body must arrive, and how far it may fall behind that."""

CHUNK_BYTES = 64 * 2**10
"""Of a response."""

PART_BYTES = 4 * 2**20
"""Of a body, passed on at once. Each message of it costs Serve a call between proxy and replica."""

LINGER_S, LINGER_BYTES = 5.0, 64 * 2**20
"""For how long, and of what size, the rest of a rejected body is discarded before its connection is closed. Closing at
once would reset the connection, and a client that is still sending would not see its response."""

SERVES_OWN = "/-/"
"""The beginning of the routes that Serve's proxy answers itself."""

_FREE_PATHS = OPEN_PATHS | OPERATOR_PATHS


class TransferLimits:
    """Answers 429 to requests beyond the limits of open requests or of bytes, 413 to bodies that are too large and 408
    to those that arrive too slowly; sends responses in chunks. Health, drain and Serve's own routes always pass; their
    bodies are not read.

    Args:
        limits: apply until the application reports others.
        metrics: counts rejected requests, which then also get an `x-request-id`; None: the application does that.
    """

    def __init__(self, app: ASGIApp, limits: LimitsReport | None = None, metrics: RequestMetrics | None = None) -> None:
        self._app = app
        self._limits = limits or LimitsReport()
        self._metrics = metrics
        self._open = OpenRequests()
        self._bodies = BodyBytes(self._limits.max_bodies_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        if path in _FREE_PATHS or path.startswith(SERVES_OWN):
            await self._app(scope, _without_body(receive), _Response(self._learn, send).send)
            return
        try:
            key = credentials(Headers(scope=scope))
            client = _client(key, scope)
            with self._open.counted(client, self._limits.max_requests_per_key if key else None):
                await self._transfer(client, scope, receive, send)
        except Rejected as rejected:
            await self._reject(rejected.problem, scope, receive, send)

    def _learn(self, report: LimitsReport) -> None:
        """Apply the limits that the application reports."""
        self._limits = report
        self._bodies.set_limit(report.max_bodies_bytes)

    async def _transfer(self, client: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            Rejected: the request is to be rejected; no response has been sent.
        """
        size = BodySize(scope, self._limits.max_body_bytes)
        try:
            size.check()
        except ServiceError as problem:
            raise Rejected(problem) from None
        async with self._bodies.reserved(client, size.largest) as reservation:
            body = _Body(size, reservation, self._bodies, receive)
            response = _Response(self._learn, send)

            async def send_unless_rejected(message: Message) -> None:
                if body.problem is None:
                    await response.send(message)

            try:
                await self._app(scope, body.receive, send_unless_rejected)
            except Exception:
                if body.problem is None:
                    raise
        if body.problem is not None and not response.is_started:
            raise Rejected(body.problem)

    async def _reject(self, problem: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = closing_response(scope, problem)
        if self._metrics is not None:
            response = RequestId(MetricsMiddleware(response, self._metrics))

        async def send_and_discard(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await response(scope, receive, send_and_discard)


def _client(key: bytes, scope: Scope) -> bytes:
    """Whose bytes are counted together: a key's, or without one those of an address. The key is not checked here, since
    the application rejects a wrong one at once."""
    peer = scope.get("client")
    return b"key " + hashlib.sha256(key).digest() if key else b"peer " + (peer[0] if peer else "").encode()


async def _discard(receive: Receive) -> None:
    num_bytes = 0
    try:
        async with asyncio.timeout(LINGER_S):
            while num_bytes < LINGER_BYTES and (message := await receive()).get("more_body", False):
                num_bytes += len(message["body"])
    except TimeoutError:
        pass


def _without_body(receive: Receive) -> Receive:
    """A `receive` whose body is empty."""
    is_first = True

    async def receive_nothing() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        return await disconnected(receive)

    return receive_nothing


class _Body:
    """The body of a request as the application receives it. After a problem, the application receives a
    disconnect.

    Attributes:
        problem: why the request is rejected, once that is known.
    """

    def __init__(self, size: BodySize, reservation: Reservation, bodies: BodyBytes, receive: Receive) -> None:
        self.problem: ServiceError | None = None
        self._size = size
        self._reservation = reservation
        self._bodies = bodies
        self._receive = receive
        self._allowed_s = GRACE_S

    async def receive(self) -> Message:
        if self.problem is None:
            try:
                return await self._joined()
            except ServiceError as problem:
                self.problem = problem
        return {"type": "http.disconnect"}

    async def _joined(self) -> Message:
        """The messages of a body, or of `PART_BYTES` of it, as one."""
        body = bytearray()
        while (message := await self._received())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False) or len(body) >= PART_BYTES:
                return {**message, "body": bytes(body)}
        return message

    async def _received(self) -> Message:
        if self._size.is_complete:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._allowed_s):
                message = await self._receive()
        except TimeoutError:
            text = f"The body arrived more slowly than {MIN_BYTES_PER_S} bytes per second. Send a smaller one."
            raise RequestTimeout(text) from None
        self._size.add(message)
        # Only the time counts in which the client could send.
        earned_s = len(message.get("body", b"")) / MIN_BYTES_PER_S
        self._allowed_s = min(GRACE_S, self._allowed_s - (clock() - began) + earned_s)
        if not message.get("more_body", False):
            self._bodies.shrink(self._reservation, self._size.received)
        return message


class _Response:
    """Sends a response in chunks and without `LIMITS_HEADER`.

    Attributes:
        is_started: its start has been sent.
    """

    def __init__(self, learn: Callable[[LimitsReport], None], send: Send) -> None:
        self.is_started = False
        self._learn = learn
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            if (report := LimitsReport.read(message)) is not None:
                self._learn(report)
                message = {**message, "headers": list(message["headers"])}
                del MutableHeaders(scope=message)[LIMITS_HEADER]
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        for chunk in in_chunks(message, CHUNK_BYTES):
            await self._send(chunk)
