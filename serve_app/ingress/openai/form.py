"""Forms as named parts, multipart (RFC 7578) or URL-encoded. Every part is found and bounded before it is decoded."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from serve_app.errors import InvalidInput
from serve_app.ingress.parsing.bodies import check_escapes, check_text
from serve_app.ingress.parsing.validation import echo, echo_name

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_PARTS = 100
"""Of files, and of texts. More than any edit takes, so that our own check rejects too many pictures."""
MAX_PART_HEAD_BYTES = 4 * 2**10
MAX_SEMICOLONS = 64
"""In a part's header; they separate its parameters. The parser's time grows with their square."""
MAX_BOUNDARY_BYTES = 256

_FILE_TYPE = re.compile(rb"image/|application/octet-stream", re.IGNORECASE)
_HEAD_BYTES = 32
"""Every kind of picture has a NUL among its first ones, and no text has."""
_CODECS = {
    **dict.fromkeys(("utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    # Java's clients give texts these.
    **dict.fromkeys(("iso-8859-1", "latin-1", "latin1"), "latin-1"),
    **dict.fromkeys(("windows-1252", "cp1252"), "cp1252"),
}
_INVALID = "Invalid multipart data."

Part = tuple[str, str | bytes]
"""A part's name, and its text or its file."""


def read_form(content_type: str, body: bytes) -> list[Part]:
    """The parts of a form, in order. An empty file without a name, as browsers send it, is an empty text.

    Raises:
        InvalidInput: it is not a valid form, not in UTF-8, or beyond a limit.
    """
    kind, options = parse_options_header(content_type)
    _require_known(_charset(options))
    if kind.decode() == FORMS[0]:
        return _counted(_multipart(body, options.get(b"boundary", b"")))
    return _counted(_urlencoded(body))


def _unreadable(reason: str, field: str | None = None) -> InvalidInput:
    return InvalidInput(f"The form cannot be read: {reason}", field)


def _charset(options: dict[bytes, bytes]) -> str:
    return options.get(b"charset", b"utf-8").decode("latin-1").lower()


def _require_known(charset: str, part: str | None = None) -> None:
    """Python has codecs that are slow, that make lone surrogates, or that are no text encodings; and it keeps every
    unknown name that it looks up. So the name is only compared."""
    if charset not in _CODECS:
        whose = "its" if part is None else f"{part}'s"
        raise _unreadable(f"{whose} charset is {echo(charset)}. Send UTF-8, or leave charset out.", part)


def _counted(parts: Iterable[Part]) -> list[Part]:
    counts, taken = Counter[bool](), []
    for part in parts:
        is_file = isinstance(part[1], bytes)
        counts[is_file] += 1
        if counts[is_file] > MAX_PARTS:
            raise _too_many("files" if is_file else "fields")
        taken.append(part)
    return taken


def _too_many(parts: str) -> InvalidInput:
    return _unreadable(f"Too many {parts}. Maximum number of {parts} is {MAX_PARTS}.")


def _multipart(body: bytes, boundary: bytes) -> Iterator[Part]:
    if not boundary:
        raise _unreadable("Missing boundary in multipart.")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise _unreadable(f"its boundary has more than {MAX_BOUNDARY_BYTES} characters.")
    if not body:
        return
    delimiter = b"\r\n--" + boundary
    at = body.find(delimiter[2:])
    if at < 0 or body[:at].strip(b"\r\n"):
        raise _unreadable(_INVALID)
    at += len(delimiter) - 2
    while not body.startswith(b"--", at):
        begin = body.find(b"\r\n", at, at + MAX_PART_HEAD_BYTES)
        end = body.find(delimiter, begin)
        if min(begin, end) < 0 or body[at:begin].strip(b" \t"):
            raise _unreadable(_INVALID)
        yield _part(body, begin + 2, end)
        at = end + len(delimiter)


def _part(body: bytes, begin: int, end: int) -> Part:
    """The part in `body[begin:end]`."""
    head_end = body.find(b"\r\n\r\n", begin, min(end, begin + MAX_PART_HEAD_BYTES))
    if head_end < 0:
        raise _unreadable(f"a part has no header of at most {MAX_PART_HEAD_BYTES} bytes, followed by an empty line.")
    headers = dict(map(_header, body[begin:head_end].split(b"\r\n")))
    options = _options(headers.get(b"content-disposition", b""))
    if b"name" not in options:
        raise _unreadable('The Content-Disposition header field "name" must be provided.')
    name, content = _decoded_name(options[b"name"]), body[head_end + 4 : end]
    content_type = headers.get(b"content-type", b"")
    filename = options.get(b"filename", options.get(b"filename*"))
    # Some clients name no file, or name it only as RFC 5987 has it, which multipart/form-data does not allow.
    if filename or (content and (filename is not None or _is_file(content_type, content))):
        return name, content
    return name, _text(name, content, _charset(_options(content_type)))


def _is_file(content_type: bytes, content: bytes) -> bool:
    """Whether a part without a filename is a file. .NET, requests and curl's `-F image=<FILE` send no type either."""
    return bool(_FILE_TYPE.match(content_type)) or (not content_type and b"\0" in content[:_HEAD_BYTES])


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon:
        raise _unreadable(_INVALID)
    return name.lower(), value.strip()


def _options(header: bytes) -> dict[bytes, bytes]:
    if header.count(b";") > MAX_SEMICOLONS:
        raise _unreadable(f"a part's header has more than {MAX_SEMICOLONS} semicolons.")
    return parse_options_header(header)[1]


def _urlencoded(body: bytes) -> Iterator[Part]:
    check_escapes(body, b"%")
    if body.count(b"&") > MAX_PARTS:
        raise _too_many("fields")
    for piece in filter(None, body.split(b"&")):
        quoted_name, _, text = piece.replace(b"+", b" ").partition(b"=")
        name = _decoded_name(unquote_to_bytes(quoted_name))
        yield name, _text(name, unquote_to_bytes(text))


def _decoded_name(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")  # All fields have names in ASCII, so this is an unknown one.


def _text(name: str, text: bytes, charset: str = "utf-8") -> str:
    shown = echo_name(name)
    _require_known(charset, shown)
    check_text(text, shown)
    try:
        return text.decode(_CODECS[charset])
    except UnicodeDecodeError:
        valid = charset.upper()
        raise InvalidInput(f"{shown} is not valid {valid}. Send its text in UTF-8.", shown) from None
