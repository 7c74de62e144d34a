"""Serve's own plain refusals become answers of the API; what the application answers passes untouched."""

from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve._private.http_util import convert_object_to_asgi_messages, get_http_response_status, retry_after_headers
from ray.serve.exceptions import BackPressureError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.ingress.proxy_answers import ProxyErrorMiddleware

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


@pytest.mark.parametrize(("status", "told"), [(500, 503), (503, 503), (429, 429)])
@pytest.mark.parametrize("path", ["/runsync", "/v1/images/edits"])
def test_its_refusals_are_told_in_the_dialect(path: str, status: int, told: int) -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(status, [(b"x-request-id", b"mine")]))).post(path)
    assert answer.status_code == told
    assert int(answer.headers["retry-after"]) == 5
    assert answer.headers["x-request-id"] == "mine"
    assert SECRET not in answer.text
    error = answer.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert "again" in message


def test_its_own_retry_after_stays() -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(429, retry_after_headers(7)))).post("/runsync")
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("status", [200, 404])
def test_other_answers_of_serve_pass(status: int) -> None:
    answer = TestClient(ProxyErrorMiddleware(serves(status))).get("/runsync")
    assert (answer.status_code, answer.text) == (status, SECRET)


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
    assert SECRET not in answer.text


def test_what_breaks_off_stays_broken() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    with pytest.raises(RuntimeError):
        TestClient(ProxyErrorMiddleware(app)).post("/runsync")
