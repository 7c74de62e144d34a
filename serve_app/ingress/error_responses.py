"""Error responses in the dialect of the request's path."""

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import ServiceError
from serve_app.ingress.dialects import dialect_of
from serve_app.ingress.route import route_template
from serve_app.ingress.runpod.request import RunPodRequest
from serve_app.ingress.validation import NOT_JSON, from_validation

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""What a client is told to wait for what is not there right now; where there is no room, the queue tells."""

_HINTS = {
    404: "There is no {where} here; /docs lists what there is.",
    405: "{where} does not exist with this method; /docs lists what there is.",
    # What FastAPI says of a body that is not UTF-8 or nested too deeply.
    400: NOT_JSON,
}


def refuse(path: str, status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    """The answer to a request that is rejected, in the dialect of its path."""
    body = dialect_of(path).error_body(status, code, message, field)
    return JSONResponse(body.model_dump(), status, {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {})


def refusal(path: str, problem: ServiceError) -> JSONResponse:
    """The answer that one of our errors makes."""
    return refuse(path, problem.status, problem.code, str(problem), problem.field)


def unexpected(problem: Exception, where: str) -> ServiceError:
    """What a client is told of an error that is none of ours; the log has the rest."""
    logger.error("unexpected error in %s", where, exc_info=problem)
    return ServiceError("Internal error; the server's log has the reason.")


def add_refusals(app: FastAPI, retry_after_s: Callable[[], int]) -> None:
    """One handler for each kind of exception, for both dialects; `retry_after_s` goes with each 429."""
    app.state.retry_after_s = retry_after_s
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _service_error(request: Request, problem: Exception) -> JSONResponse:
    if not isinstance(problem, ServiceError):
        return await _internal_error(request, problem)
    answer = refusal(request.url.path, problem)
    if problem.status == 429:
        answer.headers["retry-after"] = str(request.app.state.retry_after_s())
    return answer


async def _validation_error(request: Request, problem: Exception) -> JSONResponse:
    errors = problem.errors() if isinstance(problem, RequestValidationError) else []
    return refusal(request.url.path, from_validation(errors, RunPodRequest))


async def _http_error(request: Request, problem: Exception) -> JSONResponse:
    if not isinstance(problem, HTTPException):
        return await _internal_error(request, problem)
    path, status = request.url.path, problem.status_code
    hint = _HINTS.get(status)
    message = str(problem.detail) if hint is None else hint.format(where=f"{request.method} {path}")
    return refuse(path, status, "invalid_request" if status < 500 else "internal_error", message)


async def _internal_error(request: Request, problem: Exception) -> JSONResponse:
    answer = refusal(request.url.path, unexpected(problem, f"{request.method} {route_template(request.scope)}"))
    # Starlette's handler of these stands outside of all middleware, RequestId too.
    answer.headers.update(request.state.answer_headers)
    return answer
