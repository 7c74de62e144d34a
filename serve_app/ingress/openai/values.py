"""A form's parts as JSON would have them, so that fields are checked alike in both encodings."""

import json
from collections.abc import Callable

from serve_app.ingress.openai.request import OpenAIForm
from serve_app.ingress.views import View


class _File:
    """A file where a text belongs, as an error message names it."""

    def __repr__(self) -> str:
        return "a file"


def value_of(name: str, content: str | bytes) -> object:
    """What a part says; the number, truth value or list where its field is one and its text can be read so."""
    if isinstance(content, bytes):
        return _File()
    if not content and name != "prompt":
        return None
    known = OpenAIForm.model_fields.get(name)
    return content if known is None else _READERS.get(known.annotation, str)(content)


def _json_of(*kinds: type) -> Callable[[str], object]:
    def read(text: str) -> object:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value if isinstance(value, kinds) else text

    return read


def _flag(text: str) -> object:
    return {"true": True, "false": False}.get(text.lower(), text)


_READERS: dict[object, Callable[[str], object]] = {
    int | None: _json_of(int, float),
    float | None: _json_of(int, float),
    bool | None: _flag,
    list[View] | None: _json_of(list),
}
