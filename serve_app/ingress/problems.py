"""Validation errors in a person's words."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from serve_app.errors import InvalidInput, UnknownField

NOT_JSON = "The body is not valid JSON. Send one JSON object."
_MAX_ECHO_CHARS = 40


def echo(value: object) -> str:
    """A value as an error message may quote it: short, so that a picture is never echoed."""
    text = repr(value)
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
    location = [part for part in error["loc"] if part != "body"]
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
                field,
            )
        case _:
            return InvalidInput(f"{field} {error['msg']}.", field)


def _dotted(location: Iterable[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _unknown_field(location: Sequence[str | int], model: type[BaseModel]) -> UnknownField:
    *parents, name = location
    known = _fields_at(parents, model)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else f" Known fields: {', '.join(known)}."
    return UnknownField(f"Unknown field '{_dotted(location)}'.{hint}", _dotted(location))


def _fields_at(parents: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    for name in parents:
        annotation = model.model_fields[str(name)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
