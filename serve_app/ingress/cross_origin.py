"""Requests of web pages from other origins (CORS): which may read responses, also those that Serve's proxy makes."""

from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Forbidden
from serve_app.ingress.auth import is_loopback
from serve_app.serving.control_headers import REQUEST_ID_HEADER

_ALLOWED = "access-control-allow-origin"
_EXPOSED = (REQUEST_ID_HEADER, "retry-after")
OTHER_PAGE = Forbidden("Web pages of this origin may not call this route, unless the server's cors_origins names it.")
_MAX_AGE_S = 600


def allow_origins(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Answer the preflights of these origins' pages, which carry no key. Pages send the key in a header, so no cookies
    are allowed."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # The SDKs send many of their own.
        # Chromium asks for it before a public page calls a service in a private network. The operator named the page.
        allow_private_network=True,
        expose_headers=_EXPOSED,
        max_age=_MAX_AGE_S,
    )


def check_origin(headers: Headers, origins: Collection[str]) -> None:
    """Return if a request is not sent by a web page, or by one that may: of `origins`, or of this machine's own
    loopback address. The Host header alone proves nothing, since the name of another site may resolve to this machine.

    Raises:
        Forbidden: a page of another origin has sent it.
    """
    origin = headers.get("origin")
    if origin is None or origin in origins:
        return
    try:
        parts = urlsplit(origin)
        is_own = parts.netloc == headers.get("host") and is_loopback(parts.hostname or "")
    except ValueError:
        is_own = False
    if not is_own:
        raise OTHER_PAGE


def let_read(headers: MutableHeaders, origin: str) -> None:
    """Let this origin's pages read a response that `CORSMiddleware` does not see."""
    headers[_ALLOWED] = origin
    headers["access-control-expose-headers"] = ", ".join(_EXPOSED)
    headers.add_vary_header("Origin")


class CrossOriginResponses:
    """Lets pages read the responses that the proxy itself makes, such as 429. The proxy does not know the settings; it
    learns an allowed origin from the application's responses, of which a page's preflight is the first."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._allowed: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get(_ALLOWED) == origin:
                    self._allowed.add(origin)
                elif origin in self._allowed:
                    let_read(headers, origin)
            await send(message)

        await self._app(scope, receive, send_allowed)
