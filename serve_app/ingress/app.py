"""The HTTP application: both dialects' routes. It knows neither Ray nor the models."""

from functools import partial

from fastapi import Depends, FastAPI

from serve_app import __version__
from serve_app.ingress.auth import ApiKeys
from serve_app.ingress.backend import Backend
from serve_app.ingress.body_limit import BodyLimit
from serve_app.ingress.drain import DrainGate
from serve_app.ingress.error_responses import add_refusals
from serve_app.ingress.health import health_router
from serve_app.ingress.middleware import RequestId
from serve_app.ingress.openai.routes import openai_router
from serve_app.ingress.openapi import document
from serve_app.ingress.operator_gate import OperatorGate
from serve_app.ingress.proxy_gate import QueueLimitHeader
from serve_app.ingress.runpod.routes import runpod_router
from serve_app.ingress.steering import RejectControlHeaders


def build_app(backend: Backend) -> FastAPI:
    """All routes, for a backend that runs edits and jobs."""
    app = FastAPI(
        title="qwen-camera-edit",
        version=__version__,
        description="Edit pictures and move the camera around what is in them.",
        strict_content_type=False,  # a body without a Content-Type is read as JSON
    )
    jobs = backend.settings.jobs
    app.add_middleware(QueueLimitHeader, limit=jobs.max_active_jobs + jobs.max_queued_jobs)
    app.add_middleware(BodyLimit, max_body_bytes=backend.settings.limits.max_body_bytes)
    app.add_middleware(DrainGate, draining=backend.draining)
    app.add_middleware(RejectControlHeaders)
    app.add_middleware(ApiKeys, keys=backend.api_keys)
    app.add_middleware(
        OperatorGate,
        operator_keys=backend.operator_keys,
        api_keys=backend.api_keys,
        behind_haproxy=backend.behind_haproxy,
    )
    app.add_middleware(RequestId, proxy_answers=backend.behind_serve)  # the outermost: the last one added
    add_refusals(app, backend.retry_after_s)
    runpod, openai = runpod_router(backend), openai_router(backend)
    by_id = [Depends(_endpoint_id)]
    app.include_router(health_router(backend))
    app.include_router(runpod)
    app.include_router(runpod, prefix="/v2/{endpoint_id}", dependencies=by_id)
    app.include_router(openai)
    app.include_router(openai, prefix="/v2/{endpoint_id}/openai", dependencies=by_id)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app


def _endpoint_id(endpoint_id: str) -> str:
    """Any endpoint id is served."""
    return endpoint_id
