"""The application's middleware: who reaches the operator endpoints, and which control headers are rejected."""

import asyncio
import dataclasses
import json
import weakref
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from httpx2 import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.edits.service import all_or_none
from serve_app.ingress.app import build_app
from serve_app.ingress.auth import CHECK_EVERY_S, KeyFile
from serve_app.ingress.pictures.prepare import ParsedRequest, Prepared, Preparer
from serve_app.serving.control_headers import DISCONNECT_HEADER, TIMEOUT_HEADER
from tests.garbage import freed_at_once
from tests.ingress.openai_harness import DATA_URL, EDITS, Harness, error_of, harness, kept_harness, local
from tests.waiting import until_async

OPERATOR_PATHS = ("/drain", "/undrain", "/purge-queue", "/v2/any/purge-queue")
# Starlette's routes also match a path with a newline at its end.
SPELLINGS = tuple(f"{path}{end}" for path in OPERATOR_PATHS for end in ("", "%0A"))
OPERATOR, CUSTOMER = {"authorization": "Bearer op"}, {"authorization": "Bearer customer"}
PEER = ("203.0.113.7", 1)
CROSS_SITE = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1:8080"},
    {"origin": "http://me@127.0.0.1"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "anything"},
)


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    """Without operator keys, with an API key."""
    return kept_harness(tiny_settings, api_keys=("acme:customer",))


@pytest.fixture
def guarded(tiny_settings: AppSettings) -> Harness:
    """With operator keys and an API key."""
    return kept_harness(tiny_settings, api_keys=("acme:customer",), operator_keys=("op", "me:other"))


def reached(app: Harness, response: Response) -> bool:
    """Whether a request has reached its operator endpoint, by what that endpoint did."""
    path, draining = response.url.path.strip(), app.backend.draining
    done = {"/drain": draining.begun, "/undrain": not draining.begun}.get(
        path[path.rfind("/") :], app.jobs.num_purges > 0
    )
    assert done or response.status_code != 200
    draining.begun, app.jobs.num_purges = False, 0
    return response.status_code == 200


def message(response: Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    return str(response.json()["error"])


@pytest.mark.parametrize("path", SPELLINGS)
def test_with_operator_keys_one_of_them_is_needed(guarded: Harness, path: str) -> None:
    for client in (TestClient(guarded.app, client=PEER), local(guarded.app)):
        for header in ("Bearer op", "bearer op", "BEARER other", "op"):
            assert reached(guarded, client.post(path, headers={"authorization": header})), header
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic op"}, {"authorization": ""}):
            refused = message(client.post(path, headers=headers), 401)
            assert refused.startswith("The operator key is missing or wrong.")
            assert "CAMERA_EDIT_OPERATOR_KEYS" in refused
        assert "needs an operator key" in message(client.post(path, headers=CUSTOMER), 403)
    assert guarded.jobs.num_purges == 0


@pytest.mark.parametrize("path", SPELLINGS)
def test_without_operator_keys_only_this_machine_has_access(app: Harness, path: str) -> None:
    assert reached(app, local(app.app).post(path))
    assert "CAMERA_EDIT_OPERATOR_KEYS" in message(TestClient(app.app, client=PEER).post(path), 403)
    assert "needs an operator key" in message(local(app.app).post(path, headers=CUSTOMER), 403)
    assert "The key is wrong" in message(local(app.app).post(path, headers={"authorization": "Bearer wrong"}), 401)


def test_without_any_keys_a_local_client_may_send_one(tiny_settings: AppSettings) -> None:
    """RunPod's clients always do."""
    app = harness(tiny_settings)
    assert reached(app, local(app.app).post("/v2/any/purge-queue", headers={"authorization": "Bearer any"}))


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]"])
def test_loopback_in_any_spelling(app: Harness, peer: str, host: str) -> None:
    client = TestClient(app.app, client=(peer, 1), base_url="http://127.0.0.1")
    assert reached(app, client.post("/drain", headers={"host": host}))


