"""Checks of values, and validation errors as messages that name the field and the fix."""

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from serve_app.config import LimitSettings
from serve_app.errors import InvalidInput, ServiceError, UnknownField

logger = logging.getLogger(__name__)

T = TypeVar("T")
N = TypeVar("N", int, float)

NOT_JSON = "The body is not valid JSON. Send one JSON object."
NOT_UTF_8 = "The body is not valid JSON: its text is not UTF-8. Send it in UTF-8."

_MAX_ECHO_CHARS = 40
_MAX_ECHO_BITS = 14_000  # Python writes no more than 4,300 digits.
# What other servers call our fields, and names that are too far from ours to be found by their letters.
_OTHER_NAMES = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "image_base64": "image",
    "image_url": "image",
    "image_urls": "images",
    "num_steps": "num_inference_steps",
    "quality": "output_quality",
    "steps": "num_inference_steps",
    "text": "prompt",
}
_OTHER_LORA_NAMES = {"path": "name", "scale": "weight", "strength": "weight"}
_MIN_LIKENESS = 0.66
"""Of a name and a field that is suggested for it, as difflib computes it."""
_PARTS_OF_A_REQUEST = ("body", "query", "path", "header")
# What pydantic's own checks expect, by the type of their error.
_EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "int_parsing": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
}


def echo(value: object) -> str:
    """A value as error messages quote it: of bounded length, so that a picture is never echoed, and escaped, so that
    it can be encoded. Takes only what is shown of a large or deeply nested value, and never raises."""
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > _MAX_ECHO_CHARS:
            break
    return _short(text)


def echo_name(name: str) -> str:
    """A client's field name as error messages quote it: likewise, without quotation marks."""
    return _short(repr(name[: _MAX_ECHO_CHARS + 1])[1:-1])


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ECHO_CHARS else f"{text[:_MAX_ECHO_CHARS]}…"


def _pieces(value: object) -> Iterator[str]:
    """What `repr` returns, piece by piece."""
    match value:
        case str() | bytes():
            yield repr(value[: _MAX_ECHO_CHARS + 1])
        case list() | tuple():
            yield from _enclosed("[]", ((item,) for item in value))
        case dict():
            yield from _enclosed("{}", value.items())
        case int() if value.bit_length() > _MAX_ECHO_BITS:
            yield "a huge number"
        case _:
            yield repr(value)


def _enclosed(brackets: str, entries: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield brackets[0]
    for index, entry in enumerate(entries):
        yield ", " if index else ""
        for part, each in enumerate(entry):
            yield ": " if part else ""
            yield from _pieces(each)
    yield brackets[1]


def wrong(expected: str, value: object) -> PydanticCustomError:
    """The error of a field validator: `must be EXPECTED, got VALUE`."""
    return PydanticCustomError(
        "wrong_value", "must be {expected}, got {value}", {"expected": expected, "value": echo(value)}
    )


def default(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def within(value: N, low: N, high: N, field: str) -> N:
    """`value`, if it is within the bounds.

    Raises:
        InvalidInput: naming the field and the bounds.
    """
    if not low <= value <= high:
        raise InvalidInput(f"{field} must be between {low} and {high}, got {echo(value)}.", field)
    return value


def checked_prompt(prompt: str, field: str, limits: LimitSettings) -> str:
    """`prompt`, if it is not too long.

    Raises:
        InvalidInput: naming the field and the limit.
    """
    if len(prompt) > limits.max_prompt_chars:
        raise InvalidInput(
            f"{field} has {len(prompt)} characters; at most {limits.max_prompt_chars} are allowed. Shorten it.", field
        )
    return prompt


def check_num_pictures(num_pictures: int, limits: LimitSettings) -> None:
    """Check the number of an edit's pictures, which are in the field `image`.

    Raises:
        InvalidInput: there are too many.
    """
    most = limits.max_pictures_per_edit
    if num_pictures > most:
        raise InvalidInput(f"{num_pictures} pictures; at most {most} can be references of one edit.", "image")


def unexpected(problem: Exception, where: str) -> ServiceError:
    """What clients see of an error that is not a ServiceError; the log has the details."""
    logger.error("unexpected error in %s", where, exc_info=problem)
    return ServiceError("Internal error; the server's log has the reason.")


def from_validation(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> InvalidInput:
    """The first of pydantic's errors as an InvalidInput.

    Args:
        errors: from `ValidationError.errors()`, with locations relative to `model`.
        model: its fields are the suggestions for an unknown field.
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
        case kind if kind in _EXPECTED:
            expected = _EXPECTED[kind].format(**error.get("ctx", {}))
            return InvalidInput(f"{field} must be {expected}, got {echo(error['input'])}.", field)
        case _:
            return InvalidInput(f"{field or 'The body'} {error['msg']}.", field or None)


def _dotted(location: Iterable[str | int]) -> str:
    path = ""
    for part in (part if isinstance(part, int) else echo_name(part) for part in location):
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _unknown_field(location: Sequence[str | int], model: type[BaseModel]) -> UnknownField:
    *parents, last = location
    known = _fields_at(parents, model)
    # Forms write lists and objects as `name[]` and `name[key]`.
    name = str(last).partition("[")[0]
    name = (_OTHER_LORA_NAMES if "weight" in known else _OTHER_NAMES).get(name, name)
    likely = difflib.get_close_matches(name[:_MAX_ECHO_CHARS], known, n=1, cutoff=_MIN_LIKENESS)
    close = [name] if name in known else likely
    hint = f" Did you mean '{close[0]}'?" if close else f" Known fields: {', '.join(sorted(known))}."
    return UnknownField(f"Unknown field '{_dotted(location)}'.{hint}", _dotted(location))


def _fields_at(parents: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    for name in parents:
        if isinstance(name, str):  # an index into a list stays in the model of its items
            model = _model_in(model.model_fields[name].annotation) or model
    # A field that has no effect or is refused has no type; it is no suggestion.
    return [name for name, field in model.model_fields.items() if field.annotation is not Any]


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model in an annotation: View in `list[View] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
