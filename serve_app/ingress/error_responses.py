"""Error responses in the dialect of the request's path."""

from collections.abc import Callable, Collection

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import KeyPlacesTaken, Overloaded, ServiceError
from serve_app.ingress.backend import RETRY_AFTER_S
from serve_app.ingress.cross_origin import let_read
from serve_app.ingress.dialects import dialect_of, route_template
from serve_app.ingress.limits.report import FULL, FULL_FOR_CLIENT
from serve_app.ingress.parsing.validation import NOT_JSON, echo_name, from_validation, unexpected

_FULL_BY_CODE = {Overloaded.code: FULL, KeyPlacesTaken.code: FULL_FOR_CLIENT}

_MESSAGES = {
    404: "There is no {where} here. Edits go to {edits}; /docs lists what there is.",
    405: "{where} does not exist with this method. Edits go to {edits}; /docs lists what there is.",
    # FastAPI's status for a body that cannot be read.
    400: NOT_JSON,
}


def error_response(path: str, problem: ServiceError) -> JSONResponse:
    """The response for an error, in the dialect of the request's path."""
    return _response(path, problem.status, problem.code, str(problem), problem.field)


def _response(path: str, status: int, code: str, message: str, field: str | None = None) -> JSONResponse:
    field = None if field is None else _encodable(field)
    body = dialect_of(path).error_body(status, code, _encodable(message), field)
    return JSONResponse(body.model_dump(), status, {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {})


def _encodable(text: str) -> str:
    """A lone surrogate, as in a client's field name, has no encoding."""
    return text.encode(errors="backslashreplace").decode()


def add_error_handlers(app: FastAPI, retry_after_s: Callable[[], int], origins: Collection[str]) -> None:
    """Add one handler for each kind of exception.

    Args:
        retry_after_s: the Retry-After of 429.
        origins: whose pages may read what no middleware sees.
    """
    app.state.retry_after_s, app.state.origins = retry_after_s, origins
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


async def _service_error(request: Request, problem: Exception) -> JSONResponse:
    if not isinstance(problem, ServiceError):
        return await _internal_error(request, problem)
    response = error_response(request.url.path, problem)
    if problem.status == 429:
        response.headers["retry-after"] = str(request.app.state.retry_after_s())
        request.state.queue_full = _FULL_BY_CODE.get(problem.code, 0)
    return response


async def _validation_error(request: Request, problem: Exception) -> JSONResponse:
    errors, path = problem.errors() if isinstance(problem, RequestValidationError) else [], request.url.path
    return error_response(path, from_validation(errors, dialect_of(path).request))


async def _http_error(request: Request, problem: Exception) -> JSONResponse:
    if not isinstance(problem, HTTPException):
        return await _internal_error(request, problem)
    if isinstance(problem.__cause__, ServiceError):  # FastAPI wraps what reading the body raised
        return await _service_error(request, problem.__cause__)
    path, status = request.url.path, problem.status_code
    where = f"{echo_name(request.method)} {echo_name(path)}"
    known = _MESSAGES.get(status)
    message = str(problem.detail) if known is None else known.format(where=where, edits=dialect_of(path).edits)
    response = _response(path, status, "invalid_request" if status < 500 else "internal_error", message)
    response.headers.update(problem.headers or {})  # the Allow of 405
    return response


async def _internal_error(request: Request, problem: Exception) -> JSONResponse:
    error = unexpected(problem, f"{request.method} {route_template(request.scope)}")
    response = error_response(request.url.path, error)
    # Starlette calls this handler outside of all middleware, so neither RequestId nor CORSMiddleware sees the response.
    response.headers.update(request.state.response_headers)
    origin = request.headers.get("origin")
    if origin is not None and origin in request.app.state.origins:
        let_read(response.headers, origin)
    return response
