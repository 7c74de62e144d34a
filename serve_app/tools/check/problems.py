"""What is wrong with a file, by path, and the paths themselves."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from serve_app.errors import ConfigError

RawMapping = Mapping[object, object]


class Problems:
    """The problems found so far, by path. A place that already has one of an earlier, closer look is left at that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, at: str, message: str) -> None:
        self._lines.setdefault(at, []).append(" ".join(message.split()))

    def add_all(self, found: Mapping[str, list[str]]) -> None:
        for at, messages in found.items():
            if at not in self._lines:
                for message in dict.fromkeys(messages):
                    self.add(at, message)

    def as_error(self) -> ConfigError:
        lines = [f"{at}: {message}" if at else message for at, each in self._lines.items() for message in each]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        return ConfigError("\n".join([f"{self._path}: {count}", *lines]))


def entries(value: object, at: str) -> Iterator[tuple[str, object]]:
    """A list's entries, or the value itself, with their paths; nothing for null."""
    if isinstance(value, list):
        yield from ((f"{at}[{index}]", entry) for index, entry in enumerate(value))
    elif value is not None:
        yield at, value


def join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)


def suggest(word: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(known)})"
