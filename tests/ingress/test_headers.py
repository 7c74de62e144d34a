"""The head of a request: what Serve would read of it, its limits, and WebSocket handshakes."""

import ast
import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.serve
import uvicorn
from ray.serve._private import constants
from ray.serve._private.proxy import HTTPProxy
from ray.serve._private.proxy_request_response import ASGIProxyRequest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.ingress import proxy
from serve_app.ingress.middleware import MAX_HEADER_BYTES, MAX_HEADERS, MAX_HEADERS_BYTES, MAX_URL_BYTES
from serve_app.ingress.proxy import ProxyGate, StripControlHeaders
from serve_app.serving.control_headers import (
    CONTROL_HEADERS,
    CONTROL_PREFIX,
    DISCONNECT_HEADER,
    MODEL_HEADER,
    REQUEST_ID_HEADER,
    SESSION_VARIABLE,
    session_header,
)
from serve_app.serving.http_server import configure_http_servers
from tests.ingress.openai_harness import harness

SERVE = Path(ray.serve.__file__).parent
PATHS = ("/runsync", "/v1/images/edits")
NODE = ("127.0.0.1", 1)


class NoMetrics:
    """In place of Ray's metrics."""

    def ended(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def without_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "RequestMetrics", NoMetrics)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the body."""
    while (await receive()).get("more_body"):
        pass
    await PlainTextResponse("ok")(scope, receive, send)


def control_names() -> set[str]:
    return {*CONTROL_HEADERS, session_header(), f"{CONTROL_PREFIX}x", REQUEST_ID_HEADER}


# What Serve reads.


def functions_about_headers() -> Iterator[ast.AST]:
    for name in ("proxy.py", "replica.py", "http_util.py", "proxy_request_response.py"):
        for node in ast.walk(ast.parse((SERVE / "_private" / name).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                words = {getattr(each, "id", getattr(each, "attr", "")) for each in ast.walk(node)}
                if "headers" in words:
                    yield node


def compared(node: ast.AST) -> Iterator[ast.expr]:
    """What a function compares something with, or looks up."""
    for each in ast.walk(node):
        if isinstance(each, ast.Compare):
            yield from each.comparators
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr.startswith("get"):
            yield from each.args[:1]


def test_every_header_that_rays_constants_name_is_one_of_ours() -> None:
    named = {
        value.lower().replace("_", "-")
        for name, value in vars(constants).items()
        if re.search(r"HEADER|MULTIPLEXED_MODEL_ID$|SESSION_ID$", name) and isinstance(value, str)
    }
    named -= {"request-headers"}  # a field of a JSON document
    assert REQUEST_ID_HEADER in named
    assert named == {
        MODEL_HEADER,
        "x-session-id",
        REQUEST_ID_HEADER,
        CONTROL_PREFIX,
        "x-request-timeout-seconds",
        DISCONNECT_HEADER,
    }


def test_every_header_that_rays_source_names_is_one_of_ours() -> None:
    texts = [path.read_text(errors="replace") for path in SERVE.rglob("*") if path.suffix in (".py", ".tmpl")]
    named = {name.lower() for text in texts for name in re.findall(r"(?i)\bx-[a-z]+(?:-[a-z]+)*-?", text)}
    # A response's, an example for SESSION_VARIABLE, and a word of a comment.
    assert named - {"x-serve-reason", "x-correlation-id", "x-style"} <= control_names() | {CONTROL_PREFIX}
    assert MODEL_HEADER not in named


def test_ray_reads_no_header_by_another_name() -> None:
    """Names that Ray has no constant for stand as literals where it reads headers."""
    literals = {
        each.value
        for function in functions_about_headers()
        for expression in compared(function)
        for each in ast.walk(expression)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }
    asgi = {each for each in literals if each.startswith(("http.", "websocket", "/"))}
    scope = {"headers", "client", "method", "path", "root_path", "more_body", "trailers", "more_trailers"}
    assert literals - asgi - scope - {"utf-8", "?1", "1000", "1001"} == {"traceparent", "tracestate"}
    assert {"traceparent", "tracestate"} <= CONTROL_HEADERS


# What passes on to Serve.


def kept(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    for kind in ("http", "websocket"):
        middleware: Any = StripControlHeaders(app)
        asyncio.run(middleware({"type": kind, "headers": list(headers)}, None, None))
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    return seen[: len(seen) // 2]


def spellings(name: str) -> set[bytes]:
    spelt = {name, name.replace("-", "_"), name.replace("-", "_", 1)}
    return {each.encode() for text in spelt for each in (text, text.upper(), text.title())}


@pytest.mark.parametrize("name", sorted(control_names()))
def test_no_spelling_of_a_control_header_passes(name: str) -> None:
    for spelling in spellings(name):
        for value in (b"?0", b"a value", b"\xff", b"x" * 2000):
            assert kept((b"accept", b"*/*"), (spelling, value)) == [(b"accept", b"*/*")], spelling


def test_a_well_formed_request_id_passes() -> None:
    assert kept((b"x-request-id", b"mine-1")) == [(b"x-request-id", b"mine-1")]


def test_the_session_header_has_the_operators_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_header() == constants.SERVE_SESSION_ID
    monkeypatch.setenv(SESSION_VARIABLE, "X_My_Session")
    assert kept((b"x-my-session", b"a"), (b"x-session-id", b"a")) == [(b"x-session-id", b"a")]


def test_names_that_are_not_ascii_never_reach_ray() -> None:
    assert kept((b"x-\xff", b"a"), ("x-\u017fession-id".encode(), b"a"), (b"x-ok", b"\xff")) == [(b"x-ok", b"\xff")]


def test_nothing_of_a_client_chooses_rays_handle() -> None:
    """Ray's own code after our middleware: it decodes every name, and fails on values that are not UTF-8."""

    def options(**options: object) -> None:
        raise AssertionError(options)

    handle: Any = SimpleNamespace(options=options)
    sent = [(spelling, b"\xff") for name in control_names() for spelling in spellings(name)] + [(b"\xff", b"a")]
    scope = {"type": "http", "client": NODE, "headers": [*kept(*sent), (b"x-request-id", b"mine")]}
    same, request_id = HTTPProxy.setup_request_context_and_handle(
        None,  # type: ignore[arg-type]
        app_name="app",
        handle=handle,
        route="/",
        proxy_request=ASGIProxyRequest(scope, None, None),  # type: ignore[arg-type]
        internal_request_id="internal",
    )
    assert same is handle
    assert request_id == "mine"


