"""Forms: every part is bounded before it is decoded, and all text is UTF-8."""

import codecs
import tracemalloc
from collections.abc import Callable

import pytest

from serve_app.config import AppSettings
from serve_app.errors import InvalidInput
from serve_app.ingress.openai.form import (
    FORMS,
    MAX_BOUNDARY_BYTES,
    MAX_PART_HEAD_BYTES,
    MAX_PARTS,
    MAX_SEMICOLONS,
    read_form,
)
from serve_app.ingress.parsing.bodies import MAX_ESCAPES, MAX_NON_ASCII_BYTES
from tests.ingress.openai_harness import EDITS, error_of, harness

MULTIPART = "multipart/form-data; boundary=x"


def part(content: bytes = b"a", name: bytes = b"prompt", more: bytes = b"", *headers: bytes) -> bytes:
    head = b'Content-Disposition: form-data; name="%s"%s' % (name, more)
    return b"\r\n".join((b"--x", head, *headers, b"", content, b""))


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


def refusal(body: bytes, content_type: str = MULTIPART) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_form(content_type, body)
    return caught.value


def test_parts_keep_their_order_and_content() -> None:
    body = form(part(b"\r\n-- \xc3\xa9"), part(b"\x00\r\n", b"image", b'; filename="a"'), part(b"", b"n"))
    assert read_form(MULTIPART, body) == [("prompt", "\r\n-- é"), ("image", b"\x00\r\n"), ("n", "")]


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n" * 1000])
@pytest.mark.parametrize("after", [b"", b"\r\n", b"an epilogue"])
@pytest.mark.parametrize("padding", [b"", b" \t "])
def test_what_stands_around_the_parts_is_skipped(before: bytes, after: bytes, padding: bytes) -> None:
    body = part().replace(b"--x\r\n", b"--x" + padding + b"\r\n")
    assert read_form(MULTIPART, before + body + b"--x--" + after) == [("prompt", "a")]


