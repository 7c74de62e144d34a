"""Large bodies are read off the event loop, one at a time, and what they hold is counted before it is built."""

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serve_app.config import AppSettings
from serve_app.errors import InvalidInput
from serve_app.ingress.openai import body
from serve_app.ingress.openai.form import read_form
from serve_app.ingress.openai.request import OpenAIForm, OpenAIJson
from serve_app.ingress.parsing import bodies
from serve_app.ingress.parsing.bodies import (
    MAX_ESCAPES,
    MAX_JSON_UNQUOTED_BYTES,
    MAX_JSON_VALUES,
    MAX_NON_ASCII_BYTES,
    SMALL_BODY_BYTES,
    check_json,
    read_json,
)
from serve_app.ingress.parsing.fields import MAX_FIELDS, MAX_ITEMS, MAX_NAME_CHARS
from serve_app.ingress.runpod.request import RunPodRequest
from tests.fuzz.bodies import JSON, Call
from tests.fuzz.body_case import Exchange
from tests.ingress.openai_harness import EDITS, Harness, kept_harness

PATHS = ("/runsync", EDITS)
FORM = "multipart/form-data; boundary=x"
DEADLINE_S = 30


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


def form(text: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="user"\r\n\r\n%s\r\n--x--\r\n' % text


def large(kind: str) -> bytes:
    text = b"a" * SMALL_BODY_BYTES
    return b'{"user": "%s"}' % text if kind == JSON else form(text)


CASES = [("/runsync", JSON), (EDITS, JSON), (EDITS, FORM)]


class Gate:
    """Stops a function at its start until it is opened; notes the threads that ran it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        self.threads: list[str] = []
        self.num_running = self.most_running = 0
        self._function = function

    def __call__(self, *args: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        self.begun.set()
        try:
            assert self.opened.wait(DEADLINE_S)
            return self._function(*args)
        finally:
            self.num_running -= 1


def gate(monkeypatch: pytest.MonkeyPatch, kind: str) -> Gate:
    """A gate at what reads bodies of this kind."""
    module, name, function = (bodies, "check_json", check_json) if kind == JSON else (body, "read_form", read_form)
    made = Gate(function)
    monkeypatch.setattr(module, name, made)
    return made


async def status_of(app: Harness, call: Call) -> int:
    exchange = Exchange(call)
    await exchange.through(app.app)
    return exchange.status


@pytest.mark.parametrize(("path", "kind"), CASES)
def test_health_answers_while_a_large_body_is_read(
    app: Harness, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    gated = gate(monkeypatch, kind)

    async def scene() -> tuple[int, int]:
        asking = asyncio.create_task(status_of(app, Call(path, kind, large(kind))))
        assert await asyncio.to_thread(gated.begun.wait, DEADLINE_S)
        health = await status_of(app, Call("/health/live", "", b"", method="GET"))
        assert not asking.done()
        gated.opened.set()
        return health, await asking

    assert asyncio.run(scene()) in ((200, 400), (200, 422))


@pytest.mark.parametrize(("path", "kind"), CASES)
def test_large_bodies_are_read_one_at_a_time(
    app: Harness, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    gated = gate(monkeypatch, kind)

    async def scene() -> None:
        asking = [asyncio.create_task(status_of(app, Call(path, kind, large(kind)))) for _ in range(3)]
        assert await asyncio.to_thread(gated.begun.wait, DEADLINE_S)
        await asyncio.sleep(0.05)
        gated.opened.set()
        await asyncio.gather(*asking)

    asyncio.run(scene())
    assert gated.threads == ["body_0"] * 3
    assert gated.most_running == 1


@pytest.mark.parametrize(("path", "kind"), CASES)
def test_a_small_body_needs_no_thread(app: Harness, monkeypatch: pytest.MonkeyPatch, path: str, kind: str) -> None:
    gated = gate(monkeypatch, kind)
    gated.opened.set()
    asyncio.run(status_of(app, Call(path, kind, b"{}" if kind == JSON else form(b"a"))))
    assert gated.threads == [threading.main_thread().name]


def one_text(unit: str, times: int) -> str:
    return '["' + unit * times + '"]'


# Each limit of JSON: a text by the number of what is limited, the limit, and the message above it.
JSON_LIMITS: dict[str, tuple[Callable[[int], str], int, str]] = {
    "numbers": (lambda num: f"[{'0,' * (num - 2)}0]", MAX_JSON_VALUES + 1, "10000 values"),
    "texts": (lambda num: "[" + '"",' * (num - 2) + "0]", MAX_JSON_VALUES + 1, "10000 values"),
    "lists": (lambda num: f"[{'[],' * (num // 2)}0]", MAX_JSON_VALUES - 1, "10000 values"),
    "white space": (lambda num: f"[0{' ' * (num - 3)}]", MAX_JSON_UNQUOTED_BYTES, "262144 bytes outside of strings"),
    "digits": (lambda num: f"[0.{'1' * (num - 4)}]", MAX_JSON_UNQUOTED_BYTES, "262144 bytes outside of strings"),
    "escapes": (lambda num: one_text("\\n", num), MAX_ESCAPES, "1048576 escapes"),
    "wide characters": (lambda num: one_text("é", num // 2), MAX_NON_ASCII_BYTES, "1048576 bytes outside ASCII"),
}


@pytest.mark.parametrize("name", JSON_LIMITS)
def test_both_sides_of_each_limit_of_json(name: str) -> None:
    make, most, message = JSON_LIMITS[name]
    assert read_json(make(most).encode())
    with pytest.raises(InvalidInput, match=f"^The body has more than {message}"):
        read_json(make(most + 2).encode())


@pytest.mark.parametrize("text", ['"]' * 50_000, '{"a": "' + "\\\\" * 10_000 + '", "b": [' + "0," * 10_001])
def test_escapes_and_open_strings_hide_no_values(text: str) -> None:
    with pytest.raises(InvalidInput, match="10000 values"):
        check_json(text.encode())


def test_escaped_quotes_hide_brackets_and_commas() -> None:
    text = json.dumps({"a": '\\"[{,' * 20_000, "b": "\\" * 10_001, "c": '"' * 10_001})
    assert read_json(text.encode()) == json.loads(text)


FLOODS = {
    "zeros": b'{"views": [%s0]}' % (b"0," * 200_000),
    "empty views": b'{"views": [%s{}]}' % (b"{}," * 150_000),
    "texts": b'{"images": [%s""]}' % (b'"",' * 150_000),
    "fields": b"{%s}" % b",".join(b'"k%d":0' % index for index in range(50_000)),
    "a view's fields": b'{"views": [{%s}]}' % b",".join(b'"k%d":0' % index for index in range(50_000)),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("path", PATHS)
def test_a_flood_of_values_takes_no_memory(app: Harness, path: str, name: str) -> None:
    content = b'{"input": %s}' % FLOODS[name] if path == "/runsync" else FLOODS[name]
    call = Call(path, JSON, content)
    asyncio.run(status_of(app, Call(path, JSON, b"{}")))  # what is built once
    tracemalloc.start()
    try:
        assert asyncio.run(status_of(app, call)) == 400
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * len(content) + 2**20


# Lists, each in a model that has it.
LISTS: dict[str, tuple[type[BaseModel], Callable[[list[Any]], Any], Any]] = {
    "input.views": (RunPodRequest, lambda items: {"input": {"views": items}}, {}),
    "input.images": (RunPodRequest, lambda items: {"input": {"images": items}}, "a"),
    "input.prompt": (RunPodRequest, lambda items: {"input": {"prompt": items}}, "a"),
    "views": (OpenAIForm, lambda items: {"views": items}, {}),
    "images": (OpenAIJson, lambda items: {"images": items}, {"image_url": "a"}),
    "image": (OpenAIJson, lambda items: {"image": items}, "a"),
    "url": (OpenAIJson, lambda items: {"url": items}, "a"),
}


@pytest.mark.parametrize("field", LISTS)
def test_a_lists_length_is_checked_before_its_items(field: str) -> None:
    model, make, item = LISTS[field]
    assert model.model_validate(make([item] * MAX_ITEMS))
    # None of these is a valid item, and none is looked at.
    with pytest.raises(ValidationError) as caught:
        model.model_validate(make([0] * (MAX_ITEMS + 1)))
    assert caught.value.error_count() == 1
    with pytest.raises(InvalidInput, match=rf"^{field} must be a list of at most {MAX_ITEMS} items, got \[0, 0"):
        bodies.validated(model, make([0] * (MAX_ITEMS + 1)))


# Objects, each in a model that has it, and how its field is called in messages.
OBJECTS: dict[str, tuple[type[BaseModel], Callable[[dict[str, Any]], Any]]] = {
    "The body": (OpenAIJson, lambda fields: fields),
    "input": (RunPodRequest, lambda fields: {"input": fields}),
    "policy": (RunPodRequest, lambda fields: {"input": {}, "policy": fields}),
    "views[0]": (OpenAIJson, lambda fields: {"views": [fields]}),
    "images[0]": (OpenAIJson, lambda fields: {"images": [{"image_url": "a", **fields}]}),
}


@pytest.mark.parametrize("field", OBJECTS)
def test_an_objects_fields_are_counted_before_they_are_read(field: str) -> None:
    model, make = OBJECTS[field]
    fields = {f"k{index}": 0 for index in range(MAX_FIELDS + 1)}
    with pytest.raises(ValidationError) as caught:
        model.model_validate(make(fields))
    assert caught.value.error_count() == 1
    with pytest.raises(InvalidInput) as refused:
        bodies.validated(model, make(fields))
    assert str(refused.value).startswith(f"{field} must be an object of at most {MAX_FIELDS} fields, got {{'")


@pytest.mark.parametrize(
    ("path", "field"),
    [(EDITS, "model"), (EDITS, "size"), (EDITS, "output_format"), (EDITS, "user"), ("/runsync", "webhook")],
)
def test_names_are_short(app: Harness, path: str, field: str) -> None:
    def message(num_chars: int) -> str:
        fields: dict[str, Any] = {"prompt": "x", "image": "a"}
        around = {"input": fields} if path == "/runsync" else fields
        return app.client.post(path, json={**around, field: "a" * num_chars}).text

    assert f"{field} must be at most {MAX_NAME_CHARS} characters long" in message(MAX_NAME_CHARS + 1)
    assert "characters long" not in message(MAX_NAME_CHARS)
