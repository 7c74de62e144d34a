"""What Serve's own proxy puts in front of itself, so that no client steers it or writes into its log, and none hears
its words.

Serve 2.60 lets the header `x-request-timeout-seconds` set the time after which it gives a request up, and
`x-request-disconnect-disabled: ?1` keep a request running whose client has gone (`ray/serve/_private/http_util.py`).
Its proxies read both before the application sees the request. They also call what the variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names; the shipped Serve files name `middlewares` there, for the controller,
whose environment the proxies inherit.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.proxy_answers import OwnWords
from serve_app.ingress.proxy_gate import FullGate
from serve_app.serving.request_id import is_sane

TIMEOUT_HEADER = "x-request-timeout-seconds"
STAYING_HEADER = "x-request-disconnect-disabled"

_DROPPED = frozenset({TIMEOUT_HEADER.encode(), STAYING_HEADER.encode()})


def middlewares() -> list[Middleware]:
    """What Serve asks for."""
    return [Middleware(DropSteering), Middleware(FullGate), Middleware(OwnWords)]


class DropSteering:
    """ASGI middleware: the steering headers are as if they had not been sent, and so is an `x-request-id` that is none,
    for Serve logs it and puts it on the answer as it came."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if not _dropped(name.lower(), value)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _dropped(name: bytes, value: bytes) -> bool:
    return name in _DROPPED or (name == b"x-request-id" and not is_sane(value.decode("latin-1")))
