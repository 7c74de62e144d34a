"""Rejects work in Serve's proxy while the queue is full, before request bodies reach the application."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.ingress.dialects import DIALECTS, dialect_of, is_work
from serve_app.ingress.error_responses import refusal
from serve_app.ingress.metrics import MetricsMiddleware, RequestMetrics
from serve_app.ingress.middleware import RequestId
from serve_app.ingress.proxy_answers import FULL

FULL_S = 0.25
"""For so long a queue that was full is taken to be full, and a job that was just queued to be unfinished."""

LIMIT_HEADER = "x-queue-limit"
"""How many jobs may be unfinished at once; on the application's answers to jobs."""


class QueueLimitHeader:
    """ASGI middleware of the application: adds the queue's limit to its answers to jobs, for the proxy to read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[LIMIT_HEADER] = str(self._limit)
            await send(message)

        is_work_here = scope["type"] == "http" and is_work(scope["method"], scope["path"])
        is_job = is_work_here and dialect_of(scope["path"]).makes_jobs
        await self._app(scope, receive, tell if is_job else send)


@dataclass
class _Queue:
    """What the proxy knows of a dialect's queue."""

    full_until: float | None = None
    is_tried: bool = False
    retry_after: str = "1"
    limit: int | None = None
    num_unanswered: int = 0
    queued_at: deque[float] = field(default_factory=deque)

    def has_no_room(self, now: float) -> bool:
        """Each request that came in whole and has no answer takes a place, or is refused anyway."""
        self._forget(now)
        return self.limit is not None and self.num_unanswered + len(self.queued_at) >= self.limit

    def queued(self, now: float) -> None:
        """Record that a job was queued. Work with an Idempotency-Key is recorded without a question for room, so this
        bounds the records, too: more than there are places say no more."""
        self._forget(now)
        self.queued_at.append(now)
        if self.limit is not None and len(self.queued_at) > self.limit:
            self.queued_at.popleft()

    def _forget(self, now: float) -> None:
        while self.queued_at and self.queued_at[0] <= now - FULL_S:
            self.queued_at.popleft()

    def is_full(self, now: float) -> bool:
        """Whether it was full a moment ago. When the moment is over, one request tries, and the others are told the
        same for another; a third follows only on another 429."""
        if self.full_until is None or now < self.full_until:
            return self.full_until is not None
        is_next = not self.is_tried and now < self.full_until + FULL_S
        self.full_until = now + FULL_S if is_next else None
        self.is_tried = is_next
        return False

    def tell(self, now: float, status: int, retry_after: str, tried: bool) -> None:
        """An answer of the application, to a request that tried or to one from before."""
        if status == Overloaded.status:
            self.full_until, self.is_tried, self.retry_after = now + FULL_S, False, retry_after
        elif tried:
            self.full_until = None


class QueueFullMiddleware:
    """ASGI middleware of the proxy: where the application has just answered work with 429, or has as many unanswered
    requests as its queue has places, rejects more work of that dialect before its body is read. Now and then one
    request passes, to find out whether there is room again. Work with an Idempotency-Key passes, since it may be done
    already."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._queues = {dialect.name: _Queue() for dialect in DIALECTS}
        self._refuse = RequestId(MetricsMiddleware(self._told, RequestMetrics()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_work(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        queue, now = self._queues[dialect_of(scope["path"]).name], self._clock()
        if "idempotency-key" not in Headers(scope=scope) and (queue.is_full(now) or queue.has_no_room(now)):
            await self._refuse(scope, receive, send)
        else:
            await self._pass(queue, scope, receive, send)

    async def _pass(self, queue: _Queue, scope: Scope, receive: Receive, send: Send) -> None:
        tries = queue.full_until is not None  # whoever came before the queue was full says nothing about now
        counts = False

        def count(whole: bool) -> None:
            nonlocal counts
            queue.num_unanswered += whole - counts
            counts = whole

        async def watch_body() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                count(True)
            return message

        async def watch_answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(False)
                self._learn(queue, scope["path"], message, tries)
            await send(message)

        try:
            await self._app(scope, watch_body, watch_answer)
        finally:
            count(False)

    def _learn(self, queue: _Queue, path: str, message: Message, tries: bool) -> None:
        headers, now = Headers(raw=list(message["headers"])), self._clock()
        if LIMIT_HEADER in headers:
            queue.limit = int(headers[LIMIT_HEADER])
        queue.tell(now, message["status"], headers.get("retry-after", "1"), tries)
        if message["status"] == 200 and not path.endswith("/runsync"):
            queue.queued(now)

    async def _told(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        answer = refusal(path, FULL)
        answer.headers["retry-after"] = self._queues[dialect_of(path).name].retry_after
        await answer(scope, receive, send)