@pytest.mark.parametrize(
    "peer", ["192.168.0.2", "127.0.0.6", "::ffff:10.0.0.1", "testclient", "", "127.0.0.1.evil.example"]
)
def test_another_peer_is_rejected(app: Harness, peer: str) -> None:
    client = TestClient(app.app, client=(peer, 1), base_url="http://127.0.0.1")
    assert not reached(app, client.post("/drain"))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "10.0.0.1",
        "localhost.evil.example",
        "[::2]",
        "",
        "127.0.0.1:x",
        "[::1",
        "127.1",
    ],
)
def test_another_host_is_rejected(app: Harness, host: str) -> None:
    """A page may name a host of its own that resolves to this machine."""
    headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert not reached(app, local(app.app).post("/drain", headers=headers))


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_what_a_proxy_forwards_is_rejected(app: Harness, header: str) -> None:
    assert not reached(app, local(app.app).post("/drain", headers={header: "127.0.0.1"}))


def test_behind_haproxy_every_peer_may_be_haproxy(app: Harness) -> None:
    behind = build_app(dataclasses.replace(app.backend, behind_haproxy=True))
    assert "CAMERA_EDIT_OPERATOR_KEYS" in message(local(behind).post("/drain"), 403)


def test_without_a_peers_address_nobody_is_local(app: Harness) -> None:
    client = TestClient(without_peer(app.app), base_url="http://127.0.0.1")
    assert message(client.post("/drain"), 403)


