"""Requests as Prometheus metrics, through Ray's exporter on each node."""

import time

from ray.util.metrics import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.refusals import speaks_openai
from serve_app.ingress.route import route_template
from serve_app.metrics import SECONDS

CLIENT_GONE = 499
"""nginx's status of a request whose client left before there was an answer."""


class RequestMetrics:
    def __init__(self) -> None:
        self._requests = Counter(
            "camera_edit_requests", "HTTP requests by dialect, route and status.", ("dialect", "route", "status")
        )
        self._seconds = Histogram(
            "camera_edit_request_seconds", "From a request's arrival to its last byte.", SECONDS, ("dialect", "route")
        )

    def ended(self, dialect: str, route: str, status: int, seconds: float) -> None:
        self._requests.inc(1, {"dialect": dialect, "route": route, "status": str(status)})
        self._seconds.observe(seconds, {"dialect": dialect, "route": route})


class Measured:
    """ASGI middleware: counts each request and its time."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), CLIENT_GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500  # Starlette answers these outside of all middleware.
            raise
        finally:
            dialect = "openai" if speaks_openai(scope["path"]) else "runpod"
            self._metrics.ended(dialect, route_template(scope), status, time.monotonic() - began)
