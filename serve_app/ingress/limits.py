"""The size of a body, and how the application reports its limits to Serve's proxy, which does not know its settings."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AppSettings, LimitSettings
from serve_app.errors import BodyTooLarge

LIMITS_HEADER = "x-camera-edit-limits"
"""Holds a `LimitsReport`, in the application's responses to Serve's proxy. The proxy removes it."""

_DEFAULTS = LimitSettings()


def in_chunks(message: Message, num_bytes: int) -> Iterator[Message]:
    """A message with a part of a response's body as messages of at most so many bytes each. uvicorn's `send` waits for
    the client before a message, never within one."""
    body, more_body = message.get("body", b""), message.get("more_body", False)
    for begin in range(0, max(len(body), 1), num_bytes):
        end = begin + num_bytes
        yield {**message, "body": body[begin:end], "more_body": more_body or end < len(body)}


def too_large(max_body_bytes: int) -> BodyTooLarge:
    """The error of a body, as it is sent or decompressed."""
    return BodyTooLarge(f"The body is larger than the {max_body_bytes} bytes that this server takes.")


@dataclass(frozen=True)
class LimitsReport:
    """What the application reports with each response. The defaults hold until the first one.

    Attributes:
        max_jobs: how many jobs may be unfinished; 0: not known yet.
        max_body_bytes, max_bodies_bytes, max_requests_per_key: as in `LimitSettings`.
        queue_full: 1: this response is a 429 because the queue is full.
    """

    max_jobs: int = 0
    max_body_bytes: int = _DEFAULTS.max_body_bytes
    max_bodies_bytes: int = _DEFAULTS.max_bodies_bytes
    max_requests_per_key: int = _DEFAULTS.max_requests_per_key
    queue_full: int = 0

    @classmethod
    def of(cls, settings: AppSettings) -> Self:
        jobs, limits = settings.jobs, settings.limits
        max_jobs = jobs.max_active_jobs + jobs.max_queued_jobs
        return cls(max_jobs, limits.max_body_bytes, limits.max_bodies_bytes, limits.max_requests_per_key)

    @classmethod
    def read(cls, message: Message) -> Self | None:
        """The report in the start of a response; None: it has none."""
        text = Headers(raw=list(message["headers"])).get(LIMITS_HEADER)
        if text is None:
            return None
        return cls(**{name: int(value) for name, _, value in (each.partition("=") for each in text.split(", "))})

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


class ReportLimits:
    """Adds `LIMITS_HEADER` to responses. A handler that answers a full queue sets `queue_full` in the scope's state."""

    def __init__(self, app: ASGIApp, report: LimitsReport) -> None:
        self._app = app
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_report(message: Message) -> None:
            if message["type"] == "http.response.start":
                queue_full = int(scope["state"].get("queue_full", False))
                MutableHeaders(scope=message)[LIMITS_HEADER] = str(replace(self._report, queue_full=queue_full))
            await send(message)

        if scope["type"] == "http":
            scope.setdefault("state", {})
        await self._app(scope, receive, send_with_report)


class BodySize:
    """Counts the bytes of one request's body.

    Attributes:
        announced: its Content-Length; None: it has none.
        received: the bytes that have arrived.
        is_complete: all of it has arrived.
    """

    def __init__(self, scope: Scope, max_body_bytes: int) -> None:
        headers = Headers(scope=scope)
        text = headers.get("content-length", "")
        # 19 digits are more than any limit; Python reads no number of 5,000.
        self.announced = int(text[:19]) if text.isdecimal() else None
        self.received = 0
        self.is_complete = self.announced is None and "transfer-encoding" not in headers
        self._max_body_bytes = max_body_bytes

    @property
    def largest(self) -> int:
        """The most bytes that may arrive."""
        if self.is_complete:
            return self.received
        return self._max_body_bytes if self.announced is None else self.announced

    def check(self) -> None:
        """
        Raises:
            BodyTooLarge: more bytes are announced or have arrived than are allowed.
        """
        if max(self.announced or 0, self.received) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)

    def add(self, message: Message) -> None:
        """Count a message of `receive`.

        Raises:
            BodyTooLarge: more bytes have arrived than are allowed.
        """
        self.received += len(message.get("body", b""))
        self.is_complete = not message.get("more_body", False)
        self.check()


class BodyLimit:
    """Raises BodyTooLarge when more than `max_body_bytes` of a body are announced or received. FastAPI's own
    `max_body_size` answers in plain text, past every exception handler; clients of either dialect need JSON."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = BodySize(scope, self._max_body_bytes)

        async def receive_limited() -> Message:
            size.check()
            message = await receive()
            size.add(message)
            return message

        await self._app(scope, receive_limited, send)
