"""The HTTP application: the middleware in its order, and the dialects' routes. It knows neither Ray nor the models."""

from functools import partial

from fastapi import FastAPI

from serve_app import __version__
from serve_app.ingress.backend import Backend
from serve_app.ingress.cross_origin import allow_origins
from serve_app.ingress.dialects import add_routes
from serve_app.ingress.error_responses import add_error_handlers
from serve_app.ingress.health import health_router
from serve_app.ingress.limits.pace import PacedWork
from serve_app.ingress.limits.report import LimitsReport, ReportLimits
from serve_app.ingress.limits.requests import BodyLimit
from serve_app.ingress.limits.responses import ResponseLimits
from serve_app.ingress.limits.transfer import TransferLimits
from serve_app.ingress.middleware import (
    ApiKeys,
    CutTracebacks,
    DrainGate,
    HeadLimits,
    OperatorGate,
    OwnPagesOnly,
    RejectControlHeaders,
    RequestId,
)
from serve_app.ingress.openapi import document
from serve_app.ingress.playground import playground_router


def build_app(backend: Backend) -> FastAPI:
    """The application over a backend that runs edits and jobs."""
    app = FastAPI(
        title="qwen-camera-edit",
        version=__version__,
        description="Edit pictures and move the camera around what is in them.",
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
        strict_content_type=False,  # a body without a Content-Type is read as JSON
    )
    report = LimitsReport.of(backend.settings)
    app.add_middleware(BodyLimit, max_body_bytes=backend.settings.limits.max_body_bytes)
    app.add_middleware(PacedWork, per_s=backend.settings.limits.max_work_per_s_per_key)
    app.add_middleware(ResponseLimits, budget=backend.outgoing)
    app.add_middleware(DrainGate, draining=backend.draining)
    app.add_middleware(RejectControlHeaders)
    app.add_middleware(ApiKeys, keys=backend.api_keys, has_playground=backend.has_playground)
    app.add_middleware(
        OperatorGate,
        operator_keys=backend.operator_keys,
        api_keys=backend.api_keys,
        behind_haproxy=backend.behind_haproxy,
    )
    if backend.api_keys is None:
        app.add_middleware(OwnPagesOnly, origins=backend.settings.cors_origins)
    if backend.behind_haproxy:
        app.add_middleware(TransferLimits, limits=report)
    elif backend.behind_serve:
        app.add_middleware(ReportLimits, report=report)
    app.add_middleware(HeadLimits)
    if backend.settings.cors_origins:
        allow_origins(app, backend.settings.cors_origins)
    app.add_middleware(RequestId, behind_proxy=backend.behind_serve)
    app.add_middleware(CutTracebacks)  # the outermost: the last one added
    add_error_handlers(app, backend.retry_after_s, backend.settings.cors_origins)
    app.include_router(health_router(backend))
    app.include_router(playground_router(backend))
    add_routes(app, backend)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app
