"""The PNG files of our own writer, as Pillow reads them."""

from io import BytesIO

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from serve_app.edits.png import encode_png
from serve_app.edits.request import Pixels
from tests.pictures import photograph

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (33, 65), (300, 200)]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def opened(data: bytes) -> Image.Image:
    Image.open(BytesIO(data)).verify()  # the checksums of all chunks
    return Image.open(BytesIO(data))


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pixels_are_kept(height: int, width: int) -> None:
    pixels = noise(height, width)
    picture = opened(encode_png(pixels))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (width, height))
    assert_array_equal(np.asarray(picture), pixels)


def test_a_view_of_larger_pixels_is_written_as_it_looks() -> None:
    pixels = noise(40, 60)[5:25:2, ::-1]
    assert_array_equal(np.asarray(opened(encode_png(pixels))), pixels)


def test_the_packet_is_the_only_metadata() -> None:
    packet = "<x:xmpmeta>käse</x:xmpmeta>".encode()
    assert opened(encode_png(noise(4, 4), packet)).info == {"XML:com.adobe.xmp": packet.decode(), "xmp": packet}
    assert opened(encode_png(noise(4, 4))).info == {}


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_photographs_are_about_as_small_as_pillow_makes_them(name: str) -> None:
    picture, file = photograph(name), BytesIO()
    picture.save(file, "PNG", compress_level=1)
    assert len(encode_png(np.asarray(picture))) < 1.05 * len(file.getvalue())
