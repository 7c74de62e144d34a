"""The two pictures that the demo sends: toy scenes, of which the user's own picture may take the first one's place."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from serve_app.config import LimitSettings
from serve_app.edits.camera import CameraPose
from serve_app.edits.images import read_picture
from serve_app.tiny.world import Scene, Thing, render

POSE = CameraPose(315, 30, 1.0)
SCENES = (
    Scene(Thing("box", "orange"), Thing("cylinder", "blue"), "grass", "day"),
    Scene(Thing("cone", "green"), Thing("cylinder", "red"), "snow", "sunset"),
)
"""Of the pairs of things that were kept from the training."""

_MAX_SIDE_PX = 1024  # of the user's picture: the tiny model sees far less, and the payload stays handy


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
