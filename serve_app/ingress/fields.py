"""Field types of the wire: strict about kinds, so that `true` is no number and `"4"` no step count; null is absent."""

import re
from typing import Annotated

from pydantic import BeforeValidator

from serve_app.ingress.validation import wrong

_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def _number(value: object) -> object:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")):
        return value
    raise wrong("a finite number", value)


def _whole(value: object) -> object:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise wrong("a whole number", value)


def _flag(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    raise wrong("true or false", value)


def _whole_characters(text: str) -> str:
    # JSON can escape one half of a surrogate pair; Python reads it, and no encoder takes it afterwards.
    if not text.isascii() and _HALF_CHARACTERS.search(text):
        raise wrong("text of whole characters", text)
    return text


def _text(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, str):
        return _whole_characters(value)
    raise wrong("a string", value)


def _texts(value: object) -> object:
    if value is None:
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [_whole_characters(item) for item in value]
    raise wrong("a list of strings", value)


def _text_or_texts(value: object) -> object:
    if value is None or isinstance(value, str):
        return _text(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return _texts(value)
    raise wrong("a string or a list of strings", value)


Number = Annotated[float | None, BeforeValidator(_number)]
Whole = Annotated[int | None, BeforeValidator(_whole)]
Flag = Annotated[bool | None, BeforeValidator(_flag)]
Text = Annotated[str | None, BeforeValidator(_text)]
Texts = Annotated[list[str] | None, BeforeValidator(_texts)]
TextOrTexts = Annotated[str | list[str] | None, BeforeValidator(_text_or_texts)]
