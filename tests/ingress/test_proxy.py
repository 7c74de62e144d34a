"""The middleware of Serve's proxy: stripped headers, rejections while the queue is full, rewritten errors."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
import yaml
from ray._common.utils import import_attr
from ray.exceptions import RayActorError
from ray.serve._private.http_util import (
    convert_object_to_asgi_messages,
    get_http_response_status,
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    retry_after_headers,
    validate_http_proxy_callback_return,
)
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress import proxy
from serve_app.ingress.limits.report import FULL, FULL_FOR_CLIENT, LIMITS_HEADER, LimitsReport, ReportLimits
from serve_app.ingress.proxy import FULL_S, ProxyErrorMiddleware, QueueFullMiddleware
from serve_app.serving.control_headers import DISCONNECT_HEADER, TIMEOUT_HEADER
from tests.conftest import ROOT

RUN, EDITS = "/v2/mine/run", "/v1/images/edits"


@dataclass
class Counted:
    """In place of Ray's metrics."""

    ended_with: list[tuple[str, int]] = field(default_factory=list)

    def ended(self, dialect: str, route: str, key: str, status: int, seconds: float) -> None:
        self.ended_with.append((dialect, status))


@dataclass
class Behind:
    """An application that responds with the next of these statuses once `may_answer` is set, and a clock."""

    counted: Counted
    now: float = 100.0
    statuses: list[int] = field(default_factory=list)
    reported: int = FULL
    paths: list[str] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    app: Starlette = field(init=False)

    def __post_init__(self) -> None:
        async def answer(request: Request) -> JSONResponse:
            self.paths.append(request.url.path)
            await request.body()
            await self.may_answer.wait()
            status = self.statuses.pop(0)
            request.state.queue_full = self.reported if status == 429 else 0
            return JSONResponse({"from": "app"}, status, {"retry-after": "42"})

        app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
        self.may_answer.set()
        self.app = app
        self.client = TestClient(self.gate(limit=1000))

    def gate(self, limit: int) -> QueueFullMiddleware:
        """In front of an application whose queue has so many places."""
        return QueueFullMiddleware(ReportLimits(self.app, LimitsReport(max_jobs=limit)), clock=lambda: self.now)

    def clients(self, limit: int) -> httpx2.AsyncClient:
        """Of another gate, for requests at the same time."""
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.gate(limit)), base_url="http://gate")

    async def arrive(self, count: int) -> None:
        """Wait until so many requests have arrived."""
        while len(self.paths) < count:
            await asyncio.sleep(0)


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Behind:
    counted = Counted()
    monkeypatch.setattr(proxy, "RequestMetrics", lambda: counted)
    return Behind(counted)


