"""Requests that are valid but for one extreme: a charset, a depth, a list's length, or a header that Serve reads."""

import random
from collections.abc import Callable
from encodings import aliases
from typing import Literal, get_args

from serve_app.serving.control_headers import CONTROL_HEADERS, CONTROL_PREFIX, REQUEST_ID_HEADER, session_header
from tests.fuzz.bodies import JSON, MAX_BODY_BYTES, OPENAI_PATHS, RUNPOD_PATHS, Call
from tests.fuzz.forms import BOUNDARY, CONTENT_TYPE, Part, multipart
from tests.ingress.openai_harness import DATA_URL, PNG

Extreme = Literal["charsets", "depths", "lengths", "headers"]

MAX_DEPTH, MAX_LENGTH = 2000, 100_000

_CHARSETS = sorted(
    {*aliases.aliases, *aliases.aliases.values(), "undefined", "idna", "punycode", "nowhere", "\xff", ""}
)
_FIELDS = ("image", "images", "url", "prompt", "views", "seed", "size", "quality", "user", "webhook", "policy", "x")
_LEVELS = (("[", "]"), ('{"a":', "}"), ("[", ""), ('[{"azimuth":', "}]"))
_ITEMS = ("0", "{}", '""', "null", "[]", '{"azimuth": 45}', '{"image_url": "a"}', f'"{DATA_URL}"')
_NAMES = sorted({*CONTROL_HEADERS, session_header(), REQUEST_ID_HEADER, f"{CONTROL_PREFIX}x", "idempotency-key"})


def make(kind: Extreme, rng: random.Random) -> Call:
    """A request with an extreme of this kind."""
    return _MAKERS[kind](rng)


def _charset(rng: random.Random) -> Call:
    charset = rng.choice(_CHARSETS)
    if charset.isascii() and rng.random() < 0.3:
        charset = charset.replace("_", "-").upper()
    named = charset.encode("latin-1")
    text = rng.choice(("turn it", "é", "\ud800", "+2AA-", "a" * 10_000)).encode("utf-8", "surrogatepass")
    kind, headers, more = CONTENT_TYPE, [b"Content-Type: text/plain"], b""
    match rng.randrange(7):
        case 0:
            kind += f"; charset={charset}"
        case 1:
            kind = kind.replace(";", f'; charset="{charset}";')
        case 2:
            kind = f"application/x-www-form-urlencoded; charset={charset}"
            return Call(rng.choice(OPENAI_PATHS), kind, b"prompt=" + text + b"&url=" + DATA_URL.encode())
        case 3:
            body = b'{"prompt": "%s", "image": "%s"}' % (text, DATA_URL.encode())
            path = rng.choice(OPENAI_PATHS + RUNPOD_PATHS)
            return Call(path, f"{JSON}; charset={charset}", body if path in OPENAI_PATHS else b'{"input": %s}' % body)
        case 4:
            headers = [b"Content-Type: text/plain; charset=" + named]
        case 5:
            more = b"; filename*=" + named + b"''a"
        case _:
            more = b"; name*=" + named + b"''prompt"
    head = b'Content-Disposition: form-data; name="prompt"' + more
    prompt = b"\r\n".join((b"--" + BOUNDARY, head, *headers, b"", text, b""))
    return Call(rng.choice(OPENAI_PATHS), kind, prompt + multipart([Part(b"image", PNG, b"a.png")]))


def _depth(rng: random.Random) -> Call:
    begin, end = rng.choice(_LEVELS)
    depth = rng.randint(1, MAX_DEPTH)
    return _with_value(rng, begin * depth + "1" + end * depth)


def _length(rng: random.Random) -> Call:
    item = rng.choice(_ITEMS)
    length = min(MAX_LENGTH, int(1.25 ** rng.randint(0, 52)) - 1, MAX_BODY_BYTES // len(item))
    return _with_value(rng, f"[{','.join([item] * length)}]")


def _with_value(rng: random.Random, value: str) -> Call:
    """A request with a value of JSON in a field, or beside its fields; once in ten it is the whole body."""
    field = rng.choice(_FIELDS)
    fields = f'"prompt": "x", "image": "{DATA_URL}", "{field}": {value}'
    match rng.randrange(10):
        case 0:
            return Call(rng.choice(OPENAI_PATHS + RUNPOD_PATHS), JSON, value.encode())
        case 1 | 2:
            return Call(
                rng.choice(RUNPOD_PATHS), JSON, f'{{"input": {{"image": "{DATA_URL}"}}, "{field}": {value}}}'.encode()
            )
        case 3 | 4 | 5:
            return Call(rng.choice(RUNPOD_PATHS), JSON, f'{{"input": {{{fields}}}}}'.encode())
        case 6 | 7:
            return Call(rng.choice(OPENAI_PATHS), JSON, f"{{{fields}}}".encode())
        case _:
            parts = [Part(field.encode(), value.encode()), Part(b"image", PNG, b"a.png")]
            return Call(rng.choice(OPENAI_PATHS), CONTENT_TYPE, multipart(parts))


def _headers(rng: random.Random) -> Call:
    headers = []
    for _ in range(rng.choice((1, 1, 2, 5, 101))):
        name = rng.choice(_NAMES)
        if rng.random() < 0.3:
            name = name.replace("-", "_").title()
        length = rng.choice((0, 1, 5, 40, 255, 8000, 9000))
        value = rng.choice((rng.randbytes(length), b"?1", b"1", b"\xff" * length, b"a" * length))
        headers.append((name.encode(), value))
    body = b'{"input": {"prompt": "x", "image": "%s"}}' % DATA_URL.encode()
    return Call(rng.choice(RUNPOD_PATHS), JSON, body, headers=tuple(headers))


_MAKERS: dict[Extreme, Callable[[random.Random], Call]] = {
    "charsets": _charset,
    "depths": _depth,
    "lengths": _length,
    "headers": _headers,
}
KINDS: tuple[Extreme, ...] = get_args(Extreme)
