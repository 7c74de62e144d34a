"""Who may ask: keys from the environment and from a file, and which routes ask for one."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from serve_app.config import AppSettings
from serve_app.errors import ConfigError, StartupError
from serve_app.ingress.app import build_app
from serve_app.ingress.keys import (
    CHECK_EVERY_S,
    FILE_VARIABLE,
    KEYS_VARIABLE,
    KeyFile,
    Keys,
    configured_keys,
    is_loopback,
    require_keys,
)
from tests.ingress.openai_harness import harness


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEYS_VARIABLE, FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Each method and path that the application answers, those of its documents included."""
    for context in iter_route_contexts(app.routes):
        path = str(context.path).replace(":path", "").replace("{", "").replace("}", "")
        for method in sorted(context.methods or ()):
            yield method, path


def test_every_route_but_live_refuses_without_a_key(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, api_keys=("secret",))
    walked = list(routes(app.app))
    statuses = {(method, path): app.client.request(method, path).status_code for method, path in walked}
    assert statuses.pop(("GET", "/health/live")) == 200
    assert set(statuses.values()) == {401}
    paths = {path for _, path in statuses}
    assert {"/docs", "/redoc", "/openapi.json", "/drain", "/health", "/health/ready", "/run"} <= paths
    assert {"/v2/endpoint_id/runsync", "/v1/images/edits", "/v2/endpoint_id/openai/v1/models/model"} <= paths
    assert len(statuses) > 30


@pytest.mark.parametrize("path", ["/nope", "/health/live/", "/health/livee", "//health/live", "/v2/any/health/live"])
def test_nothing_beside_live_is_open(tiny_settings: AppSettings, path: str) -> None:
    client = harness(tiny_settings, api_keys=("secret",)).client
    assert client.get(f"http://testserver{path}", follow_redirects=False).status_code == 401


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(b"one\n\n  two \r\nschl\xc3\xbcssel\n")
    return path


def test_a_file_has_a_key_on_each_line(file: Path) -> None:
    assert KeyFile(file)() == (b"one", b"two", "schlüssel".encode())


def test_a_changed_file_is_read_again_within_a_second(file: Path) -> None:
    clock = Clock()
    keys = KeyFile(file, clock)
    replace(file, "three")
    assert b"one" in keys()
    clock.now_s += CHECK_EVERY_S
    assert keys() == (b"three",)


def test_an_unchanged_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    keys = KeyFile(file, clock)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    clock.now_s += CHECK_EVERY_S
    assert b"one" in keys()


def test_a_file_that_goes_or_empties_lets_nobody_in_until_it_is_back(
    file: Path, tiny_settings: AppSettings, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    client = client_with(KeyFile(file, clock), tiny_settings)

    def status_of(*keys: str) -> list[int]:
        clock.now_s += CHECK_EVERY_S
        return [client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code for key in keys]

    assert status_of("one", "other", "") == [200, 401, 401]
    file.unlink()
    assert status_of("one", "other", "") == [401, 401, 401]
    replace(file, "")
    assert status_of("one", "other", "") == [401, 401, 401]
    replace(file, "other")
    assert status_of("one", "other", "") == [401, 200, 401]
    assert "lets nobody in" in caplog.text


def replace(file: Path, text: str) -> None:
    """As Kubernetes changes a mounted Secret: another file takes the place."""
    new = file.with_name("new")
    new.write_text(text)
    os.replace(new, file)


def client_with(keys: Keys, settings: AppSettings) -> TestClient:
    return TestClient(build_app(dataclasses.replace(harness(settings).backend, api_keys=keys)))


@pytest.mark.parametrize("content", [None, "", " \n\n"])
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="cannot be read or holds no key"):
        configured_keys(str(path))


def test_where_keys_come_from(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_keys(None) is None
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    assert configured_keys(None) is None
    monkeypatch.setenv(KEYS_VARIABLE, "a, ö,")
    assert told(configured_keys(None)) == [b"a", "ö".encode()]
    assert told(configured_keys(str(file)))[:3] == [b"a", "ö".encode(), b"one"]
    other = tmp_path / "other"
    other.write_text("the variable goes first")
    monkeypatch.setenv(FILE_VARIABLE, str(other))
    monkeypatch.delenv(KEYS_VARIABLE)
    assert told(configured_keys(str(file))) == [b"the variable goes first"]


def told(keys: Keys | None) -> list[bytes]:
    assert keys is not None
    return list(keys())


def any_key() -> list[bytes]:
    return [b"key"]


@pytest.mark.parametrize(
    ("keys", "host", "allow_anonymous", "starts"),
    [
        (None, "127.0.0.1", False, True),
        (None, "localhost", False, True),
        (None, "0.0.0.0", False, False),
        (None, "::", False, False),
        (None, "example.com", False, False),
        (None, "0.0.0.0", True, True),
        (any_key, "0.0.0.0", False, True),
    ],
)
def test_without_keys_it_serves_this_machine_alone(
    keys: Keys | None, host: str, allow_anonymous: bool, starts: bool
) -> None:
    expected: AbstractContextManager[object] = nullcontext() if starts else pytest.raises(StartupError)
    with expected as caught:
        require_keys(keys, host, allow_anonymous)
    if isinstance(caught, pytest.ExceptionInfo):
        message = str(caught.value)
        assert KEYS_VARIABLE in message
        assert FILE_VARIABLE in message
        assert "allow_anonymous: true" in message


@pytest.mark.parametrize(("host", "loopback"), [("127.8.9.1", True), ("::1", True), ("", False), ("10.0.0.1", False)])
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
