"""API keys: where they are read from, how they are named, and which routes need one."""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from serve_app.config import AppSettings
from serve_app.errors import ConfigError, StartupError
from serve_app.ingress.app import build_app
from serve_app.ingress.auth import (
    CHECK_EVERY_S,
    FILE_VARIABLE,
    KEY_NAME,
    KEYS_VARIABLE,
    OPERATOR_KEYS,
    Key,
    KeyFile,
    Keys,
    configured_keys,
    credentials,
    is_loopback,
    matching,
    require_keys,
)
from serve_app.ingress.middleware import ApiKeys
from tests.ingress.openai_harness import DATA_URL, harness, keys_of


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEYS_VARIABLE, FILE_VARIABLE, OPERATOR_KEYS.variable, OPERATOR_KEYS.file_variable):
        monkeypatch.delenv(name, raising=False)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Each method and path that the application answers, those of its documents included."""
    for context in iter_route_contexts(app.routes):
        path = str(context.path).replace(":path", "").replace("{", "").replace("}", "")
        for method in sorted(context.methods or ()):
            yield method, path


def test_every_route_but_the_open_ones_rejects_requests_without_a_key(tiny_settings: AppSettings) -> None:
    app = harness(tiny_settings, api_keys=("secret",), operator_keys=("operator",))
    walked = list(routes(app.app))
    statuses = {(method, path): app.client.request(method, path).status_code for method, path in walked}
    assert statuses.pop(("GET", "/health/live")) == 200
    assert statuses.pop(("GET", "/health/ready")) == 200
    assert statuses.pop(("HEAD", "/health/live")) == statuses.pop(("HEAD", "/health/ready")) == 200
    assert set(statuses.values()) == {401}
    paths = {path for _, path in statuses}
    assert {"/docs", "/redoc", "/openapi.json", "/drain", "/undrain", "/health", "/run"} <= paths
    assert {"/v2/endpoint_id/runsync", "/v1/images/edits", "/v2/endpoint_id/openai/v1/models/model"} <= paths
    assert len(statuses) > 30


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/health/live/",
        "/health/livee",
        "//health/live",
        "/v2/any/health/live",
        "/health/ready/",
        "/v2/a/health",
    ],
)
def test_nothing_else_is_open(tiny_settings: AppSettings, path: str) -> None:
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
    assert values(KeyFile(file)) == [b"one", b"two", "schlüssel".encode()]


def test_comments_blank_lines_and_a_byte_order_mark_are_no_keys(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf# of 2026\r\n\r\none\n  # two\n#three\nfo#ur\n")
    assert values(KeyFile(file)) == [b"one", b"fo#ur"]
    file.write_bytes(b"\xef\xbb\xbfone")
    assert values(KeyFile(file)) == [b"one"]


@pytest.mark.parametrize(
    ("line", "key", "name"),
    [
        ("acme:k-1", b"k-1", "acme"),
        ("  A.b_c-9 : k-1 ", b"A.b_c-9 : k-1", ""),
        ("acme: k-1 ", b"k-1", "acme"),
        ("acme:k:1", b"k:1", "acme"),
        (f"{'n' * 64}:k", b"k", "n" * 64),
        (f"{'n' * 65}:k", b"n" * 65 + b":k", ""),
        ("ac/me:k", b"ac/me:k", ""),
        (":k", b":k", ""),
        ("k", b"k", ""),
        ("kö:k", "kö:k".encode(), ""),
    ],
)
def test_a_key_may_have_a_name(file: Path, monkeypatch: pytest.MonkeyPatch, line: str, key: bytes, name: str) -> None:
    file.write_text(line, encoding="utf-8")
    assert KeyFile(file)() == (Key(key, name),)
    monkeypatch.setenv(KEYS_VARIABLE, line)
    keys = configured_keys(None)
    assert keys is not None
    assert keys() == (Key(key, name),)


def test_a_client_is_the_name_of_its_key_or_else_its_position(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("# keys\nacme:k-1\n\nk-2\nacme:k-3\n")
    assert [key.client for key in KeyFile(file)()] == ["acme", "file#2", "acme"]
    monkeypatch.setenv(KEYS_VARIABLE, "k-4, ,acme:k-5,k-6")
    keys = configured_keys(str(file))
    assert keys is not None
    assert [key.client for key in keys()] == ["env#1", "acme", "env#3", "acme", "file#2", "acme"]


def test_a_name_without_a_key_admits_nobody(tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "acme:, other:k")
    keys = configured_keys(None)
    assert keys is not None
    client = client_with(keys, tiny_settings)
    for credential, status in (("", 401), ("acme:", 401), ("Bearer", 401), ("k", 200)):
        assert client.get("/v1/models", headers={"authorization": credential}).status_code == status, credential


def test_a_key_is_not_printed_with_its_name() -> None:
    assert repr(Key(b"secret", "acme")) == "Key(name='acme')"


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  ", ""])
def test_the_schemes_case_does_not_matter(tiny_settings: AppSettings, scheme: str) -> None:
    client = harness(tiny_settings, api_keys=("acme:k-1", "Bearer-k")).client
    for key in ("k-1", "Bearer-k"):
        assert client.get("/v1/models", headers={"authorization": f"{scheme}{key}"}).status_code == 200
    assert client.get("/v1/models", headers={"authorization": f"{scheme}acme:k-1"}).status_code == 401


@pytest.mark.parametrize("path", ["/run", "/v1/images/edits"])
@pytest.mark.parametrize(("key", "logged"), [("k-1", " key=acme"), ("k-2", "")])
def test_a_jobs_log_line_has_the_name_of_its_key(
    tiny_settings: AppSettings, caplog: pytest.LogCaptureFixture, path: str, key: str, logged: str
) -> None:
    client = harness(tiny_settings, api_keys=("acme:k-1", "k-2")).client
    body = {"prompt": "x", "image": DATA_URL}
    with caplog.at_level("INFO"):
        response = client.post(
            path,
            json={"input": body} if path == "/run" else body,
            headers={"authorization": f"Bearer {key}", "Idempotency-Key": "again"},
        )
    assert response.status_code == 200, response.text
    (line,) = [record.message for record in caplog.records if " taken: " in record.message]
    assert line.endswith(f" num_steps=4{logged}")


def test_a_keys_name_is_known_during_its_request_only() -> None:
    seen: list[tuple[str, str]] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((KEY_NAME.get(), scope["state"]["key_name"]))

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async def nowhere(message: Message) -> None: ...

    async def ask() -> str:
        scope = {"type": "http", "path": "/run", "headers": [(b"authorization", b"Bearer k-1")]}
        await ApiKeys(note, keys_of("acme:k-1"))(scope, nothing, nowhere)
        return KEY_NAME.get()

    assert asyncio.run(ask()) == ""
    assert seen == [("acme", "acme")]


def test_a_changed_file_is_read_again_within_a_second(file: Path) -> None:
    clock = Clock()
    keys = KeyFile(file, clock)
    replace(file, "three")
    assert b"one" in values(keys)
    clock.now_s += CHECK_EVERY_S
    assert values(keys) == [b"three"]


def test_an_unchanged_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    keys = KeyFile(file, clock)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    clock.now_s += CHECK_EVERY_S
    assert b"one" in values(keys)


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
    assert "the file of API keys holds no key" in caplog.text


def replace(file: Path, text: str) -> None:
    """As Kubernetes changes a mounted Secret: another file takes the place."""
    new = file.with_name("new")
    new.write_text(text)
    os.replace(new, file)


def client_with(keys: Keys, settings: AppSettings) -> TestClient:
    return TestClient(build_app(dataclasses.replace(harness(settings).backend, api_keys=keys)))


@pytest.mark.parametrize("content", [None, "", " \n\n", "# one\n", "acme:\n"])
def test_a_file_without_keys_stops_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="cannot be read or holds no key"):
        configured_keys(str(path))


# In UTF-8, "à" ends with the byte a0 and "Å" with 85: white space in latin-1, which headers are decoded as.
@pytest.mark.parametrize("key", ["voilà".encode(), "Å".encode(), b"k\xa0", b"k\x85", b"\xa0k", b"\x85"])
@pytest.mark.parametrize("form", [b"Bearer %s", b"bearer  %s", b"BEARER\t%s ", b"%s"])
def test_a_key_may_end_in_any_byte(file: Path, monkeypatch: pytest.MonkeyPatch, key: bytes, form: bytes) -> None:
    file.write_bytes(b"\xef\xbb\xbf  # a comment\n" + key + b"\n")
    monkeypatch.setenv(KEYS_VARIABLE, os.fsdecode(key))
    for keys in (KeyFile(file), configured_keys(None)):
        assert values(keys) == [key]
        assert matching(keys, credentials(Headers(raw=[(b"authorization", form % key)]))) == Key(key)


def test_where_keys_come_from(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_keys(None) is None
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    assert configured_keys(None) is None
    monkeypatch.setenv(KEYS_VARIABLE, "a, ö,")
    assert values(configured_keys(None)) == [b"a", "ö".encode()]
    assert values(configured_keys(str(file)))[:3] == [b"a", "ö".encode(), b"one"]
    other = tmp_path / "other"
    other.write_text("the variable goes first")
    monkeypatch.setenv(FILE_VARIABLE, str(other))
    monkeypatch.delenv(KEYS_VARIABLE)
    assert values(configured_keys(str(file))) == [b"the variable goes first"]


def test_operator_keys_have_variables_of_their_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "api")
    assert configured_keys(None, OPERATOR_KEYS) is None
    assert values(configured_keys(str(file), OPERATOR_KEYS))[0] == b"one"
    monkeypatch.setenv("CAMERA_EDIT_OPERATOR_KEYS", "operator, me:another")
    assert values(configured_keys(None, OPERATOR_KEYS)) == [b"operator", b"another"]
    assert values(configured_keys(None)) == [b"api"]
    monkeypatch.setenv("CAMERA_EDIT_OPERATOR_KEYS_FILE", str(file.with_name("missing")))
    with pytest.raises(ConfigError, match=r"The file of operator keys \S+ cannot be read or holds no key"):
        configured_keys(str(file), OPERATOR_KEYS)


def values(keys: Keys | None) -> list[bytes]:
    assert keys is not None
    return [key.value for key in keys()]


def any_key() -> list[Key]:
    return [Key(b"key")]


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


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("keys", ["ops:", "ops: , other:"])
def test_a_variable_with_names_but_no_key_stops_the_start(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPERATOR_KEYS.variable, keys)
    with pytest.raises(ConfigError, match="CAMERA_EDIT_OPERATOR_KEYS is set and holds no key"):
        configured_keys(None, OPERATOR_KEYS)
