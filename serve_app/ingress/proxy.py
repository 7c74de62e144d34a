"""ASGI middleware for Serve's HTTP proxy: strips client-set control headers, rejects work when the queue is full, and
rewrites the proxy's plain-text errors as JSON.

Serve 2.60 lets the header `x-request-timeout-seconds` set the time after which it gives a request up, and
`x-request-disconnect-disabled: ?1` keep a request running whose client has gone (`ray/serve/_private/http_util.py`).
Its proxies read both before the application sees the request. They also call what the variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names; the shipped Serve files name `middlewares` there, for the controller,
whose environment the proxies inherit.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.proxy_answers import ProxyErrorMiddleware
from serve_app.ingress.proxy_gate import QueueFullMiddleware
from serve_app.serving.replica import is_sane

TIMEOUT_HEADER = "x-request-timeout-seconds"
STAYING_HEADER = "x-request-disconnect-disabled"

_DROPPED = frozenset({TIMEOUT_HEADER.encode(), STAYING_HEADER.encode()})


def middlewares() -> list[Middleware]:
    """The middleware in its order, as Serve's callback returns it."""
    return [Middleware(StripControlHeaders), Middleware(QueueFullMiddleware), Middleware(ProxyErrorMiddleware)]


class StripControlHeaders:
    """ASGI middleware: removes the control headers, and an `x-request-id` with other characters than ours, since Serve
    logs it and returns it unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if not _dropped(name.lower(), value)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _dropped(name: bytes, value: bytes) -> bool:
    return name in _DROPPED or (name == b"x-request-id" and not is_sane(value.decode("latin-1")))
