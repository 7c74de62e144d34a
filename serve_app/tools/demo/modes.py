"""The ways to ask for edits, as the demo shows them, in words that the tiny weights know."""

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
"""Of the pairs of things that were kept from the training."""

_MAX_SIDE_PX = 1024  # of the user's picture: the tiny model sees far less, and the payload stays handy


@dataclass(frozen=True)
class Mode:
    """One request of the demo.

    Attributes:
        name: stem of its files.
        pictures: places of those that it sends among the demo's two.
        fields: its RunPod `input` but for the pictures.
        notes: how it asks, for the contact sheet.
        captions: what each picture that comes back shows.
    """

    name: str
    title: str
    pictures: tuple[int, ...]
    fields: Mapping[str, object]
    notes: tuple[str, ...]
    captions: tuple[str, ...]

    def payload(self, pictures: Sequence[bytes]) -> dict[str, object]:
        """The body for `/runsync`; `pictures` are the demo's, as files."""
        encoded = [base64.b64encode(pictures[place]).decode("ascii") for place in self.pictures]
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
)


def demo_pictures(own: Path | None, limits: LimitSettings) -> tuple[Image.Image, Image.Image]:
    """Both scenes from `POSE`, or the user's own picture and the second one.

    Raises:
        OSError, InvalidInput: as `load_picture`.
    """
    first, second = (Image.fromarray(render(scene, POSE)) for scene in SCENES)
    return (first if own is None else load_picture(own, limits)), second


def load_picture(path: Path, limits: LimitSettings) -> Image.Image:
    """The user's picture, upright, in RGB, and reduced where a side is above 1024 pixels.

    Raises:
        OSError: the file cannot be read.
        InvalidInput: it is not a whole PNG, JPEG or WebP file.
    """
    picture = read_picture(path.read_bytes(), str(path), limits)
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    return picture


def encode_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
