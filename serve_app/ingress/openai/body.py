"""The body of a request, a form or JSON, as checked fields and pictures in order."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app.errors import EditCancelled, InvalidInput
from serve_app.ingress.openai.form import FORMS, Part, read_form
from serve_app.ingress.openai.request import OpenAIEdit, OpenAIForm, OpenAIJson
from serve_app.ingress.parsing.bodies import BodyReader, check_json, read_json, validated
from serve_app.ingress.parsing.fields import Lora, View
from serve_app.ingress.parsing.validation import echo, echo_name
from serve_app.ingress.pictures.prepare import PictureSource

_MAX_NUMBER_CHARS = 400
"""Of a number in a form. More than any number needs that a field takes."""

_MAX_BLANKS = 100
"""Before the brace of a JSON object."""

_TEXT = "text/plain"
"""What browsers' `fetch` calls a body that is a text."""

_NULLS = re.compile("null|undefined|none", re.IGNORECASE)
"""Texts by which clients write an absent value in a form: JavaScript's null and undefined, Python's None."""

_FORM_PICTURES = ("image", "image[]", "url", "url[]")
_LORA_PARTS = ("loras[][name]", "loras[][weight]")
_FORM_FIELDS = OpenAIForm.model_fields | dict(zip(_LORA_PARTS, Lora.model_fields.values(), strict=True))
_JSON_PICTURES = ("images", "image", "url")


@dataclass(frozen=True)
class OpenAIBody:
    """The checked fields and the pictures of a body."""

    edit: OpenAIEdit
    pictures: tuple[PictureSource, ...]


async def read_body(request: Request, bodies: BodyReader, max_body_bytes: int) -> OpenAIBody:
    """The body by its Content-Type; without one it is JSON.

    Raises:
        InvalidInput: the body cannot be read, or a field of it is wrong.
        EditCancelled: the client disconnected before the body was complete.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("", _TEXT, "application/json", *FORMS):
        raise InvalidInput(f"Content-Type must be multipart/form-data or application/json, got {echo(kind)}.")
    try:
        parse = partial(_from_form, content_type) if kind in FORMS else _from_json
        return await bodies.read(request, parse, max_body_bytes)
    except ClientDisconnect as problem:
        raise EditCancelled("The connection closed before the body was complete.") from problem


def _from_form(content_type: str, body: bytes) -> OpenAIBody:
    # curl calls all data a URL-encoded form, unless -H names another type. No such form begins with a brace.
    if FORMS[1] in content_type.lower() and body[:_MAX_BLANKS].lstrip().startswith(b"{"):
        return _from_json(body)
    return _from_parts(read_form(content_type, body))


def _from_parts(parts: Sequence[Part]) -> OpenAIBody:
    pictures = [
        (name.removesuffix("[]"), content)
        for name, content in parts
        if name in _FORM_PICTURES and content != "" and not _is_null(content)
    ]
    fields = _flattened_loras(parts)
    for name, content in parts:
        if name in (*_FORM_PICTURES, *_LORA_PARTS):
            continue
        if name in fields:
            shown = echo_name(name)
            raise InvalidInput(f"{shown} comes more than once. Give it once.", shown)
        fields[name] = _value_of(name, content)
    return OpenAIBody(validated(OpenAIForm, fields), _numbered(pictures))


def _flattened_loras(parts: Sequence[Part]) -> dict[str, object]:
    """The `loras` of OpenAI's Python client, which sends the names of all, and the weights of those that have one.

    Raises:
        InvalidInput: some have a weight, and it is unknown which.
    """
    names, weights = ([_value_of(name, content) for name, content in parts if name == part] for part in _LORA_PARTS)
    if not names and not weights:
        return {}
    if weights and len(weights) != len(names):
        raise InvalidInput(
            "loras: a form like this does not say whose weight is missing. Give each a weight, or none, or send loras "
            "as JSON text.",
            "loras",
        )
    rows = zip(names, weights or [None] * len(names), strict=True)
    return {"loras": [{"name": name, "weight": weight} for name, weight in rows]}


def _from_json(body: bytes) -> OpenAIBody:
    fields = read_json(body)
    edit = validated(OpenAIJson, fields)
    pictures = [(name, text) for name in fields if name in _JSON_PICTURES for text in edit.texts(name)]
    return OpenAIBody(edit, _numbered(pictures))


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
    if name != "prompt" and (not content or (name != "negative_prompt" and _is_null(content))):
        return None
    known = _FORM_FIELDS.get(name)
    return content if known is None else _READERS.get(known.annotation, _text)(name, content)


def _is_null(content: str | bytes) -> bool:
    return isinstance(content, str) and _NULLS.fullmatch(content) is not None


def _text(name: str, text: str) -> object:
    return text


def _number(name: str, text: str) -> object:
    try:
        value = json.loads(text) if len(text) <= _MAX_NUMBER_CHARS else text
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def _list(name: str, text: str) -> object:
    check_json(text.encode(), name)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, list) else text


def _flag(name: str, text: str) -> object:
    return {"true": True, "false": False}.get(text[:6].lower(), text)


_READERS: dict[object, Callable[[str, str], object]] = {
    int | None: _number,
    float | None: _number,
    bool | None: _flag,
    list[View] | None: _list,
    list[Lora] | None: _list,
}