@pytest.mark.parametrize("name", sorted(spellings(MODEL_HEADER)))
def test_without_the_proxy_a_model_header_is_rejected(tiny_settings: AppSettings, name: bytes) -> None:
    response = harness(tiny_settings).client.get("/health", headers={name.decode(): "x"})
    assert response.status_code == 400
    assert response.json() == {"error": f"The header {MODEL_HEADER} must not be set by clients; leave it out."}


# Limits.


def behind_proxy(app: ASGIApp) -> TestClient:
    return TestClient(ProxyGate(app), client=NODE)


@pytest.fixture(params=["proxy", "app"])
def client(request: pytest.FixtureRequest, tiny_settings: AppSettings) -> TestClient:
    """Of our middleware in Serve's proxy, and of the application without it."""
    return behind_proxy(answer) if request.param == "proxy" else harness(tiny_settings).client


def sized(total: int, each: int = MAX_HEADER_BYTES, of: int = 0) -> dict[str, str]:
    """Headers of `total` bytes, without those `of` bytes that are there already."""
    headers: dict[str, str] = {}
    left = total - of
    while left > 0:
        size = min(each, left)
        name = f"x-{len(headers):04d}"[:size]
        headers[name] = "v" * (size - len(name))
        left -= size
    return headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("what", ["one", "all", "number"])
