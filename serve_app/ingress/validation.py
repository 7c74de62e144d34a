"""Validation errors in a person's words."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from serve_app.errors import InvalidInput, UnknownField

NOT_JSON = "The body is not valid JSON. Send one JSON object."
_MAX_ECHO_CHARS = 40
_PARTS_OF_A_REQUEST = ("body", "query", "path", "header")
# pydantic's constraints, for parameters that are declared with them.
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "int_parsing": "a whole number",
}


def echo(value: object) -> str:
    """A value as an error message may quote it: short, so that a picture is never echoed."""
    return _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ECHO_CHARS else f"{text[:_MAX_ECHO_CHARS]}…"


def wrong(expected: str, value: object) -> PydanticCustomError:
    """The error of a field validator: `must be EXPECTED, got VALUE`."""
    return PydanticCustomError(
        "wrong_value", "must be {expected}, got {value}", {"expected": expected, "value": echo(value)}
    )


def from_validation(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> InvalidInput:
    """The first of pydantic's errors as one of ours.

    Args:
        errors: as given by `ValidationError.errors()`, with locations relative to `model`.
        model: where the names for "did you mean" are looked up.
    """
    error = errors[0]
    location = list(error["loc"])
    if location and location[0] in _PARTS_OF_A_REQUEST:
        del location[0]
    field = _dotted(location)
    match error["type"]:
        case "extra_forbidden":
            return _unknown_field(location, model)
        case "missing":
            return InvalidInput(f"{field or 'The body'} is required.", field)
        case "json_invalid":
            return InvalidInput(NOT_JSON)
        case "model_attributes_type" | "dict_type" | "model_type":
            what = field or "The body"
            return InvalidInput(
                f"{what} must be a JSON object (sent with Content-Type: application/json), got {echo(error['input'])}.",
                field or None,
            )
        case kind if kind in _BOUNDS:
            bound = _BOUNDS[kind].format(**error.get("ctx", {}))
            return InvalidInput(f"{field} must be {bound}, got {echo(error['input'])}.", field)
        case _:
            return InvalidInput(f"{field} {error['msg']}.".lstrip(), field or None)


def _dotted(location: Iterable[str | int]) -> str:
    path = ""
    for part in map(_shown, location):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _unknown_field(location: Sequence[str | int], model: type[BaseModel]) -> UnknownField:
    *parents, last = location
    known = _fields_at(parents, model)
    # Forms write lists and objects as `name[]` and `name[key]`.
    name = str(last).partition("[")[0]
    close = [name] if name in known else difflib.get_close_matches(name[:_MAX_ECHO_CHARS], known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else f" Known fields: {', '.join(sorted(known))}."
    return UnknownField(f"Unknown field '{_dotted(location)}'.{hint}", _dotted(location))


def _fields_at(parents: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    for name in parents:
        if isinstance(name, str):  # else an index into a list, whose items are of the model found already
            model = _model_in(model.model_fields[name].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model that an annotation is or holds, as `list[View] | None` holds View."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _shown(part: str | int) -> str | int:
    """A name that a client made up may be of any length, and hold what UTF-8 cannot."""
    return part if isinstance(part, int) else _short(repr(part)[1:-1])
