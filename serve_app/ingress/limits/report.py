"""How the application reports its limits to Serve's proxy, which does not know its settings."""

from dataclasses import asdict, dataclass, replace
from typing import Self

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AppSettings, LimitSettings

LIMITS_HEADER = "x-camera-edit-limits"
"""Holds a `LimitsReport`, in the application's responses to Serve's proxy. The proxy removes it."""

FULL, FULL_FOR_CLIENT = 1, 2

_DEFAULTS = LimitSettings()


@dataclass(frozen=True)
class LimitsReport:
    """What the application reports with each response. The defaults hold until the first one.

    Attributes:
        max_jobs: how many jobs may be unfinished; 0: not known yet.
        max_body_bytes, max_bodies_bytes, max_requests_per_key: as in `LimitSettings`.
        queue_full: whether this response is a 429 because the queue is full: `FULL` for all clients, or
            `FULL_FOR_CLIENT`; otherwise 0.
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
                queue_full = scope["state"].get("queue_full", 0)
                MutableHeaders(scope=message)[LIMITS_HEADER] = str(replace(self._report, queue_full=queue_full))
            await send(message)

        if scope["type"] == "http":
            scope.setdefault("state", {})
        await self._app(scope, receive, send_with_report)
