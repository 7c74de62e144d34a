"""A request of either dialect, parsed: edits in common terms, pictures not yet decoded; and checks of its values."""

from dataclasses import dataclass
from typing import TypeVar

from serve_app.config import LimitSettings
from serve_app.edits.request import EditOptions, OutputFormat, PictureFormat
from serve_app.errors import InvalidInput
from serve_app.ingress.validation import echo

MAX_SEED = 2**63 - 1
FORMATS: dict[str, PictureFormat] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}

T = TypeVar("T")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class PictureSource:
    """A picture and the field it came in: a file's bytes, or a text that is base64, a data URL or an http(s) URL."""

    field: str
    content: bytes | str


@dataclass(frozen=True)
class ParsedRequest:
    """All edits of a request. Each set of pictures is decoded once.

    Attributes:
        pictures_of: for each edit, the index of its set of pictures.
        width: as requested; None: it follows from the height, the first picture and the configured area.
        height: likewise.
        side_fields: the names by which the dialect knows width and height.
        timeout_s: seconds from its arrival until it is given up; None: no such limit.
    """

    picture_sets: tuple[tuple[PictureSource, ...], ...]
    edits: tuple[EditOptions, ...]
    pictures_of: tuple[int, ...]
    width: int | None
    height: int | None
    side_fields: tuple[str, str] = ("input.width", "input.height")
    timeout_s: float | None = None


def within(value: N, low: N, high: N, field: str) -> N:
    """`value`, if it lies between both bounds.

    Raises:
        InvalidInput: naming the field and the bounds.
    """
    if not low <= value <= high:
        raise InvalidInput(f"{field} must be between {low} and {high}, got {echo(value)}.", field)
    return value


def default(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


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


def output_format(name: str | None, quality: int, field: str) -> OutputFormat:
    """The format called `name` (absent: png).

    Raises:
        InvalidInput: there is no such format.
    """
    wanted = default(name, "png").lower()
    if wanted not in FORMATS:
        raise InvalidInput(f"{field} must be png, jpeg or webp, got {echo(name)}.", field)
    return OutputFormat(FORMATS[wanted], quality)
