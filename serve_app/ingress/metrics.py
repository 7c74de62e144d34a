"""Requests as Prometheus metrics, exported by Ray on each node."""

import time

from ray.util.metrics import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.dialects import dialect_of, route_path, route_template
from serve_app.ingress.health import OPEN_PATHS, OPERATOR_PATHS
from serve_app.ingress.playground import is_page
from serve_app.serving.metrics import SECONDS

CLIENT_GONE = 499
"""nginx's status for a request whose client disconnected before the response."""

_SERVICE_PATHS = OPEN_PATHS | OPERATOR_PATHS | {"/openapi.json"}
"""Paths that belong to no dialect. RunPod's own `/health` is not one of them."""


class RequestMetrics:
    def __init__(self) -> None:
        self._requests = Counter(
            "camera_edit_requests",
            "HTTP requests by dialect, route, API key's name and status.",
            ("dialect", "route", "key", "status"),
        )
        self._seconds = Histogram(
            "camera_edit_request_seconds",
            "From a request's arrival to its last byte.",
            SECONDS,
            ("dialect", "route", "key"),
        )

    def ended(self, dialect: str, route: str, key: str, status: int, seconds: float) -> None:
        """Count one request. `key` is the name of its API key; empty: the key has no name, or there is none."""
        labels = {"dialect": dialect, "route": route, "key": key}
        self._requests.inc(1, {**labels, "status": str(status)})
        self._seconds.observe(seconds, labels)


class MetricsMiddleware:
    """ASGI middleware: counts each request and its time."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), CLIENT_GONE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:
            status = 500  # Starlette answers these outside of all middleware.
            raise
        finally:
            key = scope.get("state", {}).get("key_name", "")
            self._metrics.ended(
                _dialect_label(route_path(scope)), route_template(scope), key, status, time.monotonic() - began
            )


def _dialect_label(path: str) -> str:
    """The dialect of a route path, or `service` if it belongs to none."""
    return "service" if path in _SERVICE_PATHS or is_page(path) else dialect_of(path).name
