"""Bodies of requests: read off the event loop if they are large, and released before a response is waited for; JSON
within limits that are checked before anything is built from it."""

import asyncio
import json
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from serve_app.errors import InvalidInput, UnknownEncoding
from serve_app.ingress.limits.requests import too_large
from serve_app.ingress.parsing.validation import NOT_JSON, NOT_UTF_8, echo, from_validation

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

SMALL_BODY_BYTES = 64 * 2**10
"""Up to this size, a body is read on the event loop."""

MAX_JSON_DEPTH = 32
"""Levels of lists and objects in a request's JSON. No request needs more than five."""
MAX_JSON_VALUES = 10_000
"""Of all kinds. A thousand camera poses are 4,000."""
MAX_JSON_UNQUOTED_BYTES = 256 * 2**10
"""Outside of strings: numbers, brackets and white space."""
MAX_ESCAPES = 2**20
"""In JSON and in URL-encoded forms. In a picture of 20 MiB, one character of 64 is a slash, which PHP escapes."""
MAX_NON_ASCII_BYTES = 2**20
"""Of UTF-8 in one text. Pictures need none, since base64 and URLs are ASCII."""

_IDENTITY, _COMPRESSED = ("", "identity"), ("gzip", "x-gzip", "deflate")
_ASCII = bytes(range(128))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


class BodyReader:
    """Reads large bodies one at a time on a thread of its own. More threads would not be faster, since parsers hold the
    interpreter's lock, and each would keep the event loop waiting longer for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="body")

    async def read(self, request: Request, parse: Callable[[bytes], T], max_body_bytes: int) -> T:
        """What `parse` returns for the request's body.

        Args:
            max_body_bytes: of the body after it is decompressed.

        Raises:
            ClientDisconnect: the client disconnected before the body was complete.
            UnknownEncoding: it has another Content-Encoding than gzip or deflate.
            BodyTooLarge: it is too large when it is decompressed.
        """
        body, encoding = await request.body(), request.headers.get("content-encoding", "").strip().lower()
        if encoding not in (*_IDENTITY, *_COMPRESSED):
            raise UnknownEncoding(f"Content-Encoding must be gzip or deflate, got {echo(encoding)}. Send it as it is.")
        if encoding in _IDENTITY and len(body) <= SMALL_BODY_BYTES:
            return parse(body)

        def read() -> T:
            return parse(body if encoding in _IDENTITY else decompressed(body, max_body_bytes))

        return await asyncio.get_running_loop().run_in_executor(self._thread, read)


class LateResponse(Response):
    """For a response that is waited for. While a route runs, FastAPI keeps the request's body in memory, as bytes and
    as a model; when it has returned, nothing does.

    Args:
        make: awaited instead of sending this response. Its exceptions reach the same handlers as a route's.
    """

    def __init__(self, make: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._make()
        await response(scope, receive, send)


def decompressed(body: bytes, max_body_bytes: int) -> bytes:
    """A body that is compressed by gzip or deflate.

    Raises:
        InvalidInput: it is damaged.
        BodyTooLarge: there are more bytes than are allowed.
    """
    # zlib's format (RFC 1950) or gzip's; and what some clients send as deflate, without a header.
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        stream = zlib.decompressobj(window)
        try:
            content = stream.decompress(body, max_body_bytes + 1)
        except zlib.error:
            continue
        if len(content) > max_body_bytes:
            raise too_large(max_body_bytes)
        if stream.eof and not stream.unused_data:
            return content
    raise InvalidInput("The body is not what its Content-Encoding says. Send it whole, or uncompressed.")


def read_model(model: type[M], body: bytes) -> M:
    """A body that is JSON, as its model.

    Raises:
        InvalidInput: it is not valid JSON, beyond a limit, or a field is wrong.
    """
    return validated(model, read_json(body))


def validated(model: type[M], fields: object) -> M:
    """`fields` as their model.

    Raises:
        InvalidInput: naming the first field that is wrong.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        # Located as FastAPI does it, so that a field called `query` is not mistaken for a part of the request.
        raise from_validation([{**first, "loc": ("body", *first["loc"])}], model) from None


