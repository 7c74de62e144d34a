"""Liveness, readiness and the drain, hidden from OpenAPI."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve_app.ingress.backend import Backend
from serve_app.ingress.drain import DRAIN_PATH, UNDRAIN_PATH
from serve_app.ingress.readiness import Readiness, Reason


class Live(BaseModel):
    status: str = "live"


class Ready(BaseModel):
    """Whether new work would be accepted and done; `reason` says what prevents it."""

    status: Literal["ready", "not ready"]
    reason: Reason | None = None


class InFlight(BaseModel):
    """Requests that are being answered, and jobs that are queued or run."""

    requests: int
    jobs: int


def health_router(backend: Backend) -> APIRouter:
    """`/health/live`, `/health/ready`, `/drain` and `/undrain`, at the root only."""
    router = APIRouter(include_in_schema=False)
    readiness = Readiness(backend.draining, backend.editor_fault, backend.jobs)

    @router.get("/health/live")
    async def live() -> Live:
        """200 as long as this process answers."""
        return Live()

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 if an editor and the jobs can take work, else 503 with the reason."""
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
        return InFlight(requests=num_requests, jobs=counts.in_queue + counts.in_progress)

    return router
