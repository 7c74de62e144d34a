"""Draining: work that was accepted is finished, new work is rejected."""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ServiceUnavailable
from serve_app.ingress.dialects import is_repeatable_work, is_work
from serve_app.ingress.error_responses import refusal
from serve_app.ingress.route import route_path

DRAIN_PATH, UNDRAIN_PATH = "/drain", "/undrain"

# Not counted: a drain must not wait for its own requests.
_UNCOUNTED = ("/health", DRAIN_PATH, UNDRAIN_PATH)


@dataclass
class Draining:
    """The state of one ingress replica.

    Attributes:
        begun: new work is rejected.
        num_requests: requests that are being answered, except those for health and the drain.
    """

    begun: bool = False
    num_requests: int = 0

    def require_open(self) -> None:
        """
        Raises:
            ServiceUnavailable: no new work is taken.
        """
        if self.begun:
            raise ServiceUnavailable("The service is shutting down and takes no new work; try again later.")

    def begin(self) -> int:
        """Reject new work from now on; returns the number of requests that are being answered."""
        self.begun = True
        return self.num_requests

    def end(self) -> int:
        """Accept new work again; returns the number of requests that are being answered."""
        self.begun = False
        return self.num_requests


class DrainGate:
    """ASGI middleware: counts requests, and rejects new work while draining. Other requests pass, so that clients can
    fetch their results; so does work with an Idempotency-Key, which its route accepts if it repeats earlier work."""

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope).startswith(_UNCOUNTED):
            await self._app(scope, receive, send)
            return
        if _is_new_work(scope):
            try:
                self._draining.require_open()
            except ServiceUnavailable as problem:
                await refusal(scope["path"], problem)(scope, receive, send)
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
