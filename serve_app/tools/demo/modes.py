"""The demo's requests, one for each mode of editing, and the two pictures that they send."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from serve_app.config import LimitSettings
from serve_app.edits.camera import AZIMUTH_WORDS, CameraPose
from serve_app.edits.images import read_picture
from serve_app.tiny.world import Scene, Thing, render

POSE = CameraPose(315, 30, 1.0)
SCENES = (
    Scene(Thing("box", "orange"), Thing("cylinder", "blue"), "grass", "day"),
    Scene(Thing("cone", "green"), Thing("cylinder", "red"), "snow", "sunset"),
)
"""Held out from the training. A picture of the user may replace the first scene."""

_MAX_SIDE_PX = 1024  # of the user's picture: the tiny model works at far less, and the payload stays small


@dataclass(frozen=True)
class Mode:
    """One request of the demo.

    Attributes:
        name: stem of its file names.
        pictures: indices of the demo's pictures that it sends.
        fields: the RunPod `input` without the pictures.
        notes: describe the request on the contact sheet.
        captions: one for each picture of the response.
    """

    name: str
    title: str
    pictures: tuple[int, ...]
    fields: Mapping[str, object]
    notes: tuple[str, ...]
    captions: tuple[str, ...]

    def payload(self, pictures: Sequence[bytes]) -> dict[str, object]:
        """The body for `/runsync`; `pictures` are the demo's two, as encoded files."""
        encoded = [base64.b64encode(pictures[index]).decode("ascii") for index in self.pictures]
        sent: dict[str, object] = {"image": encoded[0]} if len(encoded) == 1 else {"images": encoded}
        return {"input": sent | dict(self.fields)}


def _quoted(prompts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"“{prompt}”" for prompt in prompts)


_SHOTS: dict[str, dict[str, float]] = {
    "from below": {"azimuth": POSE.azimuth, "elevation": -30},
    "from above": {"azimuth": POSE.azimuth, "elevation": 60},
    "close-up": {"azimuth": POSE.azimuth, "distance": 0.6},
    "wide": {"azimuth": POSE.azimuth, "distance": 1.8},
}
_NIGHT, _ROMANTIC, _STYLE = "make it night", "make it romantic", "apply the style of picture 2"
_ADAPTER = "cyanotype"
_BATCH = ("paint the box purple", "remove the cylinder", "make it day", "put the cone on grass")

MODES = (
    Mode(
        "orbit",
        "Orbit",
        (0,),
        {"views": "orbit:8", "elevation": POSE.elevation},
        (f"views “orbit:8” at elevation {POSE.elevation}, in one request",),
        tuple(f"{azimuth}°" for azimuth in AZIMUTH_WORDS),
    ),
    Mode(
        "camera",
        "Camera",
        (0,),
        {"views": list(_SHOTS.values()), "elevation": POSE.elevation},
        ("views of another elevation or distance",),
        tuple(_SHOTS),
    ),
    Mode("instruction", "Instruction", (0,), {"prompt": _NIGHT}, ("one prompt",), _quoted([_NIGHT])),
    Mode("rewriting", "Rewriting", (0,), {"prompt": _ROMANTIC, "rewrite_prompt": True}, (), _quoted([_ROMANTIC])),
    Mode(
        "batch",
        "Batch",
        (0, 0, 1, 1),
        {"prompt": list(_BATCH)},
        ("two prompts for each picture, in one request",),
        _quoted(_BATCH),
    ),
    Mode("style", "Style", (0, 1), {"prompt": _STYLE}, ("one prompt with two references",), _quoted([_STYLE])),
    Mode(
        "adapter",
        "Adapter",
        (0,),
        {"azimuth": 45, "elevation": POSE.elevation, "loras": [{"name": _ADAPTER}]},
        ("a LoRA that acts only on requests that name it",),
        (f"{_ADAPTER}, 45°",),
    ),
)


def demo_pictures(own: Path | None, limits: LimitSettings) -> tuple[Image.Image, Image.Image]:
    """Render both scenes from `POSE`; `own`, a file of the user, replaces the first.

    Raises:
        OSError, InvalidInput: as `load_picture`.
    """
    first, second = (Image.fromarray(render(scene, POSE)) for scene in SCENES)
    return (first if own is None else load_picture(own, limits)), second


def load_picture(path: Path, limits: LimitSettings) -> Image.Image:
    """Read the user's picture: upright, RGB, reduced to at most 1024 pixels a side.

    Raises:
        OSError: the file cannot be read.
        InvalidInput: it is not a whole PNG, JPEG, WebP, GIF, HEIC or AVIF file.
    """
    picture = read_picture(path.read_bytes(), str(path), limits)
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return picture


def encode_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
