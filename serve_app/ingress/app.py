"""The HTTP application: routes and error shapes. It knows neither Ray nor the models."""

import logging
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app import __version__
from serve_app.errors import ServiceError
from serve_app.ingress.body_limit import BodyLimit
from serve_app.ingress.lenient import LenientRoute
from serve_app.ingress.problems import NOT_JSON, from_validation
from serve_app.ingress.runpod import RunPodEnvelope, RunPodError, RunPodHealth, RunPodRequest
from serve_app.ingress.sync import Backend, RunSync

logger = logging.getLogger(__name__)

P = TypeVar("P")

_ERRORS = {status: {"model": RunPodError} for status in (400, 413, 429, 500, 503)}


def build_app(backend: Backend[P]) -> FastAPI:
    """All routes, for a backend that runs edits."""
    app = FastAPI(
        title="qwen-camera-edit",
        version=__version__,
        description="Edit pictures and move the camera around what is in them.",
        strict_content_type=False,  # a body without a Content-Type is read as JSON
        responses=_ERRORS,  # type: ignore[arg-type]
    )
    app.router.route_class = LenientRoute
    app.add_middleware(BodyLimit, max_body_bytes=backend.settings.limits.max_body_bytes)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    _add_runpod_routes(app, backend)
    return app


def _add_runpod_routes(app: FastAPI, backend: Backend[P]) -> None:
    run_sync = RunSync(backend)

    @app.post("/runsync", response_model_exclude_none=True, tags=["RunPod"])
    async def runsync(request: RunPodRequest) -> RunPodEnvelope:
        """Run a job and answer with its end."""
        return await run_sync(request)

    @app.post("/v2/{endpoint_id}/runsync", response_model_exclude_none=True, tags=["RunPod"])
    async def runsync_by_id(endpoint_id: str, request: RunPodRequest) -> RunPodEnvelope:
        """The same under RunPod's path; any endpoint id is served."""
        return await run_sync(request)

    @app.get("/health", tags=["RunPod"])
    async def health() -> RunPodHealth:
        """Jobs and workers by state."""
        counts = backend.counts
        jobs = {"completed": counts.completed, "failed": counts.failed, "inProgress": counts.in_progress}
        return RunPodHealth(jobs={**jobs, "inQueue": 0, "retried": 0}, workers=await backend.workers())

    @app.get("/v2/{endpoint_id}/health", tags=["RunPod"])
    async def health_by_id(endpoint_id: str) -> RunPodHealth:
        """The same under RunPod's path."""
        return await health()


async def _service_error(request: Request, problem: Exception) -> JSONResponse:
    status = problem.status if isinstance(problem, ServiceError) else 500
    return _error(status, str(problem))


async def _validation_error(request: Request, problem: Exception) -> JSONResponse:
    errors = problem.errors() if isinstance(problem, RequestValidationError) else []
    return await _service_error(request, from_validation(errors, RunPodRequest))


async def _http_error(request: Request, problem: Exception) -> JSONResponse:
    if not isinstance(problem, HTTPException):
        return await _internal_error(request, problem)
    where = f"{request.method} {request.url.path}"
    messages = {
        404: f"There is no {where} here; /docs lists what there is.",
        405: f"{where} does not exist with this method; /docs lists what there is.",
        # What FastAPI says of a body that is not UTF-8 or nested too deeply.
        400: NOT_JSON,
    }
    return _error(problem.status_code, messages.get(problem.status_code, str(problem.detail)))


async def _internal_error(request: Request, problem: Exception) -> JSONResponse:
    logger.error("unexpected error in %s %s", request.method, request.url.path, exc_info=problem)
    return _error(500, "Internal error; the server's log has the reason.")


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(RunPodError(error=message).model_dump(), status_code=status)
