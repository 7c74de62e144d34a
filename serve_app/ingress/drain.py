"""Draining: what was taken is finished, nothing new is taken."""

import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import ServiceUnavailable
from serve_app.ingress.refusals import refusal

DRAIN_PATH = "/drain"

_WORK = re.compile(r"(/v2/[^/]+)?/(run|runsync|retry/[^/]+)|(/v2/[^/]+/openai)?/v1/images/edits")
# The operator's own questions, which must not wait for themselves.
_ASIDE = ("/health", DRAIN_PATH)


@dataclass
class Draining:
    """How a replica of the ingress stands.

    Attributes:
        begun: no new work is taken.
        num_requests: those that are being answered, but for health's and the drain's.
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
        """Take no new work from now on; how many requests are being answered."""
        self.begun = True
        return self.num_requests


def is_work(method: str, path: str) -> bool:
    """Whether a request asks for edits; the others only look at them or end them."""
    return method == "POST" and _WORK.fullmatch(path) is not None


class DrainGate:
    """ASGI middleware: counts requests, and refuses work once the draining has begun. Jobs can still be asked for:
    their clients come back for their pictures."""

    def __init__(self, app: ASGIApp, draining: Draining) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_ASIDE):
            await self._app(scope, receive, send)
            return
        if self._draining.begun and is_work(scope["method"], scope["path"]):
            problem = ServiceUnavailable("The service is shutting down and takes no new work; try again later.")
            await refusal(scope["path"], problem)(scope, receive, send)
            return
        self._draining.num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._draining.num_requests -= 1