def read_json(body: bytes) -> Any:
    """The value of a body that is JSON in UTF-8. Control characters in strings are allowed: shell scripts, the users'
    documented one among them, paste the output of GNU `base64` with its line breaks into a JSON string.

    Raises:
        InvalidInput: it is not valid JSON, or beyond a limit.
    """
    check_json(body)
    try:
        return json.loads(body.decode("utf-8-sig"), strict=False)
    except UnicodeDecodeError:
        raise InvalidInput(NOT_UTF_8) from None
    except ValueError:
        raise InvalidInput(NOT_JSON) from None


def check_json(body: bytes, field: str | None = None) -> None:
    """Check the number of a JSON text's values and how deep they are nested, before anything is built from it. All
    loops are in C and linear, since a body of 20 MiB may consist of quotes or brackets.

    Args:
        field: the form's field that holds it; None: it is the whole body.

    Raises:
        InvalidInput: it is beyond one of this module's limits.
    """
    what = field or "The body"
    check_text(body, field)
    check_escapes(body, b"\\", field)
    # Without escapes, every quotation mark begins or ends a string. A picture in base64 has none.
    text = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    too_many = InvalidInput(f"{what} has more than {MAX_JSON_VALUES} values. Send fewer.", field)
    if text.count(b'"') > 4 * MAX_JSON_VALUES:  # an object's entry has at most four
        raise too_many
    unquoted = b"".join(text.split(b'"')[::2])
    if _is_deep(unquoted):
        raise InvalidInput(
            f"{what} is nested more than {MAX_JSON_DEPTH} levels deep. Send flat lists and objects, as /docs shows "
            "them.",
            field,
        )
    if sum(map(unquoted.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:  # each value follows one of them
        raise too_many
    if len(unquoted) > MAX_JSON_UNQUOTED_BYTES:
        raise InvalidInput(
            f"{what} has more than {MAX_JSON_UNQUOTED_BYTES} bytes outside of strings. Leave out white space, and send "
            "shorter numbers.",
            field,
        )


def _is_deep(unquoted: bytes) -> bool:
    # A body within MAX_JSON_VALUES has no more brackets than this; the rest need not be examined.
    brackets = unquoted.translate(_ONE_KIND, _NO_BRACKETS)[: 3 * MAX_JSON_VALUES]
    for _ in range(MAX_JSON_DEPTH):
        num_before, brackets = len(brackets), brackets.replace(b"[]", b"")
        if len(brackets) == num_before:
            break
    # Unpaired brackets are not valid JSON, but the parser would still nest that deep.
    return b"[]" in brackets or brackets.count(b"[") > MAX_JSON_DEPTH


def check_text(text: bytes, field: str | None = None) -> None:
    """Check the number of bytes outside ASCII, which are slow to decode.

    Raises:
        InvalidInput: it has more than `MAX_NON_ASCII_BYTES`.
    """
    if (
        len(text) > MAX_NON_ASCII_BYTES
        and not text.isascii()
        and len(text.translate(None, _ASCII)) > MAX_NON_ASCII_BYTES
    ):
        raise InvalidInput(
            f"{field or 'The body'} has more than {MAX_NON_ASCII_BYTES} bytes outside ASCII. Shorten its texts; a "
            "picture is sent in base64.",
            field,
        )


def check_escapes(text: bytes, sign: bytes, field: str | None = None) -> None:
    """Check the number of escapes, each of which begins with `sign`.

    Raises:
        InvalidInput: it has more than `MAX_ESCAPES`.
    """
    if text.count(sign) > MAX_ESCAPES:
        raise InvalidInput(
            f"{field or 'The body'} has more than {MAX_ESCAPES} escapes. Send the characters themselves, or a picture "
            "as a file in a multipart form.",
            field,
        )
