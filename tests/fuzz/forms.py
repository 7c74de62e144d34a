"""Mutated multipart and URL-encoded forms: parts, names, headers, boundaries, bytes."""

import base64
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote_from_bytes

from tests.fuzz import bytewise
from tests.fuzz.trees import ODD_NAMES, ODD_VALUES

BOUNDARY = b"----boundary-of-a-form"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY.decode()}"
_HEADERS = (
    b"Content-Type: image/png",
    b"Content-Type: text/plain; charset=utf-16",
    b"Content-Type: text/plain; charset=nowhere",
    b"Content-Transfer-Encoding: base64",
    b"Content-Disposition: form-data",
    b"X-" + b"h" * 9000 + b": 1",
    b"no colon here",
    b"\xff\xfe: \0",
)
_TYPES = (
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "b" * 5000,
    "multipart/form-data; charset=nowhere; boundary={}",
    "multipart/form-data; charset=utf-16; boundary={}",
    "multipart/form-data; charset=utf-7; boundary={}",
    "multipart/form-data; charset=punycode; boundary={}",
    "multipart/form-data; charset=undefined; boundary={}",
    'multipart/form-data; boundary="{}',
    "application/x-www-form-urlencoded; boundary={}",
)


@dataclass(frozen=True)
class Part:
    name: bytes
    content: bytes
    filename: bytes | None = None
    headers: tuple[bytes, ...] = ()


def make(rng: random.Random, fields: Mapping[str, Any], picture: bytes) -> tuple[str, bytes]:
    """Content-Type and body of a mutated form with these fields."""
    parts = parts_of(rng, fields, picture)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        parts = _changed(rng, parts, picture)
    if rng.random() < 0.1:
        body = b"&".join(
            quote_from_bytes(part.name).encode() + b"=" + quote_from_bytes(part.content).encode() for part in parts
        )
        content_type = "application/x-www-form-urlencoded"
    else:
        body = multipart(parts)
        content_type = rng.choice(_TYPES) if rng.random() < 0.05 else "multipart/form-data; boundary={}"
    if rng.random() < 0.3:
        body = bytewise.mutated(rng, body, [body, picture], most=2)
    return content_type.format(BOUNDARY.decode()), body


def parts_of(rng: random.Random, fields: Mapping[str, Any], picture: bytes) -> list[Part]:
    """The fields as text parts, and one picture as a file or as a data URL."""
    kept = {name: value for name, value in fields.items() if name not in ("image", "images", "url")}
    texts = [Part(name.encode(), _text(value)) for name, value in kept.items()]
    name = rng.choice((b"image", b"image[]"))
    as_text = Part(name, b"data:image/png;base64," + base64.b64encode(picture))
    file = Part(name, picture, b"a.png", (b"Content-Type: image/png",))
    return [*texts, file if rng.random() < 0.8 else as_text]


def _text(value: Any) -> bytes:
    text = value if isinstance(value, str) else repr(value).replace("'", '"').replace("True", "true")
    return text.encode("utf-8", "surrogatepass")


def _changed(rng: random.Random, parts: list[Part], picture: bytes) -> list[Part]:
    at = rng.randrange(len(parts)) if parts else 0
    if not parts:
        return [Part(b"prompt", b"x")]
    part, rest = parts[at], [*parts[:at], *parts[at + 1 :]]
    match rng.randrange(8):
        case 0:
            return rest
        case 1:
            return [*parts, *[part] * rng.choice((1, 4, 101))]
        case 2:
            return [*rest, part]
        case 3:
            part = replace(part, name=rng.choice(ODD_NAMES).encode("utf-8", "surrogatepass"))
        case 4:
            part = replace(part, filename=rng.choice((None, b"", b'a".png', b"a\0b", b"x" * 9000)))
        case 5:
            part = replace(part, headers=(*part.headers, rng.choice(_HEADERS)))
        case 6:
            part = replace(part, content=bytewise.mutated(rng, part.content, [picture]))
        case _:
            part = replace(part, content=_text(rng.choice(ODD_VALUES)(rng)))
    return [*rest, part]


def multipart(parts: list[Part]) -> bytes:
    """The body of a form with these parts."""
    return b"".join(map(_encoded, parts)) + b"--" + BOUNDARY + b"--\r\n"


def _encoded(part: Part) -> bytes:
    filename = b"" if part.filename is None else b'; filename="' + part.filename + b'"'
    head = b'Content-Disposition: form-data; name="' + part.name + b'"' + filename
    return b"\r\n".join((b"--" + BOUNDARY, head, *part.headers, b"", part.content, b""))
