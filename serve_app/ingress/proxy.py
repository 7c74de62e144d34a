"""ASGI middleware for Serve's HTTP proxy: strips client-set control headers, rejects what needs no replica to be
rejected and work when the queue is full, and rewrites the proxy's plain-text errors as JSON.

Serve's proxies call the function that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names. The shipped Serve files name
`middlewares` there, in the environment of the controller, which the proxies inherit.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Forbidden, KeyPlacesTaken, Overloaded, ServiceError, ServiceUnavailable
from serve_app.ingress.auth import credentials, is_local
from serve_app.ingress.cross_origin import CrossOriginResponses
from serve_app.ingress.dialects import DIALECTS, Dialect, dialect_of, is_work, route_path
from serve_app.ingress.error_responses import error_response
from serve_app.ingress.limits.report import FULL_FOR_CLIENT, LimitsReport
from serve_app.ingress.limits.transfer import SERVES_OWN, TransferLimits
from serve_app.ingress.metrics import MetricsMiddleware, RequestMetrics
from serve_app.ingress.middleware import RequestId, closing_response, head_error
from serve_app.serving.control_headers import REQUEST_ID_HEADER, is_control_header, session_header
from serve_app.serving.http_server import configure_http_servers, is_behind_haproxy
from serve_app.serving.memory import return_freed_memory

logger = logging.getLogger(__name__)

FULL_S = 0.25
"""For how long a queue that was full is assumed to be full."""

_NOT_HERE = Forbidden(
    "Serve's own routes can be called only from the node itself. /health/live and /health/ready need no key."
)
_FULL = Overloaded("Too many requests are waiting already; try again later.")
_FULL_FOR_CLIENT = KeyPlacesTaken(
    "This API key's places in the queue are all taken, while other keys send work; try again later."
)
_NOT_YET = ServiceUnavailable("The service is starting; try again later.")
_GONE = ServiceUnavailable("The replica that had this request is gone; send it again.")
# The errors that stand for the proxy's plain-text ones. When the replica of a request dies, Serve 2.60 answers 500 with
# the text of its exception, or nothing at all, and 503 where a deployment is gone (`get_http_response_status` in
# `ray/serve/_private/http_util.py`). All of these are temporary. The application itself always answers in JSON.
_ERRORS: dict[int, ServiceError] = {
    HTTPStatus.TOO_MANY_REQUESTS: _FULL,
    HTTPStatus.INTERNAL_SERVER_ERROR: _GONE,
    HTTPStatus.SERVICE_UNAVAILABLE: ServiceUnavailable("No replica can take this request now; try again later."),
}


def middlewares() -> list[Middleware]:
    """The middleware, as Serve's callback returns it: the last one is the outermost."""
    configure_http_servers()
    return_freed_memory()
    return [
        Middleware(StripControlHeaders),
        Middleware(QueueFullMiddleware),
        Middleware(TransferLimits, metrics=RequestMetrics()),
        Middleware(ProxyGate, behind_haproxy=is_behind_haproxy()),
        Middleware(ProxyErrorMiddleware),
        Middleware(CrossOriginResponses),
    ]


