"""A request's body, a form or JSON, as checked fields and pictures in their order of appearance."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app.config import LimitSettings
from serve_app.errors import EditCancelled, InvalidInput
from serve_app.ingress.asked import PictureSource
from serve_app.ingress.openai.request import OpenAIEdit, OpenAIForm, OpenAIJson
from serve_app.ingress.openai.values import value_of
from serve_app.ingress.validation import NOT_JSON, echo, from_validation

E = TypeVar("E", bound=OpenAIEdit)

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_PARTS = 100
"""Of either kind, files and texts: above any number of pictures that an edit takes, so that ours is the refusal."""

_FORM_PICTURES = ("image", "image[]", "url", "url[]")
_JSON_PICTURES = ("images", "image", "url")


@dataclass(frozen=True)
class OpenAIBody:
    """What came in a body."""

    edit: OpenAIEdit
    pictures: tuple[PictureSource, ...]


async def read_posted(request: Request, limits: LimitSettings) -> OpenAIBody:
    """The body by its Content-Type; without one it is JSON.

    Raises:
        InvalidInput: the body cannot be read, or a field of it is wrong.
        EditCancelled: the client went away before the body was whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind in FORMS:
            return _from_form(await _parts(request, limits))
        if kind in ("", "application/json"):
            return _from_json(await request.body())
    except ClientDisconnect as problem:
        raise EditCancelled("The connection closed before the body was whole.") from problem
    raise InvalidInput(f"Content-Type must be multipart/form-data or application/json, got {echo(kind)}.")


async def _parts(request: Request, limits: LimitSettings) -> list[tuple[str, str | bytes]]:
    """The parts of a form with their names, in order."""
    # Starlette refuses texts above 1 MB unless told otherwise, and data URLs are such texts.
    form = request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=limits.max_body_bytes)
    try:
        async with form as parts:
            return [(name, await _content(part)) for name, part in parts.multi_items()]
    except HTTPException as problem:
        if problem.status_code != 400:
            raise
        raise InvalidInput(f"The form cannot be read: {problem.detail}") from problem
    except ValueError as problem:  # a charset that Python knows and that cannot decode the part, for one
        raise InvalidInput("The form cannot be read: it is not valid multipart/form-data.") from problem


async def _content(part: str | UploadFile) -> str | bytes:
    if isinstance(part, str):
        return part
    # A file input that was left empty comes as an empty file without a name.
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
            raise InvalidInput(f"{name} comes more than once. Give it once.", name)
        fields[name] = value_of(name, content)
    return OpenAIBody(_checked(OpenAIForm, fields), _numbered(pictures))


def _from_json(body: bytes) -> OpenAIBody:
    try:
        fields = json.loads(body, strict=False)  # as in LenientRoute: shells leave line breaks in base64
    except (ValueError, RecursionError) as problem:
        raise InvalidInput(NOT_JSON) from problem
    edit = _checked(OpenAIJson, fields)
    pictures = [(name, text) for name in fields if name in _JSON_PICTURES for text in edit.texts(name)]
    return OpenAIBody(edit, _numbered(pictures))


def _checked(model: type[E], fields: object) -> E:
    try:
        return model.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        # Located as FastAPI does it, lest a field called `query` be taken for a part of the request.
        raise from_validation([{**first, "loc": ("body", *first["loc"])}], model) from None


def _numbered(pictures: Sequence[tuple[str, str | bytes]]) -> tuple[PictureSource, ...]:
    """Pictures under their field's name, with a number where there are several of that name."""
    totals, seen, given = Counter(name for name, _ in pictures), Counter[str](), []
    for name, content in pictures:
        given.append(PictureSource(f"{name}[{seen[name]}]" if totals[name] > 1 else name, content))
        seen[name] += 1
    return tuple(given)
