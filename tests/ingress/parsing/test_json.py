"""Bodies that are nested, encoded or named so that reading or quoting them could fail: each is a 400 that names the
fix, in both dialects and in forms."""

import codecs
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from serve_app.config import AppSettings
from serve_app.errors import InvalidInput
from serve_app.ingress.openai.body import _from_json, _from_parts
from serve_app.ingress.parsing.bodies import MAX_JSON_DEPTH, check_json, read_json, read_model
from serve_app.ingress.parsing.validation import echo, echo_name
from serve_app.ingress.runpod.request import RunPodRequest
from tests.ingress.openai_harness import EDITS, PNG, Harness, error_of, kept_harness

FIELDS = ("seed", "prompt", "image", "quality", "views", "unknown")
# Ways to nest: opening and closing text of one level.
LEVELS = {"lists": ("[", "]"), "objects": ('{"a":', "}"), "never closed": ("[", "")}
MAX_ECHOED_BYTES = 1100
"""An unknown field's message lists the known ones."""


@pytest.fixture
def app(tiny_settings: AppSettings) -> Harness:
    return kept_harness(tiny_settings)


def nested(depth: int, level: str = "lists") -> str:
    begin, end = LEVELS[level]
    return begin * depth + "1" + end * depth


def runpod(field: str, value: str) -> bytes:
    return f'{{"input": {{"{field}": {value}}}}}'.encode()


def openai(field: str, value: str) -> bytes:
    return f'{{"{field}": {value}}}'.encode()


def read_runpod(field: str, value: str) -> None:
    read_model(RunPodRequest, runpod(field, value))


def read_openai(field: str, value: str) -> None:
    _from_json(openai(field, value))


def read_form(field: str, value: str) -> None:
    _from_parts([(field, value)])


READERS: dict[str, tuple[Callable[[str, str], None], int]] = {
    "runpod": (read_runpod, 2),
    "openai": (read_openai, 1),
    "form": (read_form, 0),
}
"""Each with the levels around the field."""

# In a form, these are texts, whatever they look like.
TEXTS = {("form", "prompt"), ("form", "image")}


@pytest.mark.parametrize(("level", "step"), [("lists", 1), ("objects", 29), ("never closed", 29)])
@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("field", FIELDS)
def test_every_depth_is_a_refusal(dialect: str, field: str, level: str, step: int) -> None:
    read, around = READERS[dialect]
    for depth in range(1, 2001, step):
        if (dialect, field) in TEXTS:
            read(field, nested(depth, level))
            continue
        with pytest.raises(InvalidInput) as caught:
            read(field, nested(depth, level))
        assert len(str(caught.value)) < MAX_ECHOED_BYTES
        # A bracket that is never closed takes the end of one around it.
        if dialect != "form" and depth > MAX_JSON_DEPTH + (around if level == "never closed" else -around):
            assert f"nested more than {MAX_JSON_DEPTH} levels" in str(caught.value)


@pytest.mark.parametrize("depth", [1, 31, 32, 33, 500, *range(940, 1000, 3), 2000])
@pytest.mark.parametrize("field", FIELDS)
def test_the_routes_refuse_them(app: Harness, field: str, depth: int) -> None:
    value = nested(depth)
    for path, body in (("/runsync", runpod(field, value)), (EDITS, openai(field, value))):
        response = app.client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, (path, response.text)
        assert len(response.content) < MAX_ECHOED_BYTES
    if ("form", field) not in TEXTS:
        error_of(app.form(("image", PNG), ("prompt", "x"), (field, value)), 400)
    assert app.editor.requests == []


def test_both_sides_of_the_limit() -> None:
    for level in ("lists", "objects"):
        assert read_json(nested(MAX_JSON_DEPTH, level).encode())
        with pytest.raises(InvalidInput, match=f"^The body is nested more than {MAX_JSON_DEPTH} levels deep. Send"):
            read_json(nested(MAX_JSON_DEPTH + 1, level).encode())