class StripControlHeaders:
    """Removes the headers that Serve itself reads, except a valid `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._session = session_header()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            headers = scope["headers"]
            kept = [(name, value) for name, value in headers if not is_control_header(name, value, self._session)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


class ProxyGate:
    """Rejects requests by `head_error`, and those from other machines for Serve's own routes, `/-/healthz` and
    `/-/routes`, which Serve answers without a key. Ray's and KubeRay's probes of a node run on that node.

    Args:
        behind_haproxy: Serve runs behind HAProxy, which answers these routes itself and probes the replicas' from any
            node.
    """

    def __init__(self, app: ASGIApp, behind_haproxy: bool = False) -> None:
        self._app = app
        self._behind_haproxy = behind_haproxy
        self._metrics = RequestMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            reject = MetricsMiddleware(closing_response(scope, problem), self._metrics)
            await RequestId(reject)(scope, receive, send)

    def _problem(self, scope: Scope) -> ServiceError | None:
        is_serves_own = scope["type"] == "http" and route_path(scope).startswith(SERVES_OWN)
        if is_serves_own and not self._behind_haproxy and not is_local(scope):
            return _NOT_HERE
        return head_error(scope)


@dataclass(frozen=True)
class _Refusal:
    """A 429 that is repeated.

    Attributes:
        until: in seconds of the middleware's clock.
    """

    problem: ServiceError = _FULL
    until: float = -math.inf
    retry_after: str = "1"


@dataclass
class _Queue:
    """What the proxy knows about a dialect's queue.

    Attributes:
        full: the last 429 because the queue was full.
        full_for: the same for a client, by the key that it presents; entries of the last `FULL_S`.
        max_jobs: how many jobs may be unfinished; 0: not known yet, or the dialect's work makes no jobs.
        num_unanswered: requests whose body has arrived and that have no response yet.
    """

    full: _Refusal
    full_for: dict[bytes, _Refusal] = field(default_factory=dict)
    max_jobs: int = 0
    num_unanswered: int = 0

    def refusal(self, client: bytes, now: float) -> _Refusal | None:
        """What the client is answered without the application; None: the application answers."""
        own = self.full_for.get(client)
        if own is not None and now < own.until:
            return own
        is_full = now < self.full.until or 0 < self.max_jobs <= self.num_unanswered
        return self.full if is_full else None

    def refuse_client(self, client: bytes, refusal: _Refusal, now: float) -> None:
        self.full_for = {key: each for key, each in self.full_for.items() if now < each.until}
        self.full_for[client] = refusal


class QueueFullMiddleware:
    """Rejects work of a dialect before its body is read, if the application has just answered such work with 429 since
    its queue is full, for all or for this client, or has as many unanswered requests as its queue has places. Work with
    an Idempotency-Key passes, since it may be done already."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._queues = {dialect.name: _Queue(_Refusal()) for dialect in DIALECTS}
        self._metrics = RequestMetrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_work(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        dialect = dialect_of(scope["path"])
        queue, headers = self._queues[dialect.name], Headers(scope=scope)
        refusal = None if "idempotency-key" in headers else queue.refusal(credentials(headers), self._clock())
        if refusal is None:
            await self._pass(dialect, queue, scope, receive, send)
            return
        response = error_response(scope["path"], refusal.problem)
        response.headers["retry-after"] = refusal.retry_after
        await RequestId(MetricsMiddleware(response, self._metrics))(scope, receive, send)

    async def _pass(self, dialect: Dialect, queue: _Queue, scope: Scope, receive: Receive, send: Send) -> None:
        is_counted = False

        def count(unanswered: bool) -> None:
            nonlocal is_counted
            queue.num_unanswered += unanswered - is_counted
            is_counted = unanswered

        async def receive_and_count() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                count(True)
            return message

        async def send_and_learn(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(False)
                self._learn(dialect, queue, Headers(scope=scope), message)
            await send(message)

        try:
            await self._app(scope, receive_and_count, send_and_learn)
        finally:
            count(False)

    def _learn(self, dialect: Dialect, queue: _Queue, request: Headers, message: Message) -> None:
        report = LimitsReport.read(message)
        # In a dialect whose work makes no jobs, a request with a key is one, and waits in their queue.
        if report is None or (not dialect.makes_jobs and "idempotency-key" in request):
            return
        if dialect.makes_jobs:
            queue.max_jobs = report.max_jobs
        if report.queue_full:
            now, retry_after = self._clock(), Headers(raw=list(message["headers"])).get("retry-after", "1")
            if report.queue_full == FULL_FOR_CLIENT:
                queue.refuse_client(credentials(request), _Refusal(_FULL_FOR_CLIENT, now + FULL_S, retry_after), now)
            else:
                queue.full = _Refusal(_FULL, now + FULL_S, retry_after)


class ProxyErrorMiddleware:
    """Replaces the proxy's plain-text errors by the dialect's, with Retry-After. Serve's own routes (`/-/healthz`,
    `/-/routes`) stay as they are.

    The proxy's 404 means that no application has the path. Until the application has answered anything, that is because
    it is not deployed yet.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._has_answered = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(SERVES_OWN):
            await self._app(scope, receive, send)
            return
        begun = replaced = False

        async def send_or_replace(message: Message) -> None:
            nonlocal begun, replaced
            response = self._replacement(scope["path"], message)
            begun, replaced = True, replaced or response is not None
            if response is not None:
                await response(scope, receive, send)
            elif not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_or_replace)
        except Exception:
            if begun:
                raise
            logger.exception("the proxy failed")
        if not begun:
            await RequestId(error_response(scope["path"], _GONE))(scope, receive, send)

    def _replacement(self, path: str, message: Message) -> JSONResponse | None:
        if message["type"] != "http.response.start":
            return None
        status: int = message["status"]
        if self._has_answered and status not in _ERRORS:
            return None
        headers = Headers(raw=list(message["headers"]))
        is_proxys = headers.get("content-type", "").startswith("text/plain")
        if not is_proxys or status == HTTPStatus.OK:
            self._has_answered = True
            return None
        problem = _NOT_YET if status == HTTPStatus.NOT_FOUND else _ERRORS.get(status)
        if problem is None:
            return None
        response = error_response(path, problem)
        for name in ("retry-after", REQUEST_ID_HEADER):
            if name in headers:
                response.headers[name] = headers[name]
        return response
