"""The table of dialects. A new dialect is a folder beside `openai/`, `runpod/` and `mcp/`, and a row here."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel
from starlette._utils import get_route_path
from starlette.types import Scope

from serve_app.ingress.backend import Backend
from serve_app.ingress.mcp.answers import error_body as mcp_error
from serve_app.ingress.mcp.request import EditImage
from serve_app.ingress.mcp.routes import mcp_router
from serve_app.ingress.openai.answers import error_body as openai_error
from serve_app.ingress.openai.request import OpenAIJson
from serve_app.ingress.openai.routes import openai_router
from serve_app.ingress.runpod.answers import error_body as runpod_error
from serve_app.ingress.runpod.request import RunPodRequest
from serve_app.ingress.runpod.routes import runpod_router

NO_ROUTE = "none"
"""The route of a request that was rejected before routing, or that matches none."""

_NONE = re.compile(r"(?!)")


@dataclass(frozen=True)
class Dialect:
    """Patterns match from the start of a path. Patterns of routes end with `$`, which like Starlette's own also
    matches before a final newline.

    Attributes:
        name: in metrics.
        router: makes the routes, without a prefix.
        prefix: the routes exist at the root and under this prefix.
        edits: where requests for edits go, for the answer to a wrong route.
        paths: all paths of the dialect, known or not.
        work: the routes whose POST requests ask for edits. The drain and admission apply to these only.
        request: the body of a request for edits; its fields are suggested for an unknown one.
        error_body: makes an error's body from its status, code, message and field.
        repeatable: the routes among `work` that read an Idempotency-Key. With one they pass the drain and a full queue.
        operator: the routes for operators only.
        makes_jobs: its work takes places in the queue of jobs.
    """

    name: str
    router: Callable[[Backend], APIRouter]
    prefix: str
    edits: str
    paths: re.Pattern[str]
    work: re.Pattern[str]
    request: type[BaseModel]
    error_body: Callable[[int, str, str, str | None], BaseModel]
    repeatable: re.Pattern[str] = _NONE
    operator: re.Pattern[str] = _NONE
    makes_jobs: bool = False


DIALECTS = (
    Dialect(
        name="openai",
        router=openai_router,
        prefix="/v2/{endpoint_id}/openai",
        edits="POST /v1/images/edits",
        # Also of clients whose base URL lacks /v1, and of Azure's: they learn where edits go.
        paths=re.compile(r"/(v1|images|chat|models|openai)(/|$)|/v2/[^/]+/openai/|.*/openai/v1/", re.DOTALL),
        work=re.compile(r"(/v2/[^/]+/openai)?/v1/images/edits$"),
        request=OpenAIJson,
        error_body=openai_error,
        repeatable=re.compile(r"(/v2/[^/]+/openai)?/v1/images/edits$"),
    ),
    Dialect(
        name="mcp",
        router=mcp_router,
        prefix="/v2/{endpoint_id}",
        edits="POST /mcp, where the setting mcp is on",
        paths=re.compile(r"(/v2/[^/]+)?/mcp(/|$)"),
        work=re.compile(r"(/v2/[^/]+)?/mcp$"),
        request=EditImage,
        error_body=mcp_error,
    ),
    # The last row, since it matches every other path.
    Dialect(
        name="runpod",
        router=runpod_router,
        prefix="/v2/{endpoint_id}",
        edits="POST /runsync or /run",
        paths=re.compile(""),
        work=re.compile(r"(/v2/[^/]+)?/(run|runsync|retry/[^/]+)$"),
        request=RunPodRequest,
        error_body=runpod_error,
        repeatable=re.compile(r"(/v2/[^/]+)?/(run|runsync)$"),
        operator=re.compile(r"(/v2/[^/]+)?/purge-queue$"),
        makes_jobs=True,
    ),
)


def add_routes(app: FastAPI, backend: Backend) -> None:
    """Add every dialect's routes, at the root and under its prefix."""
    for dialect in DIALECTS:
        router = dialect.router(backend)
        app.include_router(router)
        app.include_router(router, prefix=dialect.prefix, dependencies=[Depends(_endpoint_id)])


def _endpoint_id(endpoint_id: str) -> str:
    """Any endpoint id is accepted."""
    return endpoint_id


def route_path(scope: Scope) -> str:
    """The path that Starlette's router compares with the routes: without the application's route prefix, which Serve
    leaves in `path` and repeats in `root_path`."""
    return get_route_path(scope)


def route_template(scope: Scope) -> str:
    """The route as declared, such as `/status/{job_id}`, the same with and without `/v2/{endpoint_id}`. It holds no
    text of the client's, so logs and metrics may show it."""
    template: str = getattr(scope.get("route"), "path", NO_ROUTE)
    return template


def dialect_of(path: str) -> Dialect:
    return next(dialect for dialect in DIALECTS if dialect.paths.match(path))


def is_work(method: str, path: str) -> bool:
    """Whether a request asks for edits; the others read their state or end them."""
    return method == "POST" and any(dialect.work.match(path) for dialect in DIALECTS)


def is_repeatable_work(method: str, path: str) -> bool:
    """Whether a request asks for edits and its Idempotency-Key is read."""
    return is_work(method, path) and any(dialect.repeatable.match(path) for dialect in DIALECTS)


def is_operator_route(path: str) -> bool:
    """Whether only operators may call a dialect's route."""
    return any(dialect.operator.match(path) for dialect in DIALECTS)
