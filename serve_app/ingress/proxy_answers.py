"""Rewrites the plain-text errors of Serve's proxy as this API's JSON.

When the replica that held a request dies, Serve 2.60 answers 500 with the text of its exception, or nothing at all,
and 503 where a deployment is gone (`get_http_response_status` in `ray/serve/_private/http_util.py`). All of it passes;
the request may come again. The application itself answers in JSON, whatever happens to it.
"""

import logging
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded, ServiceError, ServiceUnavailable
from serve_app.ingress.error_responses import refusal

logger = logging.getLogger(__name__)

FULL = Overloaded("Too many requests are waiting already; try again later.")
_GONE = ServiceUnavailable("The replica that had this request is gone; send it again.")
_MEANING: dict[int, ServiceError] = {
    HTTPStatus.TOO_MANY_REQUESTS: FULL,
    HTTPStatus.INTERNAL_SERVER_ERROR: _GONE,
    HTTPStatus.SERVICE_UNAVAILABLE: ServiceUnavailable("No replica can take this request now; try again later."),
}


class ProxyErrorMiddleware:
    """ASGI middleware of the proxy: writes its errors in the dialect of the path, with Retry-After. Serve's own routes
    (`/-/healthz`, `/-/routes`) stay as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        begun = spoken = False

        async def own_words(message: Message) -> None:
            nonlocal begun, spoken
            answer = _translated(scope["path"], message)
            begun, spoken = True, spoken or answer is not None
            if answer is not None:
                await answer(scope, receive, send)
            elif not spoken:
                await send(message)

        try:
            await self._app(scope, receive, own_words)
        except Exception:
            if begun:
                raise
            logger.exception("the proxy failed")
        if not begun:
            await refusal(scope["path"], _GONE)(scope, receive, send)


def _translated(path: str, message: Message) -> JSONResponse | None:
    if message["type"] != "http.response.start" or message["status"] not in _MEANING:
        return None
    headers = Headers(raw=list(message["headers"]))
    if not headers.get("content-type", "").startswith("text/plain"):
        return None
    answer = refusal(path, _MEANING[message["status"]])
    for name in ("retry-after", "x-request-id"):
        if name in headers:
            answer.headers[name] = headers[name]
    return answer
