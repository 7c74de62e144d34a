"""Health for whoever routes requests here, and the drain. These doors are the operator's: the document of the API does
not show them."""

from typing import TypeVar

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from serve_app.ingress.backend import Backend
from serve_app.ingress.drain import DRAIN_PATH

P = TypeVar("P")


class Live(BaseModel):
    status: str = "live"


class Ready(BaseModel):
    """Whether new work would be taken and done; `reason` says why not."""

    status: str
    reason: str | None = None


class InFlight(BaseModel):
    """Requests that are being answered, and jobs that wait or run."""

    requests: int
    jobs: int


def health_router(backend: Backend[P]) -> APIRouter:
    """`/health/live`, `/health/ready` and `/drain`, at the root alone."""
    router = APIRouter(include_in_schema=False)

    @router.get("/health/live")
    async def live() -> Live:
        """200 as long as this process answers; the one route that asks for no key."""
        return Live()

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 where an editor is up and well; else 503 with the reason."""
        reason = "draining" if backend.draining.begun else await backend.editor_fault()
        told = Ready(status="ready" if reason is None else "not ready", reason=reason)
        return JSONResponse(told.model_dump(exclude_none=True), 200 if reason is None else 503)

    @router.post(DRAIN_PATH)
    async def drain() -> InFlight:
        """Take no new work from now on, and tell what is in flight. To be asked until that is nothing; only a restart
        takes it back."""
        num_requests = backend.draining.begin() if backend.drain is None else await backend.drain()
        counts = await backend.jobs.counts()
        return InFlight(requests=num_requests, jobs=counts.in_queue + counts.in_progress)

    return router