def test_after_a_429_the_next_ones_are_told_the_same_without_the_application(behind: Behind) -> None:
    behind.statuses = [429, 200]
    assert behind.client.post(RUN).json() == {"from": "app"}
    refused = behind.client.post("/runsync", headers={"x-request-id": "mine"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "42")
    assert refused.headers["x-request-id"] == "mine"
    assert "try again later" in refused.json()["error"]
    assert behind.client.post(RUN).headers["x-request-id"].startswith("req-")
    assert behind.paths == [RUN]
    assert behind.counted.ended_with == [("runpod", 429)] * 2
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200


def test_a_queue_that_was_full_long_ago_is_not(behind: Behind) -> None:
    behind.statuses = [429, 200, 200]
    behind.client.post(RUN)
    behind.now += 2 * FULL_S
    assert [behind.client.post(RUN).status_code for _ in range(2)] == [200, 200]


def test_a_request_from_before_the_queue_was_full_does_not_open_it(behind: Behind) -> None:
    async def ask() -> list[int]:
        async with behind.clients(limit=1000) as client:
            behind.may_answer.clear()
            early = [asyncio.create_task(client.post(RUN)) for _ in range(2)]
            await behind.arrive(2)
            behind.statuses = [429, 200, 200]
            behind.may_answer.set()
            return [(await each).status_code for each in early] + [(await client.post(RUN)).status_code]

    assert asyncio.run(ask()) == [429, 200, 429]


def test_no_more_are_let_in_at_once_than_the_queue_has_places(behind: Behind) -> None:
    """Three places, as in the first response. A request without a response takes a place."""
    behind.statuses = [200] * 9

    async def ask() -> None:
        async with behind.clients(limit=3) as client:
            assert "max_jobs=3," in (await client.post("/runsync")).headers[LIMITS_HEADER]
            behind.may_answer.clear()
            taken = [asyncio.create_task(client.post(path)) for path in (RUN, "/runsync", RUN)]
            await behind.arrive(4)
            refused = await client.post(RUN)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            behind.may_answer.set()
            assert [(await each).status_code for each in taken] == [200] * 3
            assert (await client.post("/runsync")).status_code == 200

    asyncio.run(ask())


def test_a_store_that_is_full_for_one_client_is_no_full_queue(behind: Behind) -> None:
    behind.statuses, behind.reported = [429, 200], 0
    assert [behind.client.post(RUN).status_code for _ in range(2)] == [429, 200]


def test_a_job_of_openais_dialect_that_found_no_place_closes_no_other_queue(behind: Behind) -> None:
    """There, work without an Idempotency-Key waits in another queue."""
    behind.statuses = [429, 200, 429]
    statuses = [behind.client.post(EDITS, headers=headers).status_code for headers in ({"idempotency-key": "1"}, {})]
    assert statuses == [429, 200]
    assert [behind.client.post(EDITS).json().get("from") for _ in range(2)] == ["app", None]


def test_a_client_whose_places_are_taken_is_refused_alone(behind: Behind) -> None:
    behind.statuses, behind.reported = [429, 200, 200, 200], FULL_FOR_CLIENT
    mine, other = {"authorization": "Bearer mine"}, {"authorization": "Bearer other"}
    assert behind.client.post(RUN, headers=mine).json() == {"from": "app"}
    refused = behind.client.post(RUN, headers=mine)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "42")
    assert "This API key's places" in refused.json()["error"]
    assert behind.client.post(RUN, headers=other).status_code == 200
    assert behind.client.post(RUN, headers={**mine, "idempotency-key": "1"}).status_code == 200
    behind.now += FULL_S
    assert behind.client.post(RUN, headers=mine).status_code == 200


def test_a_body_that_dawdles_takes_no_place(behind: Behind) -> None:
    behind.statuses = [200] * 3

    async def ask() -> list[int]:
        async with behind.clients(limit=1) as client:
            go_on = asyncio.Event()

            async def body() -> AsyncIterator[bytes]:
                yield b"{"
                await go_on.wait()
                yield b"}"

            await client.post("/runsync")
            slow = asyncio.create_task(client.post("/runsync", content=body()))
            await asyncio.sleep(0.05)
            quick = await client.post("/runsync")
            go_on.set()
            return [quick.status_code, (await slow).status_code]

    assert asyncio.run(ask()) == [200, 200]


@pytest.mark.parametrize("status", [200, 401, 422, 503])
def test_no_other_answer_closes_it(behind: Behind, status: int) -> None:
    behind.statuses = [status, 200]
    behind.client.post(RUN)
    assert behind.client.post(RUN).status_code == 200


def test_each_dialect_has_its_own_queue(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 429]
    behind.client.post(RUN)
    assert behind.client.post(EDITS).status_code == 200
    behind.now += FULL_S
    assert behind.client.post(RUN).status_code == 200
    behind.client.post(EDITS)
    refused = behind.client.post(EDITS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert behind.counted.ended_with == [("openai", 429)]


def test_what_is_no_new_work_passes(behind: Behind) -> None:
    behind.statuses = [429, 200, 200, 200]
    behind.client.post(RUN)
    assert behind.client.get("/v2/mine/status/1").status_code == 200
    assert behind.client.post("/v2/mine/cancel/1").status_code == 200
    assert behind.client.post(RUN, headers={"Idempotency-Key": "k"}).status_code == 200


SECRET = "Traceback: /home/ray/secret.py"


def serves(status: int, headers: Any = None) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(SECRET, status, headers):
            await send(message)

    return app


def test_the_death_of_a_replica_is_a_500_of_serve() -> None:
    assert get_http_response_status(RayActorError(), None, "id").code == 500
    refused = get_http_response_status(BackPressureError(1, 2, status_code=429, retry_after_s=7), None, "id")
    assert (refused.code, refused.headers) == (429, retry_after_headers(7))


@pytest.mark.parametrize(("status", "replaced"), [(500, 503), (503, 503), (429, 429)])
@pytest.mark.parametrize("path", ["/runsync", "/v1/images/edits"])
def test_its_refusals_are_told_in_the_dialect(path: str, status: int, replaced: int) -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(status, [(b"x-request-id", b"mine")]))).post(path)
    assert answer.status_code == replaced
    assert int(answer.headers["retry-after"]) == 5
    assert answer.headers["x-request-id"] == "mine"
    assert SECRET not in answer.text
    error = answer.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert "again" in message


