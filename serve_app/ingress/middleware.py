"""ASGI middleware of the application. `app.py` has its order."""

import asyncio
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import HeadersTooLarge, InvalidInput, ServiceError, ServiceUnavailable, Unauthorized, UrlTooLong
from serve_app.ingress.auth import CLIENT, KEY_NAME, Keys, credentials, matching, operator_error
from serve_app.ingress.backend import DRAINS, Draining
from serve_app.ingress.cross_origin import OTHER_PAGE
from serve_app.ingress.dialects import is_operator_route, is_repeatable_work, is_work, route_path
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.health import OPEN_PATHS, OPERATOR_PATHS
from serve_app.ingress.playground import is_open_page
from serve_app.serving.control_headers import DISCONNECT_HEADER, MODEL_HEADER, REQUEST_ID_HEADER, is_sane, spelling

MAX_HEADERS = 100
MAX_HEADER_BYTES = 8 * 2**10
"""Of one header, its name and its value."""
MAX_HEADERS_BYTES = 32 * 2**10
"""Of all headers."""
MAX_URL_BYTES = 8 * 2**10
"""Of the path, before it is unquoted, and the query."""

_HEADERS = HeadersTooLarge(
    f"The headers are too large: at most {MAX_HEADERS}, each of {MAX_HEADER_BYTES} bytes, together "
    f"{MAX_HEADERS_BYTES} bytes. Leave some out; a picture or a prompt belongs into the body."
)
_URL = UrlTooLong(f"The URL is longer than {MAX_URL_BYTES} bytes. Send its content in the body.")
_UPGRADE = InvalidInput("This service has no WebSocket. Send a plain HTTP request, without Upgrade.")

# Not counted: a drain must not wait for its own requests.
_UNCOUNTED = ("/health", *OPERATOR_PATHS)


class CutTracebacks:
    """Lets go of what a cancelled request holds. Its task keeps the error, whose traceback has every frame, and a frame
    with an `asyncio.timeout` has the task: otherwise bodies and pictures of clients that have left would stay until the
    garbage collector's next full run, which may be minutes away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError as cancelled:
            raise cancelled.with_traceback(None) from None


class RequestId:
    """Puts `x-request-id` on every response. A valid one that came with the request is kept. Routes read it from
    `request.state.request_id`.

    Args:
        behind_proxy: a proxy in front gives each request an id and puts it on the response, where it must not be twice.
    """

    def __init__(self, app: ASGIApp, *, behind_proxy: bool = False) -> None:
        self._app = app
        self._behind_proxy = behind_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        is_kept = is_sane(received)
        request_id = received if is_kept else f"req-{uuid.uuid4()}"
        headers = {} if is_kept and self._behind_proxy else {REQUEST_ID_HEADER: request_id}
        scope.setdefault("state", {}).update(request_id=request_id, response_headers=headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self._app(scope, receive, send_with_id)


class OperatorGate:
    """Answers 401 or 403 to requests for operator endpoints that do not come from an operator. An admitted request has
    `is_operator` in its scope's state.

    Args:
        operator_keys: None: none are configured.
        api_keys: the customers' keys; None: none are configured.
        behind_haproxy: as in `operator_error`.
    """

    def __init__(
        self, app: ASGIApp, operator_keys: Keys | None, api_keys: Keys | None, behind_haproxy: bool = False
    ) -> None:
        self._app = app
        self._operator_keys = operator_keys
        self._api_keys = api_keys
        self._behind_haproxy = behind_haproxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_operator_path(route_path(scope)):
            problem = operator_error(scope, self._operator_keys, self._api_keys, self._behind_haproxy)
            if problem is not None:
                await error_response(scope["path"], problem)(scope, receive, send)
                return
            scope.setdefault("state", {})["is_operator"] = True
        await self._app(scope, receive, send)


def _is_operator_path(path: str) -> bool:
    # Starlette's routes also match a path with a newline at its end.
    return path.removesuffix("\n") in OPERATOR_PATHS or is_operator_route(path)


class ApiKeys:
    """Answers 401 to requests without a valid key, except on `OPEN_PATHS` and for requests that `OperatorGate` has
    admitted. The key's name is put into the scope's state as `key_name`.

    Args:
        keys: None: no key is needed. A callable that returns no keys: every request is rejected.
        has_playground: the playground's pages need no key.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, has_playground: bool = False) -> None:
        self._app = app
        self._keys = keys
        self._has_playground = has_playground

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # There is no WebSocket route, so a scope of another type needs no key.
        if self._keys is None or scope["type"] != "http" or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        key = matching(self._keys, credentials(Headers(scope=scope)))
        if key is None:
            problem = Unauthorized("The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.")
            await error_response(scope["path"], problem)(scope, receive, send)
            return
        scope.setdefault("state", {})["key_name"] = key.name
        tokens = KEY_NAME.set(key.name), CLIENT.set(key.client)
        try:
            await self._app(scope, receive, send)
        finally:
            KEY_NAME.reset(tokens[0])
            CLIENT.reset(tokens[1])

    def _is_open(self, scope: Scope) -> bool:
        path = route_path(scope)
        is_open = path in OPEN_PATHS or (self._has_playground and is_open_page(path))
        return is_open or scope.get("state", {}).get("is_operator", False)


class OwnPagesOnly:
    """For a service that needs no key: rejects edits that a browser sends for a page of another site. A form of any
    page would reach the service without a preflight, also one that only listens on this machine. A key is sent in a
    header, for which browsers ask the service first.

    The site is in Sec-Fetch-Site, which no page can set (https://www.w3.org/TR/fetch-metadata/).

    Args:
        origins: of pages that may.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_rejected(scope):
            await error_response(scope["path"], OTHER_PAGE)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_rejected(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        is_other = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        may = headers.get("origin") in self._origins
        return is_other and not may and is_work(scope["method"], route_path(scope))


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
        spelled = spelling(name.decode("latin-1"))
        if spelled == MODEL_HEADER or (spelled == DISCONNECT_HEADER and value == b"?1"):
            return spelled
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


class DrainGate:
    """Counts requests, and rejects new work while the service drains. Other requests pass, so that clients can fetch
    their results; so does work with an Idempotency-Key, which its route accepts if it repeats earlier work."""

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope).startswith(_UNCOUNTED):
            await self._app(scope, receive, send)
            return
        if self._draining.begun and _is_new_work(scope):
            await error_response(scope["path"], ServiceUnavailable(DRAINS))(scope, receive, send)
            return
        self._draining.num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._draining.num_requests -= 1


def _is_new_work(scope: Scope) -> bool:
    method, path = scope["method"], route_path(scope)
    may_repeat = "idempotency-key" in Headers(scope=scope) and is_repeatable_work(method, path)
    return is_work(method, path) and not may_repeat