def test_both_sides_of_each_limit(client: TestClient, path: str, what: str) -> None:
    # What the client adds by itself, such as its user agent.
    request = client.build_request("GET", path)
    own = sum(len(name) + len(value) for name, value in request.headers.raw)
    pad = "v" * (MAX_HEADER_BYTES - len("x-big"))
    fitting, excess = {
        "one": ({"x-big": pad}, {"x-big": pad + "v"}),
        "all": (sized(MAX_HEADERS_BYTES, of=own), sized(MAX_HEADERS_BYTES + 10, of=own)),
        "number": (
            {f"x-{index}": "v" for index in range(MAX_HEADERS - len(request.headers.raw))},
            {f"x-{index}": "v" for index in range(MAX_HEADERS - len(request.headers.raw) + 1)},
        ),
    }[what]
    assert client.get(path, headers=fitting).status_code in (200, 404, 405)
    refused = client.get(path, headers=excess)
    assert refused.status_code == 431
    error = refused.json()["error"]
    if path.startswith("/v1"):
        assert error["code"] == "headers_too_large"
    assert "Leave some out" in (error["message"] if path.startswith("/v1") else error)
    assert refused.headers["x-request-id"]
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/nope/", "/v1/models/", "/health?a=", "/nope/%C3%A9"])
def test_a_url_has_a_limit(client: TestClient, path: str) -> None:
    room = MAX_URL_BYTES - len(path) + path.count("?")
    assert client.get(path + "x" * room).status_code in (200, 404)
    refused = client.get(path + "x" * (room + 1))
    assert refused.status_code == 414
    assert "in the body" in refused.text
    assert len(refused.content) < 400


def test_a_path_that_does_not_exist_is_quoted_in_part(tiny_settings: AppSettings) -> None:
    response = harness(tiny_settings).client.get("/v1/" + "x" * 5000)
    assert response.status_code == 404
    assert len(response.content) < 500


def test_a_content_length_of_many_digits_is_a_413(tiny_settings: AppSettings) -> None:
    response = harness(tiny_settings).client.post("/runsync", content=b"{}", headers={"content-length": "1" * 5000})
    assert response.status_code == 413


# Serve's own routes.


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes", "/-/anything"])
def test_serves_own_routes_answer_only_on_the_node(path: str) -> None:
    local = TestClient(ProxyGate(answer), client=NODE, base_url="http://localhost:8000")
    assert local.get(path).text == "ok"
    for headers in ({"x-forwarded-for": "127.0.0.1"}, {"host": "evil.example"}):
        assert local.get(path, headers=headers).status_code == 403
    remote = TestClient(ProxyGate(answer), client=("10.0.0.9", 1), base_url="http://localhost:8000")
    for method in ("GET", "HEAD", "POST"):
        assert remote.request(method, path).status_code == 403
    assert "/health/ready" in remote.get(path).json()["error"]
    assert TestClient(ProxyGate(answer), client=("10.0.0.9", 1)).get("/health/ready").text == "ok"


def test_serves_own_routes_stay_closed_under_a_root_path() -> None:
    remote = TestClient(ProxyGate(answer), client=("10.0.0.9", 1), root_path="/under")
    assert remote.get("/under/-/routes").status_code == 403


def test_haproxys_probes_of_the_replicas_are_answered() -> None:
    remote = TestClient(ProxyGate(answer, behind_haproxy=True), client=("10.0.0.9", 1))
    assert remote.get("/-/healthz").text == "ok"


# WebSocket handshakes.


async def exchange(app: ASGIApp, request: bytes) -> bytes:
    """What uvicorn answers until it closes the connection."""

    async def send_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(request)
        return await reader.read()

    return await serving(app, send_at_once)


Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def serving(app: ASGIApp, client: Client) -> bytes:
    """What a client of uvicorn returns, which it must within five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            return await asyncio.wait_for(client(reader, writer), 5)
        finally:
            writer.close()
            server.should_exit = True
            await running


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server as in the processes of the service; put back afterwards."""
    keep_server_settings(monkeypatch)
    configure_http_servers()


