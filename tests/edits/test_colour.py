"""The colours of PNG files without an ICC profile, against the formulas of the specifications."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from serve_app.config import LimitSettings
from serve_app.edits.colour import nclx_profile
from serve_app.edits.images import read_picture
from tests.pictures import photograph

LEVELS = np.arange(256, dtype=np.uint8)
RAMP = np.stack([LEVELS, LEVELS, LEVELS], -1)[None].repeat(32, 0)
D65 = (31270, 32900)
BT709 = struct.pack(">8I", *D65, 64000, 33000, 30000, 60000, 15000, 6000)
DISPLAY_P3 = struct.pack(">8I", *D65, 68000, 32000, 26500, 69000, 15000, 6000)
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])

Floats = npt.NDArray[np.float64]


def png(pixels: npt.NDArray[np.uint8], **chunks: bytes) -> bytes:
    """A PNG with these chunks before its pixels."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, head = buffer.getvalue(), 8 + 25
    inserted = b"".join(
        struct.pack(">I", len(content))
        + name.encode()
        + content
        + struct.pack(">I", zlib.crc32(name.encode() + content))
        for name, content in chunks.items()
    )
    return data[:head] + inserted + data[head:]


def read(pixels: npt.NDArray[np.uint8], **chunks: bytes) -> Floats:
    return np.asarray(read_picture(png(pixels, **chunks), "image", LimitSettings()), np.float64)


def encoded(linear: Floats) -> Floats:
    """sRGB's levels of linear light, by IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


def linear_of(levels: Floats) -> Floats:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def gamma(value: float) -> bytes:
    return struct.pack(">I", round(value * 100_000))


@pytest.mark.parametrize("value", [1.0, 0.55, 0.2])
def test_a_gamma_is_applied(value: float) -> None:
    assert np.abs(read(RAMP, gAMA=gamma(value)) - encoded((RAMP / 255) ** (1 / value))).max() <= 2


def test_a_gamma_of_grey_is_applied() -> None:
    grey = RAMP[..., 0].copy()
    assert np.abs(read(grey, gAMA=gamma(1.0)) - encoded(RAMP / 255)).max() <= 2


@pytest.mark.parametrize("chunks", [{"gAMA": gamma(1 / 2.2)}, {"gAMA": gamma(1 / 2.2), "cHRM": BT709}, {"cHRM": BT709}])
def test_what_most_encoders_write_for_srgb_changes_nothing(chunks: dict[str, bytes]) -> None:
    assert (read(RAMP, **chunks) == RAMP).all()


def test_primaries_are_applied() -> None:
    colour = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    expected = encoded(linear_of(colour.astype(float)) @ P3_TO_SRGB.T)
    assert np.abs(read(colour, cHRM=DISPLAY_P3) - expected).max() <= 2
    assert np.abs(read(colour, cICP=bytes([12, 13, 0, 1])) - expected).max() <= 2


def test_srgb_takes_precedence_over_gamma_and_cicp_over_all() -> None:
    assert (read(RAMP, sRGB=b"\0", gAMA=gamma(1.0)) == RAMP).all()
    linear = encoded(RAMP / 255)
    assert np.abs(read(RAMP, cICP=bytes([1, 8, 0, 1]), sRGB=b"\0") - linear).max() <= 2


def test_cicp_takes_precedence_over_an_icc_profile_and_that_over_gamma() -> None:
    """The first as web-platform-tests' png/cICP-wins.html, both as PNG's third edition, 4.3."""
    name_and_method = b"x\0\0"
    srgb = name_and_method + zlib.compress(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.abs(read(RAMP, iCCP=srgb, gAMA=gamma(1.0)) - RAMP).max() <= 1
    assert np.abs(read(RAMP, cICP=bytes([1, 8, 0, 1]), iCCP=srgb) - encoded(RAMP / 255)).max() <= 2


@pytest.fixture(params=["AVIF", "HEIC"])
def boxes(request: pytest.FixtureRequest) -> bytes:
    """A file whose nclx box names sRGB, as most encoders write it."""
    if request.param == "HEIC":
        return (Path(__file__).parent / "files" / "photo.heic").read_bytes()
    buffer = BytesIO()
    photograph("astronaut", 96, 64).save(buffer, "AVIF")
    return buffer.getvalue()


def decoded(data: bytes) -> Floats:
    return np.asarray(read_picture(data, "image", LimitSettings()), np.float64)


def named(data: bytes, primaries: int, curve: int) -> bytes:
    """The file with other numbers in its nclx box."""
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, curve) + data[at + 4 :]


def test_a_wide_gamut_of_a_heic_or_avif_file_is_applied(boxes: bytes) -> None:
    """https://github.com/ImageMagick/ImageMagick/issues/7715: without it, Display P3 looks washed out."""
    plain = decoded(boxes)
    expected = encoded(linear_of(plain) @ P3_TO_SRGB.T)
    assert np.abs(expected - plain).max() > 4
    assert np.abs(decoded(named(boxes, 12, 13)) - expected).max() <= 1


@pytest.mark.parametrize(("primaries", "curve"), [(1, 13), (1, 1), (2, 2), (5, 6), (6, 6), (9, 16), (12, 18), (22, 13)])
def test_what_encoders_write_for_srgb_and_hdr_changes_nothing(boxes: bytes, primaries: int, curve: int) -> None:
    assert (decoded(named(boxes, primaries, curve)) == decoded(boxes)).all()


def test_an_icc_profile_takes_precedence_over_an_nclx_box() -> None:
    buffer = BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photograph("astronaut", 96, 64).save(buffer, "AVIF", icc_profile=profile)
    # Pillow's encoder writes both.
    data = named(buffer.getvalue(), 12, 13)
    assert np.abs(decoded(data) - decoded(buffer.getvalue())).max() == 0
    assert nclx_profile({"icc_profile": profile}, (12, 13)) is None
    assert nclx_profile({}, (12, 13)) is not None


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": gamma(0.0)},
        {"gAMA": gamma(0.00001)},
        {"gAMA": gamma(42_000)},
        {"cHRM": bytes(32)},
        {"cHRM": struct.pack(">8I", *D65, 3, 3, 3, 3, 3, 3)},
        {"cHRM": b"\xff" * 32},
        {"cICP": bytes([9, 16, 0, 1])},
        {"cICP": bytes([1, 8, 1, 1])},
        {"cICP": b"\x01"},
    ],
)
def test_what_makes_no_sense_or_needs_tone_mapping_is_ignored(chunks: dict[str, bytes]) -> None:
    assert (read(RAMP, **chunks) == RAMP).all()
