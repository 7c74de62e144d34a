"""Web pages of other origins: what the operator allows them to call and to read."""

import pytest
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.ingress.cross_origin import CrossOriginResponses
from tests.ingress.openai_harness import DATA_URL, EDITS, Harness, harness

PAGE, OTHER = "https://page.example", "https://other.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}
BODY = {"image": DATA_URL, "prompt": "x"}


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return harness(tiny_settings.model_copy(update={"cors_origins": (PAGE,)}), api_keys=("key",))


@pytest.mark.parametrize("path", [EDITS, "/runsync", "/v2/any/status/x", "/health/live"])
def test_a_preflight_needs_no_key(app: Harness, path: str) -> None:
    response = app.client.options(path, headers={"origin": PAGE, **PREFLIGHT})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_a_page_reads_pictures_errors_and_ids(app: Harness) -> None:
    for key, status in (("key", 200), ("wrong", 401)):
        headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
        response = app.client.post(EDITS, json=BODY, headers=headers)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["access-control-expose-headers"] == "x-request-id, retry-after"


def test_a_public_page_may_call_a_service_in_a_private_network(app: Harness) -> None:
    """Chromium asks for it in the preflight: https://developer.chrome.com/blog/private-network-access-preflight"""
    private = {**PREFLIGHT, "access-control-request-private-network": "true"}
    response = app.client.options(EDITS, headers={"origin": PAGE, **private})
    assert response.status_code == 200
    assert response.headers["access-control-allow-private-network"] == "true"
    assert app.client.options(EDITS, headers={"origin": OTHER, **private}).status_code == 400


def test_a_page_reads_unexpected_errors(app: Harness) -> None:
    """Starlette answers these outside of its CORSMiddleware: https://github.com/fastapi/fastapi/issues/4071"""
    app.editor.problem = RuntimeError("broken")
    for origin, allowed in ((PAGE, PAGE), (OTHER, None)):
        response = app.client.post(EDITS, json=BODY, headers={"origin": origin, "authorization": "Bearer key"})
        assert response.status_code == 500
        assert response.headers.get("access-control-allow-origin") == allowed
        assert ("x-request-id" in response.headers.get("access-control-expose-headers", "")) == bool(allowed)


def test_a_page_reads_a_stream(app: Harness) -> None:
    headers = {"origin": PAGE, "authorization": "Bearer key"}
    response = app.client.post(EDITS, json={**BODY, "stream": True}, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["access-control-allow-origin"] == PAGE


def test_a_page_of_another_origin_reads_nothing(app: Harness) -> None:
    preflight = app.client.options(EDITS, headers={"origin": OTHER, **PREFLIGHT})
    assert preflight.status_code == 400
    response = app.client.post(EDITS, json=BODY, headers={"origin": OTHER, "authorization": "Bearer key"})
    for each in (preflight, response):
        assert "access-control-allow-origin" not in each.headers


def test_by_default_no_page_is_allowed(tiny_settings: AppSettings) -> None:
    response = harness(tiny_settings).client.options(EDITS, headers={"origin": PAGE, **PREFLIGHT})
    assert response.status_code == 405
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", [EDITS, "/run", "/v2/any/runsync"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_without_keys_no_form_of_another_page_starts_an_edit(tiny_settings: AppSettings, path: str, site: str) -> None:
    app = harness(tiny_settings.model_copy(update={"cors_origins": (PAGE,)}))
    body = BODY if path == EDITS else {"input": BODY}

    def status(**headers: str) -> int:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return int(app.client.post(path, json=body, headers={"content-type": "text/plain", **names}).status_code)

    assert status(origin=OTHER, sec_fetch_site=site) == 403
    assert status(sec_fetch_site=site) == 403
    assert not app.jobs.specs
    assert not app.editor.requests
    assert status(origin=PAGE, sec_fetch_site=site) == 200
    assert status(origin="http://testserver", sec_fetch_site="same-origin") == 200
    assert status(sec_fetch_site="none") == 200
    assert status() == 200


def test_operators_endpoints_stay_closed_to_pages(app: Harness) -> None:
    response = app.client.post("/drain", headers={"origin": PAGE, "sec-fetch-site": "cross-site"})
    assert response.status_code == 403


@pytest.fixture
def proxy() -> TestClient:
    """The proxy in front of an application that allows PAGE, and of its own responses under /full."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        origins = dict(scope["headers"])
        is_allowed = scope["path"] != "/full" and origins.get(b"origin") == PAGE.encode()
        headers = {"access-control-allow-origin": PAGE} if is_allowed else {}
        await JSONResponse({}, 429 if scope["path"] == "/full" else 200, headers)(scope, receive, send)

    return TestClient(CrossOriginResponses(answer))


def test_a_page_reads_what_the_proxy_answers(proxy: TestClient) -> None:
    assert "access-control-allow-origin" not in proxy.get("/full", headers={"origin": PAGE}).headers
    proxy.options(EDITS, headers={"origin": PAGE})
    rejected = proxy.get("/full", headers={"origin": PAGE})
    assert rejected.status_code == 429
    assert rejected.headers["access-control-allow-origin"] == PAGE
    assert "retry-after" in rejected.headers["access-control-expose-headers"]
    assert rejected.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in proxy.get("/full", headers={"origin": OTHER}).headers
    assert "access-control-allow-origin" not in proxy.get("/full").headers
