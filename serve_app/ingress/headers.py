"""ASGI middleware for the head of a request: its limits, and the headers by which a client would control Serve."""

import os

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import HeadersTooLarge, InvalidInput, ServiceError, UrlTooLong
from serve_app.ingress.error_responses import error_response
from serve_app.serving.replica import is_sane

MAX_HEADERS = 100
MAX_HEADER_BYTES = 8 * 2**10
"""Of one header, its name and its value."""
MAX_HEADERS_BYTES = 32 * 2**10
"""Of all headers."""
MAX_URL_BYTES = 8 * 2**10
"""Of the path, before it is unquoted, and the query."""

TIMEOUT_HEADER = "x-request-timeout-seconds"
"""Sets the time after which Serve 2.60 aborts a request."""

DISCONNECT_HEADER = "x-request-disconnect-disabled"
"""With the value `?1`, Serve 2.60 runs a request to its end although its client has disconnected."""

MODEL_HEADER = "serve-multiplexed-model-id"
"""Serve 2.60 keeps each value of it in its proxy's memory for good."""

REQUEST_ID_HEADER = "x-request-id"
CONTROL_PREFIX = "x-serve-router-"
CONTROL_HEADERS = frozenset(
    {
        MODEL_HEADER,
        TIMEOUT_HEADER,
        DISCONNECT_HEADER,
        "x-body-truncated",
        "x-haproxy-reload-id",
        "traceparent",
        "tracestate",
    }
)
"""What Serve 2.60 itself reads of a request (`proxy.py`, `replica.py`, `http_util.py`, `proxy_request_response.py`,
`constants.py` and `haproxy_templates.py` in `ray/serve/_private`), in lower case with hyphens; besides these the header
that `SESSION_VARIABLE` names, those that begin with `CONTROL_PREFIX`, and `REQUEST_ID_HEADER`."""

SESSION_VARIABLE = "RAY_SERVE_SESSION_ID_HEADER_KEY"

_HEADERS = HeadersTooLarge(
    f"The headers are too large: at most {MAX_HEADERS}, each of {MAX_HEADER_BYTES} bytes, together "
    f"{MAX_HEADERS_BYTES} bytes. Leave some out; a picture or a prompt belongs into the body."
)
_URL = UrlTooLong(f"The URL is longer than {MAX_URL_BYTES} bytes. Send its content in the body.")
_UPGRADE = InvalidInput("This service has no WebSocket. Send a plain HTTP request, without Upgrade.")


def session_header() -> str:
    """The header that Serve reads as a session's id, in lower case with hyphens."""
    return _spelt(os.environ.get(SESSION_VARIABLE) or "x-session-id")


def _spelt(name: str) -> str:
    # Serve reads the headers of models and sessions in any case, with hyphens or underscores.
    return name.lower().replace("_", "-")


class StripControlHeaders:
    """Removes the headers that Serve itself reads, except a valid `x-request-id`, and names that are not ASCII, which
    Serve fails to decode."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._session_header = session_header()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if self._is_kept(name.lower(), value)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)

    def _is_kept(self, name: bytes, value: bytes) -> bool:
        if not name.isascii():
            return False
        spelt = _spelt(name.decode("ascii"))
        if spelt == REQUEST_ID_HEADER:
            return name == spelt.encode() and is_sane(value.decode("latin-1"))
        return spelt not in CONTROL_HEADERS and spelt != self._session_header and not spelt.startswith(CONTROL_PREFIX)


class RejectControlHeaders:
    """Rejects requests that would run on after their client has disconnected, or that name a model for Serve to
    remember. Serve's proxy strips both headers if a Serve file names `serve_app.ingress.proxy`; HAProxy never does.
    What else Serve reads affects no other request, so it passes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _rejected_header(scope) if scope["type"] == "http" else None
        if name is not None:
            problem = InvalidInput(f"The header {name} must not be set by clients; leave it out.")
            await error_response(scope["path"], problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _rejected_header(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        spelt = _spelt(name.decode("latin-1"))
        if spelt == MODEL_HEADER or (spelt == DISCONNECT_HEADER and value == b"?1"):
            return spelt
    return None


class HeadLimits:
    """Rejects requests by `head_error`. The connection is closed, since their bodies are not read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = head_error(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await closing_response(scope, problem)(scope, receive, send)


def head_error(scope: Scope) -> ServiceError | None:
    """Why a request is rejected before its body is read: its headers or its URL are too large, or it asks for a
    WebSocket, which no route has; None: it is not."""
    if scope["type"] != "http":
        return None
    sizes = [len(name) + len(value) for name, value in scope["headers"]]
    if len(sizes) > MAX_HEADERS or sum(sizes) > MAX_HEADERS_BYTES or any(size > MAX_HEADER_BYTES for size in sizes):
        return _HEADERS
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > MAX_URL_BYTES:
        return _URL
    return _UPGRADE if "websocket" in Headers(scope=scope).get("upgrade", "").lower() else None


def closing_response(scope: Scope, problem: ServiceError) -> JSONResponse:
    """The response to a request whose body is not read."""
    response = error_response(scope["path"], problem)
    response.headers["connection"] = "close"
    return response