@pytest.mark.parametrize(
    "body",
    [
        b"a" * 100,
        b"\r\n" * 100,
        b"preamble" + form(part()),
        part(),
        part() + b"--x",
        part() + b"--x\r\n",
        b"--x",
        b"--xyz\r\n",
        form(part()).replace(b"\r\n\r\n", b"\r\n"),
        form(part(b"a", b"prompt", b"", b"no colon")),
        b"--x\r\n\r\na\r\n--x--",
        b"--x\r\nContent-Disposition: form-data; name*=utf-8''prompt\r\n\r\na\r\n--x--",
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    assert str(refusal(body)).startswith("The form cannot be read: ")


# Each limit: a form by the number of what is limited, the limit, and the message above it.
LIMITS: dict[str, tuple[Callable[[int], tuple[str, bytes]], int, str]] = {
    "texts": (lambda num: (MULTIPART, form(part() * num)), MAX_PARTS, "Too many fields."),
    "files": (lambda num: (MULTIPART, form(part(b"a", b"a", b'; filename="a"') * num)), MAX_PARTS, "Too many files."),
    "fields": (lambda num: (FORMS[1], b"&".join([b"a=b"] * num)), MAX_PARTS, "Too many fields."),
    "a header": (
        lambda num: (MULTIPART, form(part(b"a", b"n" * (num - len(part(b"", b"")) + len(b"--x\r\n\r\n"))))),
        MAX_PART_HEAD_BYTES,
        "no header of at most 4096 bytes",
    ),
    "parameters": (lambda num: (MULTIPART, form(part(b"a", b"a", b";b" * (num - 1)))), MAX_SEMICOLONS, "semicolons"),
    "a boundary": (
        lambda num: (f"{FORMS[0]}; boundary={'x' * num}", form(part()).replace(b"--x", b"--" + b"x" * num)),
        MAX_BOUNDARY_BYTES,
        "boundary has more than 256",
    ),
    "escapes": (lambda num: (FORMS[1], b"user=" + b"%41" * num), MAX_ESCAPES, "more than 1048576 escapes"),
    "wide characters": (
        lambda num: (MULTIPART, form(part(b"\xc3\xa9" * (num // 2)))),
        MAX_NON_ASCII_BYTES,
        "bytes outside ASCII",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_both_sides_of_each_limit(name: str) -> None:
    make, most, message = LIMITS[name]
    assert read_form(*make(most))
    kind, body = make(most + 2)
    assert message in str(refusal(body, kind))


# Floods, each as one unit that fills a body.
FLOODS = [
    (MULTIPART, b"", part(b"", b"a")),
    (MULTIPART, part()[:-2], b"\r\n--xy"),
    (MULTIPART, part()[:-2], b"\r\n--x\r"),
    (MULTIPART, b"", b"\r\n-"),
    (MULTIPART, b"--x\r\n", b"A: b\r\n"),
    (FORMS[1], b"", b"a=b&"),
    (FORMS[1], b"", b"&"),
    (FORMS[1], b"user=", b"%41"),
]


@pytest.mark.parametrize(("kind", "head", "unit"), FLOODS)
def test_a_flood_is_refused_and_takes_no_memory(kind: str, head: bytes, unit: bytes) -> None:
    body = head + unit * (4 * 2**20 // len(unit))
    refusal(b"", MULTIPART.replace("=x", "="))  # what is built once
    tracemalloc.start()
    try:
        refusal(body, kind)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


def text(more: str = "", header: str = "X: y") -> tuple[str, bytes]:
    """A form of one part, with `more` beside its name."""
    return MULTIPART, form(part(b"a", b"prompt", more.encode(), header.encode()))


# Where a client may name a charset.
PLACES: dict[str, Callable[[str], tuple[str, bytes]]] = {
    "a form": lambda name: (f"{MULTIPART}; charset={name}", form(part())),
    "a URL-encoded form": lambda name: (f"{FORMS[1]}; charset={name}", b"prompt=a"),
    "a text": lambda name: text("", f"Content-Type: text/plain; charset={name}"),
    "a file": lambda name: text('; filename="a"', f"Content-Type: a/b; charset={name}"),
    "a file's name": lambda name: text(f"; filename=a; filename*={name}''b"),
    "a part's name": lambda name: text(f"; name*={name}''b"),
    "an encoded word": lambda name: text(f'; filename="=?{name}?Q?a?="'),
    "JSON": lambda name: (f"application/json; charset={name}", b"{}"),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_charset_is_looked_up(tiny_settings: AppSettings, place: str) -> None:
    searched: list[str] = []
    search = searched.append  # returns None: there is no such codec
    codecs.register(search)
    client = harness(tiny_settings).client
    try:
        for path in (EDITS, "/runsync"):
            kind, body = PLACES[place](f"unknown-{place.replace(' ', '-')}")
            response = client.post(path, content=body, headers={"content-type": kind})
            assert 400 <= response.status_code < 500
    finally:
        codecs.unregister(search)
    assert searched == []


@pytest.mark.parametrize("charset", ["utf-16", "utf-7", "punycode", "idna", "latin-2", "rot13", "undefined", ""])
def test_a_texts_charset_is_utf_8_and_the_part_is_named(tiny_settings: AppSettings, charset: str) -> None:
    kind, body = PLACES["a text"](charset)
    problem = error_of(harness(tiny_settings).client.post(EDITS, content=body, headers={"content-type": kind}), 400)
    assert problem["message"] == (
        f"The form cannot be read: prompt's charset is {charset!r}. Send UTF-8, or leave charset out."
    )
    assert problem["param"] == "prompt"


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", "US-ASCII"])
def test_a_text_may_name_utf_8(charset: str) -> None:
    assert read_form(*PLACES["a text"](charset)) == [("prompt", "a")]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (MULTIPART, form(part(b"\xff"))),
        (MULTIPART, form(part(b"\xed\xa0\x80"))),
        (FORMS[1], b"prompt=%ff"),
        (FORMS[1], b"prompt=\xff"),
    ],
)
def test_text_that_is_not_utf_8_is_refused(kind: str, body: bytes) -> None:
    problem = refusal(body, kind)
    assert (str(problem), problem.field) == ("prompt is not valid UTF-8. Send its text in UTF-8.", "prompt")
