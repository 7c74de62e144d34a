"""Field types of the wire: strict about kinds, so that `true` is no number and `"4"` no step count; null is absent."""

from typing import Annotated

from pydantic import BeforeValidator

from serve_app.ingress.problems import wrong


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


def _text(value: object) -> object:
    if value is None or isinstance(value, str):
        return value
    raise wrong("a string", value)


def _texts(value: object) -> object:
    if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise wrong("a list of strings", value)


def _text_or_texts(value: object) -> object:
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise wrong("a string or a list of strings", value)
    if value is None or isinstance(value, str | list):
        return value
    raise wrong("a string or a list of strings", value)


Number = Annotated[float | None, BeforeValidator(_number)]
Whole = Annotated[int | None, BeforeValidator(_whole)]
Flag = Annotated[bool | None, BeforeValidator(_flag)]
Text = Annotated[str | None, BeforeValidator(_text)]
Texts = Annotated[list[str] | None, BeforeValidator(_texts)]
TextOrTexts = Annotated[str | list[str] | None, BeforeValidator(_text_or_texts)]
