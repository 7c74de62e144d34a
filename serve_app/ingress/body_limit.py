"""The largest body that the server reads.

FastAPI's own `max_body_size` answers a too large Content-Length in plain text, past every exception handler; clients of
either dialect need JSON.
"""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: reading a body above `max_body_bytes`, announced or chunked, raises HTTPException 413."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        received_bytes = 0

        async def limited() -> Message:
            nonlocal received_bytes
            self._check(int(announced) if announced.isdecimal() else 0)
            message = await receive()
            received_bytes += len(message.get("body", b""))
            self._check(received_bytes)
            return message

        await self._app(scope, limited, send)

    def _check(self, body_bytes: int) -> None:
        if body_bytes > self._max_body_bytes:
            raise HTTPException(
                413, f"The body is larger than the {self._max_body_bytes} bytes that this server takes."
            )
