"""The kinds of files besides PNG, JPEG and WebP. The HEIC files show `photograph("astronaut", 96, 64)`: no library that
is installed here writes such files."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from serve_app.config import LimitSettings, PictureKind
from serve_app.edits.images import read_picture
from serve_app.edits.picture_files import kind_of
from serve_app.errors import InvalidInput
from tests.pictures import photograph

FILES = Path(__file__).parent / "files"
PHOTO = photograph("astronaut", 96, 64)
LIMITS = LimitSettings()


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(data: bytes, expected: Image.Image, limits: LimitSettings = LIMITS) -> float:
    """The mean difference of a decoded file from a picture, in levels."""
    decoded = read_picture(data, "image", limits)
    assert (decoded.mode, decoded.size, decoded.info) == ("RGB", expected.size, {})
    return float(np.abs(np.asarray(decoded, np.float64) - np.asarray(expected)).mean())


def accepting(*kinds: PictureKind) -> LimitSettings:
    return LimitSettings(picture_kinds=kinds)


@pytest.mark.parametrize("name", ["photo", "turned", "deep"])
def test_heic(name: str) -> None:
    assert distance((FILES / f"{name}.heic").read_bytes(), PHOTO) < 3


def test_a_transparent_heic_is_shown_over_white() -> None:
    expected = PHOTO.copy()
    alpha = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))
    expected = Image.composite(expected, Image.new("RGB", expected.size, "white"), Image.fromarray(alpha))
    assert distance((FILES / "alpha.heic").read_bytes(), expected) < 3


def test_avif() -> None:
    assert distance(saved(PHOTO, "AVIF", quality=95), PHOTO) < 3


def test_an_avif_that_calls_itself_mif1_is_one() -> None:
    data = bytearray(saved(PHOTO, "AVIF", quality=95))
    assert data[8:12] == b"avif"
    data[8:12] = b"mif1"
    assert kind_of(bytes(data)) == "avif"
    assert distance(bytes(data), PHOTO) < 3


def test_a_heic_that_calls_itself_mif1_is_one() -> None:
    data = bytearray((FILES / "photo.heic").read_bytes())
    data[8:12] = b"mif1"
    assert kind_of(bytes(data)) == "heic"
    assert distance(bytes(data), PHOTO) < 3


def test_the_first_frame_of_an_animated_avif() -> None:
    """Of brand avis, as Pillow writes it."""
    data = saved(PHOTO, "AVIF", quality=95, save_all=True, append_images=[PHOTO.rotate(180)])
    assert data[8:12] == b"avis"
    assert distance(data, PHOTO) < 3


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_an_avif_of_each_subsampling(subsampling: str) -> None:
    assert distance(saved(PHOTO, "AVIF", quality=95, subsampling=subsampling), PHOTO) < 3


def test_an_avif_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert distance(saved(PHOTO.rotate(90, expand=True), "AVIF", quality=95, exif=exif), PHOTO) < 3


def test_the_first_frame_of_a_gif() -> None:
    frames = [Image.new("RGB", PHOTO.size, colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert distance(data, frames[0]) == 0


def test_a_transparent_gif_is_shown_over_white() -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
    expected = Image.new("RGB", (64, 64), "red")
    expected.paste("white", (0, 0, 32, 64))
    assert distance(saved(picture, "GIF"), expected) == 0


@pytest.mark.parametrize("kind", ["bmp", "tiff"])
def test_kinds_that_an_operator_may_add(kind: PictureKind) -> None:
    data = saved(PHOTO, kind)
    with pytest.raises(InvalidInput, match=f"is a {kind.upper()} file, which is not accepted"):
        read_picture(data, "image", LIMITS)
    assert distance(data, PHOTO, accepting("png", kind)) == 0


def test_a_kind_that_the_operator_took_out_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match=r"is a HEIC file, which is not accepted. Send a PNG or JPEG file\."):
        read_picture((FILES / "photo.heic").read_bytes(), "image", accepting("png", "jpeg"))


OTHERS = {
    # The brands of libheif/api/libheif/heif_brands.h: VVC, JPEG 2000, and AV1 in the short form of mif3.
    "HEIF of VVC": b"\0\0\0\x18ftypvvic\0\0\0\0mif1vvic",
    "HEIF of JPEG 2000": b"\0\0\0\x18ftypj2ki\0\0\0\0mif1j2ki",
    "HEIF in short form": b"\0\0\0\x10ftypmif3avif",
    "JPEG XL": b"\xff\x0a\xfa\x7f\x01\x90",
    "JPEG XL in boxes": b"\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG 2000": saved(PHOTO, "JPEG2000"),
}


@pytest.mark.parametrize(("title", "data"), OTHERS.items(), ids=OTHERS)
def test_pictures_of_other_kinds_are_named(title: str, data: bytes) -> None:
    kind = title.partition(" of V")[0].partition(" in ")[0].partition(" of J")[0]
    with pytest.raises(InvalidInput, match=f"is a {kind} file, which is not accepted"):
        read_picture(data, "image", LIMITS)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_heic_is_refused_as_damaged(kept: float) -> None:
    data = (FILES / "photo.heic").read_bytes()
    with pytest.raises(InvalidInput, match="is damaged or truncated"):
        read_picture(data[: max(20, int(len(data) * kept))], "image", LIMITS)


def test_a_huge_gif_is_refused_by_its_header() -> None:
    data = bytearray(saved(PHOTO, "GIF"))
    struct.pack_into("<HH", data, 6, 60_000, 60_000)
    with pytest.raises(InvalidInput, match="is 60000x60000 pixels"):
        read_picture(bytes(data), "image", LIMITS)


@pytest.mark.parametrize("file", ["photo.heic", "avif"])
def test_a_file_with_many_pixels_is_refused_before_it_is_decoded(file: str) -> None:
    data = saved(PHOTO, "AVIF") if file == "avif" else (FILES / file).read_bytes()
    with pytest.raises(InvalidInput, match="is 96x64 pixels"):
        read_picture(data, "image", LimitSettings(max_picture_px=5_000))
