"""Checks a file against pydantic models, and collects its problems by path."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from serve_app.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

RawMapping = Mapping[object, object]


class Problems:
    """The problems found so far, by path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, at: str, message: str) -> None:
        self._lines.setdefault(at, []).append(" ".join(message.split()))

    def add_all(self, found: Mapping[str, list[str]]) -> None:
        """Add the problems at paths that have none yet: those of earlier checks are more specific."""
        for at, messages in found.items():
            if at not in self._lines:
                for message in dict.fromkeys(messages):
                    self.add(at, message)

    def as_error(self) -> ConfigError:
        lines = [f"{at}: {message}" if at else message for at, each in self._lines.items() for message in each]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return ConfigError("\n".join([f"{self._path}: {count}", *lines]))


def find_unknown_keys(value: object, model: type[BaseModel], at: str, problems: Problems) -> None:
    """Report each key below `value` that its pydantic model lacks. Plain mapping fields may hold any key.

    `extra="forbid"` of `model_validate` does not replace this: pydantic drops it for models with an `__init__` of their
    own, as some of Serve's have.
    """
    if not isinstance(value, dict):
        return
    fields = _fields_by_key(model)
    for key, inner in value.items():
        here = join(at, key)
        field = fields.get(str(key))
        if field is None:
            problems.add(here, f"unknown key{suggest(str(key), fields)}")
        elif models := _models_in(field.annotation):
            for entry_at, entry in entries(inner, here):
                find_unknown_keys(entry, _closest(models, entry), entry_at, problems)


def _fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    fields = dict(model.model_fields)
    for name, field in model.model_fields.items():
        if field.alias is not None:
            fields[field.alias] = field
            if not model.model_config.get("populate_by_name"):
                del fields[name]
    return fields


def _models_in(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models within an annotation such as `Optional[List[Model]]` or `OneModel | Another`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _closest(models: list[type[BaseModel]], value: object) -> type[BaseModel]:
    """The member of a union that has the most keys of `value`; the first one in a tie."""
    keys = set(value) if isinstance(value, dict) else set()
    return max(models, key=lambda model: len(keys & _fields_by_key(model).keys()))


def validate(model: type[Model], value: RawMapping, at: str, problems: Problems) -> Model | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found: dict[str, list[str]] = {}
        for each in error.errors(include_url=False):
            place = _locate(at, each["loc"], value)
            found.setdefault(place, []).append(each["msg"].removeprefix("Value error, "))
        problems.add_all(found)
    except (AttributeError, TypeError) as error:
        # Serve's "before" validators see unchecked values and may crash on them.
        problems.add(at, f"holds a value of a wrong type, on which Serve's validation fails: {error}")
    return None


def _locate(at: str, location: tuple[int | str, ...], value: object) -> str:
    """The path of an error, without the names of union members that pydantic adds."""
    for index, key in enumerate(location, start=1):
        if isinstance(value, dict):
            if key not in value and index < len(location):
                continue
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
        else:
            break
        at = f"{at}[{key}]" if isinstance(key, int) else join(at, key)
    return at


def entries(value: object, at: str) -> Iterator[tuple[str, object]]:
    """Yield path and value of each entry of a list, or of a value that is no list; nothing for null."""
    if isinstance(value, list):
        yield from ((f"{at}[{index}]", entry) for index, entry in enumerate(value))
    elif value is not None:
        yield at, value


def join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


def suggest(word: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
