"""Which edits a load consists of: kinds with weights, read from a file, and the edits drawn from them."""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from serve_app.config import Settings
from serve_app.edits.camera import AZIMUTH_WORDS, CameraPose, camera_prompt
from serve_app.edits.sizes import Size
from serve_app.errors import UsageError
from serve_app.tools.bench.pictures import MORNING, draw_scene

MAX_REFERENCES = 4
JPEG_QUALITY = 90
PATCHES = 8
"""Coloured squares per side that make a picture unlike all others."""

AZIMUTHS = tuple(AZIMUTH_WORDS)
_SIZE = r"^[1-9][0-9]{1,3}x[1-9][0-9]{1,3}$"


class EditKind(Settings):
    """One kind of edits. Sizes are WIDTHxHEIGHT in pixels."""

    weight: float = Field(default=1.0, gt=0, description="How often it is drawn, relative to the other kinds.")
    size: str = Field(default="1024x1024", pattern=_SIZE, description="Of the output.")
    references: int = Field(default=1, ge=1, le=MAX_REFERENCES, description="Pictures of each edit.")
    reference_size: str | None = Field(default=None, pattern=_SIZE, description="Default: as `size`.")
    num_inference_steps: int = Field(default=4, ge=1, le=100)
    true_cfg_scale: float = Field(default=1.0, ge=0, description="Above 1, each step runs twice.")
    views: int = Field(default=1, ge=1, le=len(AZIMUTHS), description="Edits in a row that show the same picture.")
    previews: int = Field(default=0, ge=0, le=3, description="Above 0, the answer is streamed.")
    rewrite_prompt: bool = Field(default=False, description="Have the prompt rewritten.")
    prompt: str = "Change the time of day to sunset with warm light"
    fields: dict[str, Any] = Field(default={}, description="Further fields of the request, sent as they are.")

    @model_validator(mode="after")
    def _steps_for_previews(self) -> Self:
        if self.previews >= self.num_inference_steps:
            raise ValueError("previews must be less than num_inference_steps")
        return self

    @property
    def output(self) -> Size:
        return _size(self.size)

    @property
    def reference(self) -> Size:
        return _size(self.reference_size or self.size)


Mix = tuple[EditKind, ...]
"""At least one kind."""

_MIX = TypeAdapter(tuple[EditKind, ...])


def read_mix(file: Path | None) -> Mix:
    """The kinds in a YAML or JSON file, a list; without a file one kind with all defaults.

    Raises:
        UsageError: the file is no mix.
        OSError: it cannot be read.
    """
    if file is None:
        return (EditKind(),)
    try:
        with file.open(encoding="utf-8") as text:  # by whose name YAML's errors say where they are
            mix = _MIX.validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError, ValueError) as problem:
        raise UsageError(f"{file} is no list of kinds of edits: {_reason(problem)}.") from problem
    if not mix:
        raise UsageError(f"{file} is no list of kinds of edits: it is empty.")
    return mix


def _reason(problem: Exception) -> str:
    if not isinstance(problem, ValidationError):
        return str(problem)
    first = problem.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


@dataclass(frozen=True)
class LoadEdit:
    """One edit of a load. Its pictures and its prompt follow from its numbers.

    Attributes:
        number: its seed.
        picture: the number of its picture, which the views of one picture share.
        view: which of them it is, from 0 on.
    """

    kind: EditKind
    number: int
    picture: int
    view: int

    @property
    def prompt(self) -> str:
        """The kind's prompt; for views with the words of a camera that turns around the subject."""
        if self.kind.views == 1:
            return self.kind.prompt
        return camera_prompt(
            CameraPose(AZIMUTHS[self.view * len(AZIMUTHS) // self.kind.views], 0, 1.0), self.kind.prompt
        )

    def pictures(self) -> list[bytes]:
        """JPEG files, unlike those of every other picture number."""
        count, size = self.kind.references, self.kind.reference
        return [_unlike(MAX_REFERENCES * self.picture + number, size) for number in range(count)]


def edits_of(mix: Mix, seed: int) -> Iterator[LoadEdit]:
    """Endless edits, the same for the same seed. Each kind has its share of the edits: one that has `views` is drawn
    that much less often."""
    rng = random.Random(seed)
    number, weights = 0, [kind.weight / kind.views for kind in mix]
    first = rng.randrange(2**20)  # so that another run of the load sends other pictures
    for picture in range(first, 2**31):
        (kind,) = rng.choices(mix, weights)
        for view in range(kind.views):
            yield LoadEdit(kind, number, picture, view)
            number += 1


def _unlike(number: int, size: Size) -> bytes:
    """The scene with coloured squares over its upper left quarter."""
    picture = _scene(size.width, size.height).copy()
    colours = np.random.default_rng(number).integers(0, 256, (PATCHES, PATCHES, 3), np.uint8)
    rows, columns = (np.arange(side // 2) * PATCHES // (side // 2) for side in (size.height, size.width))
    picture[: size.height // 2, : size.width // 2] = colours[rows][:, columns]
    return _jpeg(picture)


def _jpeg(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


@cache
def _scene(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(draw_scene(MORNING, width, height))


def _size(text: str) -> Size:
    width, height = map(int, text.split("x"))
    return Size(width, height)
