"""ASGI middleware that bounds the bytes of responses that clients have not taken yet."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.ingress.auth import CLIENT
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.limits.budget import RESPONSE_BYTES, OutgoingBytes, ResponseBytes

CHUNK_BYTES = 256 * 2**10
"""Of a message with a part of a body."""

TAKEN_S = 120.0
"""How long a response counts at most after it was sent, should the proxy not drop a client that reads too slowly."""


async def disconnected(receive: Receive) -> Message:
    """The first `http.disconnect`; what comes before it is discarded."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def in_chunks(message: Message, num_bytes: int) -> Iterator[Message]:
    """A message with a part of a response's body as messages of at most so many bytes each. uvicorn's `send` waits for
    the client before a message, never within one."""
    body, more_body = message.get("body", b""), message.get("more_body", False)
    for begin in range(0, max(len(body), 1), num_bytes):
        end = begin + num_bytes
        yield {**message, "body": body[begin:end], "more_body": more_body or end < len(body)}


class ResponseLimits:
    """Takes a response's bytes from a budget before its body is sent: of a response of known length all at once, of a
    stream those of each event. Gives them back when the client has taken the response.

    Serve's proxy and uvicorn let `receive` return `http.disconnect` when the last message of a response has been
    written to the connection, as well as when the client has gone. Measured with clients that do not read: it comes
    only once they do, or close.
    """

    def __init__(self, app: ASGIApp, budget: OutgoingBytes, taken_s: float = TAKEN_S) -> None:
        self._app = app
        self._budget = budget
        self._taken_s = taken_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = ResponseBytes(self._budget, CLIENT.get())
        token = RESPONSE_BYTES.set(held)
        try:
            await self._app(scope, receive, _LimitedSend(scope, receive, send, held))
            if held:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._taken_s):
                        await disconnected(receive)
        finally:
            RESPONSE_BYTES.reset(token)
            held.release()


class _LimitedSend:
    """An ASGI send that reserves bytes first, and sends bodies in chunks."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, held: ResponseBytes) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held = held
        self._is_stream = False
        self._is_rejected = False

    async def __call__(self, message: Message) -> None:
        """
        Raises:
            Overloaded: the bytes of a stream's event did not fit in time. A response of known length becomes a 429
                instead.
        """
        if message["type"] == "http.response.start":
            await self._start(message)
        elif not self._is_rejected:
            body: bytes = message.get("body", b"")
            if self._is_stream:
                await self._held.start(len(body))
            for chunk in in_chunks(message, CHUNK_BYTES):
                await self._send(chunk)
            if self._is_stream:
                self._held.sent_event(len(body))

    async def _start(self, message: Message) -> None:
        length = Headers(raw=message["headers"]).get("content-length")
        self._is_stream = length is None
        try:
            await self._held.start(int(length or 0))
        except Overloaded as problem:
            self._is_rejected = True
            self._held.release()
            await error_response(self._scope["path"], problem)(self._scope, self._receive, self._send)
        else:
            await self._send(message)
