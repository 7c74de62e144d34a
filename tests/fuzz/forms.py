"""Multipart and url-encoded forms, mutated: their parts, their names, their headers, their boundaries, their bytes."""

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
    'multipart/form-data; boundary="{}',
    "application/x-www-form-urlencoded; boundary={}",
)


@dataclass(frozen=True)
class Part:
    name: bytes
    content: bytes
    filename: bytes | None = None
    headers: tuple[bytes, ...] = ()


def make(dice: random.Random, fields: Mapping[str, Any], picture: bytes) -> tuple[str, bytes]:
    """Content-Type and body of a form that says what `fields` say, mutated."""
    parts = parts_of(dice, fields, picture)
    for _ in range(dice.choice((0, 1, 1, 2, 3))):
        parts = _changed(dice, parts, picture)
    if dice.random() < 0.1:
        body = b"&".join(
            quote_from_bytes(part.name).encode() + b"=" + quote_from_bytes(part.content).encode() for part in parts
        )
        content_type = "application/x-www-form-urlencoded"
    else:
        body = multipart(parts)
        content_type = dice.choice(_TYPES) if dice.random() < 0.05 else "multipart/form-data; boundary={}"
    if dice.random() < 0.3:
        body = bytewise.mutated(dice, body, [body, picture], most=2)
    return content_type.format(BOUNDARY.decode()), body


def parts_of(dice: random.Random, fields: Mapping[str, Any], picture: bytes) -> list[Part]:
    """The fields as texts, and one picture as a file or as a text."""
    kept = {name: value for name, value in fields.items() if name not in ("image", "images", "url")}
    texts = [Part(name.encode(), _text(value)) for name, value in kept.items()]
    name = dice.choice((b"image", b"image[]"))
    as_text = Part(name, b"data:image/png;base64," + base64.b64encode(picture))
    file = Part(name, picture, b"a.png", (b"Content-Type: image/png",))
    return [*texts, file if dice.random() < 0.8 else as_text]


def _text(value: Any) -> bytes:
    text = value if isinstance(value, str) else repr(value).replace("'", '"').replace("True", "true")
    return text.encode("utf-8", "surrogatepass")


def _changed(dice: random.Random, parts: list[Part], picture: bytes) -> list[Part]:
    at = dice.randrange(len(parts)) if parts else 0
    if not parts:
        return [Part(b"prompt", b"x")]
    part, rest = parts[at], [*parts[:at], *parts[at + 1 :]]
    match dice.randrange(8):
        case 0:
            return rest
        case 1:
            return [*parts, *[part] * dice.choice((1, 4, 101))]
        case 2:
            return [*rest, part]
        case 3:
            part = replace(part, name=dice.choice(ODD_NAMES).encode("utf-8", "surrogatepass"))
        case 4:
            part = replace(part, filename=dice.choice((None, b"", b'a".png', b"a\0b", b"x" * 9000)))
        case 5:
            part = replace(part, headers=(*part.headers, dice.choice(_HEADERS)))
        case 6:
            part = replace(part, content=bytewise.mutated(dice, part.content, [picture]))
        case _:
            part = replace(part, content=_text(dice.choice(ODD_VALUES)(dice)))
    return [*rest, part]


def multipart(parts: list[Part]) -> bytes:
    """The body of a form with these parts."""
    return b"".join(map(_written, parts)) + b"--" + BOUNDARY + b"--\r\n"


def _written(part: Part) -> bytes:
    filename = b"" if part.filename is None else b'; filename="' + part.filename + b'"'
    head = b'Content-Disposition: form-data; name="' + part.name + b'"' + filename
    return b"\r\n".join((b"--" + BOUNDARY, head, *part.headers, b"", part.content, b""))