def test_its_own_retry_after_stays() -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(429, retry_after_headers(7)))).post("/runsync")
    assert answer.headers["retry-after"] == "7"


def test_its_404_means_try_again_until_the_application_has_answered() -> None:
    apps: list[ASGIApp] = [serves(404), JSONResponse({"id": "x"}), serves(404)]
    answers = iter(apps)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await next(answers)(scope, receive, send)

    client = TestClient(ProxyErrorMiddleware(app))
    before = client.post("/runsync")
    assert (before.status_code, before.headers["retry-after"]) == (503, "5")
    assert "starting" in before.json()["error"]
    assert client.post("/runsync").status_code == 200
    later = client.post("/elsewhere")
    assert (later.status_code, later.text) == (404, SECRET)


def test_other_answers_of_serve_pass() -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(200))).get("/runsync")
    assert (answer.status_code, answer.text) == (200, SECRET)


def test_its_health_route_speaks_for_itself() -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(503))).get("/-/healthz")
    assert (answer.status_code, answer.text) == (503, SECRET)


@pytest.mark.parametrize(
    "answer", [JSONResponse({"error": "x"}, 500), JSONResponse({"error": "x"}, 503), PlainTextResponse("x")]
)
def test_what_the_application_answers_passes(answer: Response) -> None:
    app = Starlette(routes=[Route("/runsync", lambda _: answer)])
    passed = TestClient(ProxyErrorMiddleware(app)).get("/runsync")
    assert (passed.status_code, passed.text) == (answer.status_code, bytes(answer.body).decode())
    assert "retry-after" not in passed.headers


@pytest.mark.parametrize("fails", [True, False])
def test_no_answer_at_all_is_one(fails: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if fails:
            raise RuntimeError(SECRET)

    answer = TestClient(ProxyErrorMiddleware(app)).post("/runsync")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.headers["x-request-id"].startswith("req-")
    assert SECRET not in answer.text


def test_what_breaks_off_stays_broken() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError):
        TestClient(ProxyErrorMiddleware(app)).post("/runsync")


CONFIGS = [ROOT / "serve_config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_tells_serve_to_drop_them(path: Any) -> None:
    options = yaml.safe_load(path.read_text())["controller_options"]
    named = options["runtime_env"]["env_vars"]["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    middleware, *_ = validate_http_proxy_callback_return(import_attr(named)())
    seen: list[dict[bytes, bytes]] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))

    sent = [
        (b"X-Request-Timeout-Seconds", b"0.01"),
        (DISCONNECT_HEADER.encode(), b"?1"),
        (b"x-request-id", b"mine"),
    ]
    scope = {"type": "http", "headers": sent}
    app: Any = middleware.cls(proxy, *middleware.args, **middleware.kwargs)
    asyncio.run(app(scope, None, None))
    assert seen == [{b"x-request-id": b"mine"}]
    assert len(scope["headers"]) == 3  # the caller's own is left alone


def test_serve_reads_the_headers_that_are_dropped() -> None:
    assert parse_request_timeout_header({TIMEOUT_HEADER.encode(): b"0.01"}, None) == 0.01
    assert parse_disconnect_disabled_header({DISCONNECT_HEADER.encode(): b"?1"})
