"""Photographs from scikit-image's wheel, and their conversion to and from what clients send."""

import base64
from io import BytesIO

import numpy as np
import skimage.data
from PIL import Image

from serve_app.edits.request import Pixels


def photograph(name: str, width: int | None = None, height: int | None = None) -> Image.Image:
    """One of scikit-image's colour photographs (astronaut, coffee, chelsea), cropped to a size in pixels."""
    pixels: Pixels = getattr(skimage.data, name)()
    return Image.fromarray(np.ascontiguousarray(pixels[:height, :width]))


def to_base64(picture: Image.Image, kind: str = "PNG", **options: object) -> str:
    """The picture as a file of this kind, in base64."""
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def progressive_jpeg(side_px: int, num_scans: int) -> bytes:
    """A black square in so many scans (at least 10), all of which but the first ten are empty."""
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"
    buffer = BytesIO()
    Image.new("RGB", (side_px, side_px)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + scan * (num_scans - data.count(b"\xff\xda")) + data[-2:]


def from_base64(text: str) -> Image.Image:
    """The picture in a base64 text, fully decoded."""
    picture = Image.open(BytesIO(base64.b64decode(text, validate=True)))
    picture.load()
    return picture


def pixels_of(picture: Image.Image) -> Pixels:
    """The picture as uint8 (height, width, 3)."""
    return np.asarray(picture.convert("RGB"))


def difference(one: Pixels, other: Pixels) -> int:
    """The largest difference of any pixel, in levels of 255."""
    assert one.shape == other.shape
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def to_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    return base64.b64decode(to_base64(picture))


def alike(one: str, other: str) -> bool:
    """Whether two base64 pictures differ by at most one level of 255, the rounding error of edits that share steps."""
    return difference(*(pixels_of(from_base64(each)) for each in (one, other))) <= 1


def repeat_last_scan(picture: Image.Image, count: int) -> bytes:
    """The picture as a progressive JPEG whose last scan comes `count` times more. They change nothing, and a decoder
    reads each."""
    buffer = BytesIO()
    picture.save(buffer, "JPEG", progressive=True)
    whole, end = buffer.getvalue()[:-2], buffer.getvalue()[-2:]
    last_scan = whole[whole.rindex(b"\xff\xda") :]
    return whole + last_scan * count + end
