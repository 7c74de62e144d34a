"""A full queue is told of in the proxy, for a moment, so that a storm of clients costs the application nothing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.ingress.drain import is_work
from serve_app.ingress.metrics import Measured, RequestMetrics
from serve_app.ingress.middleware import RequestId
from serve_app.ingress.proxy_answers import FULL
from serve_app.ingress.refusals import refusal, speaks_openai

FULL_S = 0.25
"""For so long a queue that was full is taken to be full."""


@dataclass(frozen=True)
class _Full:
    until: float
    retry_after: str


class FullGate:
    """ASGI middleware of the proxy: where the application has just answered work with 429, more work of that dialect is
    refused here, before its body is read. Work with an Idempotency-Key passes, for it may have been done already."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._full: dict[bool, _Full] = {}
        self._refuse = RequestId(Measured(self._told, RequestMetrics()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_work(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        queue = speaks_openai(scope["path"])
        if self._is_full(queue) and "idempotency-key" not in Headers(scope=scope):
            await self._refuse(scope, receive, send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == Overloaded.status:
                retry_after = Headers(raw=list(message["headers"])).get("retry-after", "1")
                self._full[queue] = _Full(self._clock() + FULL_S, retry_after)
            await send(message)

        await self._app(scope, receive, watch)

    def _is_full(self, queue: bool) -> bool:
        return queue in self._full and self._clock() < self._full[queue].until

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        answer = refusal(path, FULL)
        answer.headers["retry-after"] = self._full[speaks_openai(path)].retry_after
        await answer(scope, receive, send)
