"""Access to the operator endpoints: drain, undrain and purge-queue."""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import Forbidden, ServiceError, Unauthorized
from serve_app.ingress.auth import OPERATOR_KEYS, Keys, credentials, is_loopback, matching
from serve_app.ingress.drain import DRAIN_PATH, UNDRAIN_PATH
from serve_app.ingress.error_responses import refusal
from serve_app.ingress.route import route_path

# Matched as Starlette matches its routes, whose `$` also admits a newline at the end.
_OPERATOR_PATH = re.compile(rf"^({DRAIN_PATH}|{UNDRAIN_PATH}|(/v2/[^/]+)?/purge-queue)$")
_HOST = re.compile(r"(\[(?P<v6>[^\]]*)\]|(?P<name>[^:]*))(:\d*)?")
# Any of these shows a proxy between the client and this machine's loopback; so does HTTP/1.0, nginx' default.
_FORWARDING_HEADERS = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip")
_FORWARDING_PREFIXES = ("x-forwarded-", "x-envoy-")
_LOOPBACK_PEERS = ("127.0.0.1", "::1", "::ffff:127.0.0.1")  # not 127.0.0.6, which is Istio's proxy

_CROSS_SITE = Forbidden("A web page of another site may not call this endpoint.")
_WRONG_KIND = Forbidden("This endpoint needs an operator key, and this is an API key.")
_NOT_LOCAL = Forbidden(
    f"Without operator keys, this endpoint can be called only from the service's own machine. "
    f"Set {OPERATOR_KEYS.variable} or {OPERATOR_KEYS.file_variable} to call it from elsewhere."
)
_WRONG_KEY = Unauthorized(
    "The operator key is missing or wrong. Send it as `Authorization: Bearer KEY`; "
    f"the service reads operator keys from {OPERATOR_KEYS.variable} or {OPERATOR_KEYS.file_variable}."
)
_UNKNOWN_KEY = Unauthorized("The key is wrong. From the service's own machine, send no key.")


def is_operator_path(path: str) -> bool:
    """Whether a route path belongs to an operator endpoint."""
    return _OPERATOR_PATH.match(path) is not None


class OperatorGate:
    """ASGI middleware: answers 401 or 403 to requests for operator endpoints that do not come from an operator.

    Cross-site browser requests and API keys are always rejected. With operator keys, a request needs one of them;
    without, it must come from this machine directly. An admitted request has `is_operator` in its scope's state.

    Args:
        operator_keys: None: none are configured.
        api_keys: the customers' keys; None: none are configured.
        behind_haproxy: the peer is HAProxy, so its address says nothing about the client.
    """

    def __init__(
        self, app: ASGIApp, operator_keys: Keys | None, api_keys: Keys | None, behind_haproxy: bool = False
    ) -> None:
        self._app = app
        self._operator_keys = operator_keys
        self._api_keys = api_keys
        self._behind_haproxy = behind_haproxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_operator_path(route_path(scope)):
            problem = self._problem(scope)
            if problem is not None:
                await refusal(scope["path"], problem)(scope, receive, send)
                return
            scope.setdefault("state", {})["is_operator"] = True
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        given = credentials(headers)
        if _is_cross_site(headers):
            return _CROSS_SITE
        # First, since a key may have been configured as both.
        if matching(self._api_keys, given) is not None:
            return _WRONG_KIND
        if self._operator_keys is not None:
            return None if matching(self._operator_keys, given) is not None else _WRONG_KEY
        if self._behind_haproxy or not _is_local(scope, headers):
            return _NOT_LOCAL
        return _UNKNOWN_KEY if given and self._api_keys is not None else None


def _is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent this for a page of another origin."""
    sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
    host = headers.get("host", "").lower()
    return not sites <= {"same-origin", "none"} or any(_authority(each) != host for each in headers.getlist("origin"))


def _authority(origin: str) -> str | None:
    """`host[:port]` of an origin; None: it has none, as the origin `null`."""
    try:
        return urlsplit(origin.strip().lower()).netloc or None
    except ValueError:
        return None


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Whether the client runs on this machine, as far as can be seen. The Host header excludes pages whose name
    resolves to this machine, and a forwarding header excludes clients of a proxy here. Serve's proxy passes the
    peer's address on in `client`; uvicorn replaces it by `x-forwarded-for` where the peer is loopback."""
    peer, hosts = scope.get("client"), headers.getlist("host")
    is_forwarded = scope.get("http_version") == "1.0" or any(
        name in _FORWARDING_HEADERS or name.startswith(_FORWARDING_PREFIXES) for name in headers
    )
    is_peer_local = peer is not None and peer[0] in _LOOPBACK_PEERS
    return is_peer_local and not is_forwarded and len(hosts) == 1 and _names_loopback(hosts[0])


def _names_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host.strip().lower())
    return match is not None and is_loopback(match["v6"] or match["name"] or "")
