"""Operator endpoints, hidden from OpenAPI: liveness, readiness and the drain."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve_app.edits.job import JobsPort
from serve_app.ingress.backend import Backend, Draining
from serve_app.serving.cached_call import CachedCall

logger = logging.getLogger(__name__)

LIVE_PATH, READY_PATH = "/health/live", "/health/ready"
DRAIN_PATH, UNDRAIN_PATH = "/drain", "/undrain"

OPEN_PATHS = frozenset({LIVE_PATH, READY_PATH})
"""Paths that need no key."""

OPERATOR_PATHS = frozenset({DRAIN_PATH, UNDRAIN_PATH})
"""The service's own paths for operators only; the dialects' are in their table."""

CHECK_EVERY_S = 1.0
JOBS_TIMEOUT_S = 2.0
EDITOR_TIMEOUT_S = 4.0
"""Longer than `serve_app.serving.handles.fault` waits for the replicas."""

Reason = Literal["draining", "editor", "jobs", "store"]
"""What prevents new work. Clients without a key can read it, so it has no detail; the log has."""


class Live(BaseModel):
    status: str = "live"


class Ready(BaseModel):
    """Whether new work would be accepted and done; `reason` says what prevents it."""

    status: Literal["ready", "not ready"]
    reason: Reason | None = None


class InFlight(BaseModel):
    """Requests without a response, and jobs that are queued, run, or have a webhook that is being notified."""

    requests: int
    jobs: int


def health_router(backend: Backend) -> APIRouter:
    """`/health/live`, `/health/ready`, `/drain` and `/undrain`, at the root only."""
    router = APIRouter(include_in_schema=False)
    readiness = Readiness(backend.draining, backend.editor_fault, backend.jobs)

    @router.api_route(LIVE_PATH, methods=["GET", "HEAD"])
    async def live() -> Live:
        """200 as long as this process answers."""
        return Live()

    @router.api_route(READY_PATH, methods=["GET", "HEAD"])
    async def ready() -> Response:
        """200 if an editor and the jobs accept work, else 503 with the reason."""
        reason = await readiness.reason()
        body = Ready(status="ready" if reason is None else "not ready", reason=reason)
        return JSONResponse(body.model_dump(exclude_none=True), 200 if reason is None else 503)

    @router.post(DRAIN_PATH)
    async def drain() -> InFlight:
        """Reject new work from now on and return what is in flight. A client repeats this until nothing is."""
        return await in_flight(backend.draining.begin() if backend.drain is None else await backend.drain())

    @router.post(UNDRAIN_PATH)
    async def undrain() -> InFlight:
        """Accept new work again."""
        return await in_flight(backend.draining.end() if backend.undrain is None else await backend.undrain())

    async def in_flight(num_requests: int) -> InFlight:
        counts = await backend.jobs.counts()
        return InFlight(requests=num_requests, jobs=counts.in_queue + counts.in_progress + counts.notifying)

    return router


class Readiness:
    """Checks whether new work would be done, at most once in `CHECK_EVERY_S`, and logs each change of the reason.

    Args:
        editor_fault: why no editor would accept work, or None.
        clock: seconds.
    """

    def __init__(
        self,
        draining: Draining,
        editor_fault: Callable[[], Awaitable[str | None]],
        jobs: JobsPort,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._draining = draining
        self._editor_fault = editor_fault
        self._jobs = jobs
        self._check = CachedCall(self._checked, CHECK_EVERY_S, clock)
        self._logged: str | None = None

    async def reason(self) -> Reason | None:
        """Why new work would not be done, or None."""
        return "draining" if self._draining.begun else await self._check()

    async def _checked(self) -> Reason | None:
        editor, (reason, detail) = await asyncio.gather(self._editor_problem(), self._jobs_problem())
        if editor is not None:
            reason, detail = "editor", editor
        if detail != self._logged:
            self._log(detail)
        return reason

    def _log(self, detail: str | None) -> None:
        if detail is None:
            logger.info("ready again")
        else:
            logger.warning("not ready: %s", detail)
        self._logged = detail

    async def _editor_problem(self) -> str | None:
        try:
            async with asyncio.timeout(EDITOR_TIMEOUT_S):
                return await self._editor_fault()
        except TimeoutError:
            return f"the editors could not be checked within {EDITOR_TIMEOUT_S:g} s"
        except Exception as problem:
            return f"the editors cannot be checked: {problem!r}"

    async def _jobs_problem(self) -> tuple[Reason | None, str | None]:
        """The reason, and its detail for the log."""
        try:
            async with asyncio.timeout(JOBS_TIMEOUT_S):
                fault = await self._jobs.fault()
        except TimeoutError:
            return "jobs", f"the Jobs deployment did not answer within {JOBS_TIMEOUT_S:g} s"
        except Exception as problem:
            return "jobs", f"the Jobs deployment cannot be checked: {problem!r}"
        return (None, None) if fault is None else ("store", "the Jobs deployment cannot reach its store")
