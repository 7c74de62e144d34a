"""The tools' arguments. Their schemas are what an agent reads, so the poses are explained there."""

from typing import Any

from pydantic import ConfigDict, Field

from serve_app.edits.camera import AZIMUTH_WORDS, DISTANCE_WORDS, ELEVATION_WORDS
from serve_app.errors import listed
from serve_app.ingress.parsing.fields import (
    FORMATS,
    MAX_ORBIT,
    DrawFields,
    Name,
    Number,
    StrictModel,
    Text,
    TextOrTexts,
    Whole,
)


def _required(*names: str) -> ConfigDict:
    """For the schema. The parser checks them itself, since null means absent."""
    return ConfigDict(json_schema_extra={"required": list(names)})


def _poses(words: dict[Any, str]) -> str:
    return ", ".join(f"{value:g} {name}" for value, name in words.items())


_AZIMUTH = f"Where the camera stands around the subject, in degrees; snaps to {_poses(AZIMUTH_WORDS)}. Default 0."
_ELEVATION = f"How high the camera is, in degrees; snaps to {_poses(ELEVATION_WORDS)}. Default 0."
_DISTANCE = f"How far the camera is; snaps to {_poses(DISTANCE_WORDS)}. Default 1."


class ToolFields(DrawFields):
    """What all tools that make pictures take. Absent and null mean the same."""

    image: TextOrTexts = Field(
        None,
        description="The picture: base64, a data URL, or an https URL that the server may fetch. Or a list of up to 4: "
        "the first one is edited, the others are references.",
    )
    seed: Whole = Field(None, description="Same seed, same picture. Default: a random one, which the result returns.")
    size: Name = Field(
        None, description="WIDTHxHEIGHT in pixels, or auto: about 1 megapixel with the picture's aspect. Default auto."
    )
    output_format: Name = Field(
        None, description=f"{listed(FORMATS)}. Default jpeg: many MCP clients take no result above 1 MB."
    )
    output_compression: Whole = Field(
        None, description="0 to 100, the quality of lossy formats; png is always lossless. Default 90."
    )


class EditImage(ToolFields):
    model_config = _required("image", "prompt")

    prompt: Text = Field(None, description="The instruction, such as: Make it sunset.")


class MoveCamera(ToolFields):
    model_config = _required("image")

    azimuth: Number = Field(None, description=_AZIMUTH)
    elevation: Number = Field(None, description=_ELEVATION)
    distance: Number = Field(None, description=_DISTANCE)
    prompt: Text = Field(None, description="A change to make as well; may be left out.")


class Orbit(ToolFields):
    model_config = _required("image")

    num_views: Whole = Field(
        None, description=f"Pictures all around the subject, 1 to {MAX_ORBIT}, beginning in front. Default {MAX_ORBIT}."
    )
    elevation: Number = Field(None, description=_ELEVATION)
    distance: Number = Field(None, description=_DISTANCE)
    prompt: Text = Field(None, description="A change to make in each picture as well; may be left out.")


class ListAdapters(StrictModel):
    """No arguments."""