def keep_server_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo at the end of the test what it changes."""
    monkeypatch.setitem(uvicorn.config.WS_PROTOCOLS, "auto", uvicorn.config.WS_PROTOCOLS["auto"])
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])


def handshake(method: str, body: bytes = b"") -> bytes:
    return (
        f"{method} /runsync HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "OPTIONS"])
@pytest.mark.parametrize("body", [b"", b'{"input": {}}'])
@pytest.mark.usefixtures("configured")
def test_a_websocket_handshake_gets_an_answer(method: str, body: bytes) -> None:
    answered = asyncio.run(exchange(ProxyGate(answer), handshake(method, body)))
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert b"has no WebSocket" in answered


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body."""
    body = await Request(scope, receive).body()
    await Response(body)(scope, receive, send)


# curl --http2, Java's HttpClient and Netty's HttpClientUpgradeHandler offer h2c with a request.
OFFERS = {
    "curl": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "Netty": "upgrade: h2c\r\nHTTP2-Settings: AAEAABAAAAIAAAABAAN_____\r\nconnection: HTTP2-Settings,upgrade\r\n",
    "TLS": "Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1\r\n",
}
BODIES = {
    "of a known length": b'Content-Length: 7\r\n\r\n{"a":1}',
    "in chunks": b'Transfer-Encoding: chunked\r\n\r\n2\r\n{"\r\n5\r\na":1}\r\n0\r\n\r\n',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.usefixtures("configured")
def test_the_offer_of_another_protocol_is_ignored(offer: str, body: bytes) -> None:
    request = f"POST /runsync HTTP/1.1\r\nHost: a\r\n{offer}".encode() + body
    next_one = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answered = asyncio.run(exchange(ProxyGate(mirror), request + next_one))
    assert answered.count(b"HTTP/1.1 200 ") == 2
    assert b'{"a":1}' in answered


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.usefixtures("configured")
def test_a_client_that_offers_another_protocol_and_waits_is_told_to_continue(offer: str) -> None:
    """curl above 1 MiB, and Java's `expectContinue(true)`, send the body after `100 Continue`."""

    async def send_after_100(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        head = f"POST /runsync HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{offer}Content-Length: 7\r\n"
        writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b'{"a":1}')
        return await reader.read()

    answered = asyncio.run(serving(ProxyGate(mirror), send_after_100))
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert answered.endswith(b'{"a":1}')


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.usefixtures("configured")
def test_such_an_offer_without_a_body_is_ignored(offer: str) -> None:
    """Apache's HttpClient offers TLS with GET, HEAD and OPTIONS."""
    for method in ("GET", "HEAD", "OPTIONS"):
        request = f"{method} /status/x HTTP/1.1\r\nHost: a\r\n{offer}\r\n".encode()
        next_one = b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        assert asyncio.run(exchange(ProxyGate(mirror), request + next_one)).count(b"HTTP/1.1 200 ") == 2


@pytest.mark.usefixtures("configured")
def test_large_headers_that_arrive_in_pieces_get_the_middlewares_answer() -> None:
    filler = "".join(f"X-{number}: {'a' * 1000}\r\n" for number in range(60))
    request = f"GET /runsync HTTP/1.1\r\nHost: a\r\n{filler}\r\n".encode()
    assert asyncio.run(exchange(ProxyGate(answer), request)).startswith(b"HTTP/1.1 431 ")


def test_the_shipped_middleware_disables_websockets(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_server_settings(monkeypatch)
    app: Any = answer
    for each in proxy.middlewares():
        middleware: Any = each
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    config = uvicorn.Config(app)
    config.load()
    assert config.ws_protocol_class is None
    assert TestClient(app, client=NODE).get("/runsync").text == "ok"