@pytest.mark.parametrize(
    "text",
    [
        f'{{"a": "{"[" * 100}"}}',
        f'{{"a": "\\"{"[" * 100}"}}',
        f'{{"a": "\\\\", "b": "{"[" * 100}"}}',
        "[" + ", ".join(["[]"] * 1000) + "]",
        json.dumps([[{"a": [index]}] for index in range(1000)]),
    ],
)
def test_wide_bodies_and_brackets_in_strings_are_not_deep(text: str) -> None:
    assert read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["]" * 100, "}{" * 50, "[}" * 40, '"' + "[" * 100, '["\\' + "[" * 100, "[" * 33 + '"'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        read_json(text.encode())


@pytest.mark.parametrize(
    "unit", ["[", "[]", '"\\"', '"",', '"', "\\", "{}[", "]", '[{"a":', "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]"]
)
@pytest.mark.timeout(120)
def test_the_check_is_linear(unit: str) -> None:
    """It runs on the event loop. If the regular expressions read a character twice, they would be quadratic, and these
    2 MiB would take hours."""
    with suppress(InvalidInput):
        check_json(unit.encode() * (2**21 // len(unit)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_json_is_utf_8(app: Harness, encoding: str) -> None:
    body = '{"prompt": "é"}'.encode(encoding)
    for path in ("/runsync", EDITS):
        response = app.client.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert "not valid JSON" in response.text


@pytest.mark.parametrize("field", ["seed", "prompt", "unknown"])
def test_raw_surrogates_are_not_utf_8(app: Harness, field: str) -> None:
    for path, make in (("/runsync", runpod), (EDITS, openai)):
        for name, value in ((field, '"HERE"'), (f"{field}HERE", "1")):
            body = make(name, value).replace(b"HERE", b"\xed\xa0\x80")
            assert app.client.post(path, content=body).status_code == 400


def form(name: bytes, value: bytes = b"1", times: int = 1) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, value)
    return part * times + b"--x--\r\n"


@pytest.mark.parametrize(
    "charset",
    ["utf-7", "punycode", "idna", "undefined", "rot13", "zlib", "utf-16", "utf_8", "latin-2", "", '"utf-7"', "nowhere"],
)
@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_forms_are_utf_8(app: Harness, monkeypatch: pytest.MonkeyPatch, kind: str, charset: str) -> None:
    looked_up: list[str] = []
    lookup = codecs.lookup
    monkeypatch.setattr(codecs, "lookup", lambda name: looked_up.append(name) or lookup(name))  # type: ignore[func-returns-value]
    headers = {"content-type": f"{kind}; charset={charset}"}
    response = app.client.post(EDITS, content=form(b"prompt", b"a" * 900_000), headers=headers)
    assert "Send UTF-8" in error_of(response, 400)["message"]
    assert charset.strip('"') not in looked_up or not charset


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"Utf-8"', "utf8"])
def test_utf_8_may_be_named(app: Harness, charset: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    message = error_of(app.client.post(EDITS, content=form("é".encode()), headers=headers), 400)["message"]
    assert message.startswith("Unknown field 'é'.")


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", [b"y", b"\xff", "\u2028".encode()])
def test_a_forms_field_name_is_echoed_in_part(app: Harness, name: bytes, times: int) -> None:
    # The parser of multipart forms limits a part's headers.
    for kind, body in (
        ("multipart/form-data; boundary=x", form(name * 1000, times=times)),
        ("application/x-www-form-urlencoded", b"&".join([name * 500_000 + b"=1"] * times)),
    ):
        response = app.client.post(EDITS, content=body, headers={"content-type": kind})
        message = error_of(response, 400)["message"]
        assert ("comes more than once" if times > 1 else "Unknown field") in message
        assert len(response.content) < MAX_ECHOED_BYTES


@pytest.mark.parametrize("name", ["y" * 2**20, "\\ud800", "\\u0000" * 1000])
def test_a_field_name_in_json_is_echoed_in_part(app: Harness, name: str) -> None:
    for path, make in (("/runsync", runpod), (EDITS, openai)):
        response = app.client.post(path, content=make(name, "1"))
        assert response.status_code == 400
        assert len(response.content) < MAX_ECHOED_BYTES


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "'a'"),
        ("a" * 50, f"'{'a' * 39}…"),
        (b"\x00" * 10**7, "b'" + "\\x00" * 9 + "\\x…"),
        ("\ud800", "'\\ud800'"),
        ([1, "b", None, 2.5], "[1, 'b', None, 2.5]"),
        ({"a": [True], "b": {}}, "{'a': [True], 'b': {}}"),
        ([0] * 10**7, "[" + "0, " * 13 + "…"),
        (deep(100_000), "[" * 40 + "…"),
        (10**5000, "a huge number"),
        (-(10**5000), "a huge number"),
        (10**100, "1" + "0" * 39 + "…"),
        (float("nan"), "nan"),
    ],
    ids=range(12),
)
def test_values_are_quoted_in_part(value: object, shown: str) -> None:
    tracemalloc.start()
    try:
        assert echo(value) == shown
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20  # not the whole text of the value


def test_names_are_quoted_in_part() -> None:
    assert echo_name("a'b") == "a'b"
    assert echo_name("\ud800" * 10**6) == "\\ud800" * 6 + "\\ud8…"
    assert len(echo_name("y" * 10**6)) == 41


@pytest.mark.parametrize(
    "text",
    ["orbit:\u0664", "orbit:\uff14", "orbit:08", "orbit:0", "orbit:9", "orbit:4\n", "orbit:+4", "orbit: 4", "orbit:"],
)
def test_an_orbits_number_is_one_ascii_digit(app: Harness, text: str) -> None:
    for encoding in ("json", "form"):
        assert "views must be" in error_of(app.edit(encoding, views=text), 400)["message"]
    assert app.client.post("/runsync", json={"input": {"views": text}}).status_code == 400


@pytest.mark.parametrize("text", ["\u0664", "0x4", "1_0", " ", "4 4"])
@pytest.mark.parametrize("field", ["n", "seed", "num_inference_steps"])
def test_a_forms_numbers_are_jsons(app: Harness, field: str, text: str) -> None:
    assert f"{field} must be" in error_of(app.edit("form", **{field: text}), 400)["message"]
