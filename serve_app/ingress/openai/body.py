"""The body of a request, a form or JSON, as checked fields and pictures in order."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.config import LimitSettings
from serve_app.errors import EditCancelled, InvalidInput
from serve_app.ingress.fields import View
from serve_app.ingress.openai.request import OpenAIEdit, OpenAIForm, OpenAIJson
from serve_app.ingress.prepare import PictureSource
from serve_app.ingress.validation import check_depth, echo, echo_name, from_validation, read_json

E = TypeVar("E", bound=OpenAIEdit)

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_PARTS = 100
"""Of files, and of texts. More than any edit takes, so that our own check rejects too many pictures."""

_MAX_NUMBER_CHARS = 400
"""Of a number in a form. More than any number needs that a field takes."""

_FORM_PICTURES = ("image", "image[]", "url", "url[]")
_JSON_PICTURES = ("images", "image", "url")


@dataclass(frozen=True)
class OpenAIBody:
    """The checked fields and the pictures of a body."""

    edit: OpenAIEdit
    pictures: tuple[PictureSource, ...]


async def read_body(request: Request, limits: LimitSettings) -> OpenAIBody:
    """The body by its Content-Type; without one it is JSON.

    Raises:
        InvalidInput: the body cannot be read, or a field of it is wrong.
        EditCancelled: the client disconnected before the body was complete.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind in FORMS:
            return _from_form(await _parts(request, limits))
        if kind in ("", "application/json"):
            return _from_json(await request.body())
    except ClientDisconnect as problem:
        raise EditCancelled("The connection closed before the body was complete.") from problem
    raise InvalidInput(f"Content-Type must be multipart/form-data or application/json, got {echo(kind)}.")


async def _parts(request: Request, limits: LimitSettings) -> list[tuple[str, str | bytes]]:
    """The parts of a form with their names, in order."""
    _check_charset(request.headers["content-type"])
    # Starlette's default limit for texts is 1 MB, and data URLs are texts.
    form = request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=limits.max_body_bytes)
    try:
        async with form as parts:
            return [(name, await _content(part)) for name, part in parts.multi_items()]
    except HTTPException as problem:
        if problem.status_code != 400:
            raise
        raise InvalidInput(f"The form cannot be read: {problem.detail}") from None
    except ValueError:  # such as the parser's for a broken urlencoded form
        raise InvalidInput("The form cannot be read: it is not a valid form.") from None


def _check_charset(content_type: str) -> None:
    """Python has codecs that are slow, that make lone surrogates, or that are no text encodings; and it keeps every
    unknown name that it looks up. So the name is compared, and found as Starlette finds it."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in ("utf-8", "utf8"):
        raise InvalidInput(
            f"The form cannot be read: its charset is {echo(charset)}. Send UTF-8, or leave charset out."
        )


async def _content(part: str | UploadFile) -> str | bytes:
    if isinstance(part, str):
        return part
    # Browsers send an empty file input as an empty file without a name.
    return await part.read() if part.size or part.filename else ""


def _from_form(parts: Sequence[tuple[str, str | bytes]]) -> OpenAIBody:
    pictures = [
        (name.removesuffix("[]"), content) for name, content in parts if name in _FORM_PICTURES and content != ""
    ]
    fields: dict[str, object] = {}
    for name, content in parts:
        if name in _FORM_PICTURES:
            continue
        if name in fields:
            shown = echo_name(name)
            raise InvalidInput(f"{shown} comes more than once. Give it once.", shown)
        fields[name] = _value_of(name, content)
    return OpenAIBody(_checked(OpenAIForm, fields), _numbered(pictures))


def _from_json(body: bytes) -> OpenAIBody:
    fields = read_json(body)
    edit = _checked(OpenAIJson, fields)
    pictures = [(name, text) for name in fields if name in _JSON_PICTURES for text in edit.texts(name)]
    return OpenAIBody(edit, _numbered(pictures))


def _checked(model: type[E], fields: object) -> E:
    try:
        return model.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        # Located as FastAPI does it, so that a field called `query` is not mistaken for a part of the request.
        raise from_validation([{**first, "loc": ("body", *first["loc"])}], model) from None


def _numbered(pictures: Sequence[tuple[str, str | bytes]]) -> tuple[PictureSource, ...]:
    """Pictures with their field's name, and an index where several have the same name."""
    totals, seen, sources = Counter(name for name, _ in pictures), Counter[str](), []
    for name, content in pictures:
        sources.append(PictureSource(f"{name}[{seen[name]}]" if totals[name] > 1 else name, content))
        seen[name] += 1
    return tuple(sources)


class _File:
    """A file in place of a text, as error messages show it."""

    def __repr__(self) -> str:
        return "a file"


def _value_of(name: str, content: str | bytes) -> object:
    """A form's part as JSON would have it: the number, boolean or list if its field is one and the text can be read so,
    else the text."""
    if isinstance(content, bytes):
        return _File()
    if not content and name != "prompt":
        return None
    known = OpenAIForm.model_fields.get(name)
    return content if known is None else _READERS.get(known.annotation, _text)(name, content)


def _text(name: str, text: str) -> object:
    return text


def _number(name: str, text: str) -> object:
    try:
        value = json.loads(text) if len(text) <= _MAX_NUMBER_CHARS else text
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def _list(name: str, text: str) -> object:
    check_depth(text, name)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, list) else text


def _flag(name: str, text: str) -> object:
    return {"true": True, "false": False}.get(text.lower(), text)


_READERS: dict[object, Callable[[str, str], object]] = {
    int | None: _number,
    float | None: _number,
    bool | None: _flag,
    list[View] | None: _list,
}