def without_peer(app: FastAPI) -> Any:
    """As with a Unix socket."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "client": None}, receive, send)

    return called


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
@pytest.mark.parametrize("path", SPELLINGS)
def test_pages_of_other_sites_have_no_access_with_any_key(
    app: Harness, guarded: Harness, path: str, headers: dict[str, str]
) -> None:
    assert "another site" in message(local(app.app).post(path, headers=headers), 403)
    for keys in ({}, OPERATOR, CUSTOMER):
        assert "another site" in message(local(guarded.app).post(path, headers={**headers, **keys}), 403)
    assert not app.backend.draining.begun
    assert not guarded.backend.draining.begun
    assert app.jobs.num_purges == guarded.jobs.num_purges == 0


def test_the_services_own_pages_have_access(app: Harness, guarded: Harness) -> None:
    own = {"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert reached(app, local(app.app).post("/drain", headers=own))
    assert reached(app, local(app.app).post("/drain", headers={"sec-fetch-site": "none"}))
    public = {"origin": "https://Edit.example", "host": "edit.example", **OPERATOR}
    assert reached(guarded, TestClient(guarded.app, client=PEER).post("/drain", headers=public))


def test_a_key_that_is_configured_as_both_is_an_api_key(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, api_keys=("acme:both",), operator_keys=("both", "op"))
    assert message(local(app.app).post("/drain", headers={"authorization": "Bearer both"}), 403)
    assert reached(app, local(app.app).post("/drain", headers=OPERATOR))


def test_an_operator_key_is_no_api_key(guarded: Harness) -> None:
    assert guarded.client.get("/v1/models", headers=OPERATOR).status_code == 401
    assert guarded.client.post("/run", headers=OPERATOR).status_code == 401


def test_an_emptied_file_of_operator_keys_admits_nobody(app: Harness, tmp_path: Path) -> None:
    file, now_s = tmp_path / "keys", 0.0
    file.write_text("op\n")
    keys = KeyFile(file, lambda: now_s, "operator keys")
    client = local(build_app(dataclasses.replace(app.backend, operator_keys=keys)))
    assert client.post("/drain", headers=OPERATOR).status_code == 200
    file.unlink()
    now_s += CHECK_EVERY_S
    for headers in ({}, OPERATOR):
        assert message(client.post("/drain", headers=headers), 401)


def test_the_route_prefix_does_not_open_an_endpoint(guarded: Harness) -> None:
    """Serve leaves the prefix in the path and repeats it in `root_path`."""
    client = TestClient(guarded.app, root_path="/edit", client=PEER)
    for path in SPELLINGS:
        assert message(client.post(f"/edit{path}", headers=CUSTOMER), 403)
        assert message(client.post(f"/edit{path}"), 401)
        assert reached(guarded, client.post(f"/edit{path}", headers=OPERATOR))
    assert client.get("/edit/health/live").status_code == 200


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for context in iter_route_contexts(app.routes):
        path = str(context.path).replace(":path", "").replace("{", "").replace("}", "")
        for method in sorted(context.methods or ()):
            yield method, path


def test_of_all_routes_these_are_the_operators_and_no_other_request_reaches_them(
    app: Harness, guarded: Harness
) -> None:
    """With and without operator keys. Every other route still needs an API key, except the open ones."""
    operators, opened = set(), set()
    for each in (app, guarded):
        for method, path in routes(each.app):
            anonymous = TestClient(each.app, client=PEER).request(method, path).status_code
            by_customer = local(each.app).request(method, path, headers=CUSTOMER)
            if by_customer.status_code == 403:
                operators.add((method, path))
                assert anonymous == (401 if each is guarded else 403)
                for headers in CROSS_SITE:
                    assert local(each.app).request(method, path, headers={**headers, **OPERATOR}).status_code == 403
            elif anonymous != 401:
                assert anonymous == 200
                opened.add((method, path))
        assert not each.backend.draining.begun
        assert each.jobs.num_purges == 0
    assert operators == {
        ("POST", "/drain"),
        ("POST", "/undrain"),
        ("POST", "/purge-queue"),
        ("POST", "/v2/endpoint_id/purge-queue"),
    }
    assert opened == set(product(("GET", "HEAD"), ("/health/live", "/health/ready")))


def test_no_key_is_logged(app: Harness, guarded: Harness, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        for path in OPERATOR_PATHS:
            local(guarded.app).post(path, headers={"authorization": "Bearer other"})
            local(guarded.app).post(path, headers={"authorization": "Bearer wrong-key"})
            local(app.app).post(path, headers=CUSTOMER)
    assert caplog.records
    assert not [each for each in ("other", "wrong-key", "customer") if each in caplog.text]


@pytest.mark.parametrize(
    "header",
    ["x-forwarded-host", "x-forwarded-proto", "x-envoy-external-address", "cf-connecting-ip", "X-Forwarded-Port"],
)
def test_any_forwarding_header_shows_a_proxy(app: Harness, header: str) -> None:
    assert not reached(app, local(app.app).post("/drain", headers={header: "x"}))


def test_a_request_by_http_1_0_comes_from_a_proxy(app: Harness) -> None:
    async def as_1_0(scope: Scope, receive: Receive, send: Send) -> None:
        await app.app({**scope, "http_version": "1.0"}, receive, send)

    assert not reached(app, TestClient(as_1_0, client=("127.0.0.1", 1), base_url="http://127.0.0.1").post("/drain"))


def test_where_they_come_through_the_harmful_one_is_refused(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings)
    refused = app.client.get("/v1/models", headers={DISCONNECT_HEADER: "?1"})
    assert DISCONNECT_HEADER in error_of(refused, 400)["message"]
    assert app.client.get("/health", headers={DISCONNECT_HEADER: "?1"}).status_code == 400
    assert app.client.get("/v1/models", headers={DISCONNECT_HEADER: "?0", TIMEOUT_HEADER: "0.01"}).status_code == 200


@pytest.mark.parametrize("path", ["/run", EDITS])
def test_a_request_whose_client_leaves_leaves_nothing_to_the_garbage_collector(
    tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def stall(preparer: Preparer, request_id: str, parsed: ParsedRequest) -> Prepared:
        references.append(weakref.ref(parsed))
        await all_or_none([asyncio.Event().wait()])
        raise AssertionError

    async def story() -> None:
        scene = harness(tiny_settings)
        monkeypatch.setattr(Preparer, "__call__", stall)
        fields = {"prompt": "x", "image": DATA_URL}
        body = json.dumps({"input": fields} if path == "/run" else fields).encode()
        request = asyncio.create_task(scene.app(http_scope(path), lambda: received(body), unanswered))
        await until_async(lambda: bool(references))
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        del request
        await until_async(lambda: references[0]() is None)

    with freed_at_once() as references:
        asyncio.run(story())


def http_scope(path: str) -> Scope:
    """Of a POST request with a JSON body."""
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "client": PEER,
        "server": ("testserver", 80),
    }


async def received(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": False}


async def unanswered(message: Message) -> None:
    raise AssertionError(message)
