"""Every kind of picture against the pixels it must become; every refusal against its words."""

import base64
import contextlib
import random
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import ExifTags, Image, ImageCms, ImageFile
from skimage import data as photographs

from serve_app.config import LimitSettings, SizeSettings
from serve_app.edits.images import decode_base64, encode_picture, pixels_hash, prepare, read_picture, resample
from serve_app.edits.picture_files import KINDS
from serve_app.edits.request import OutputFormat, Pixels
from serve_app.edits.sizes import Size
from serve_app.errors import InvalidInput

LIMITS = LimitSettings()
MIB = 2**20
WANTED = "Send a PNG, JPEG, WebP, GIF, HEIC or AVIF file"


def original(name: str) -> Pixels:
    """One of the photographs that scikit-image ships."""
    pixels: Pixels = getattr(photographs, name)()
    return pixels


def photograph(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(original("astronaut")).resize((width, height), Image.Resampling.LANCZOS)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, limits: LimitSettings = LIMITS) -> npt.NDArray[np.int64]:
    """The decoded pixels as signed integers, after a check of what holds for every decoded picture."""
    picture = read_picture(data, "image", limits)
    assert type(picture) is Image.Image
    assert picture.mode == "RGB"
    assert picture.info == {}
    assert not picture.getexif()
    return np.asarray(picture).astype(np.int64)


def ints(picture: Image.Image | npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    return np.asarray(picture).astype(np.int64)


def assert_close(got: npt.NDArray[np.int64], expected: npt.NDArray[np.int64], within: int) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= within


def over_white(colours: npt.NDArray[np.int64], alpha: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.int64)


def ramp(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An alpha channel with every value from clear to opaque."""
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def refusal(data: bytes, limits: LimitSettings = LIMITS) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_picture(data, "image[1]", limits)
    assert caught.value.field == "image[1]"
    assert "image[1]" in caught.value.message
    return caught.value.message


# --- files that Pillow cannot write -----------------------------------------------------------------------------


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *extra: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


GREY, TRUECOLOUR, GREY_ALPHA, TRUECOLOUR_ALPHA = 0, 2, 4, 6


def png16(samples: npt.NDArray[np.uint16], colour: int, *extra: bytes) -> bytes:
    rows = [row.astype(">u2").tobytes() for row in samples]
    return png(samples.shape[1], samples.shape[0], 16, colour, rows, *extra)


def fixed(*numbers: float) -> bytes:
    """ICC's s15Fixed16 numbers."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def icc_profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, bodies, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += struct.pack(">4sII", name, start + len(bodies), len(body))
        bodies += body + b"\0" * (-len(body) % 4)
    header = struct.pack(">I4s4s4s", 0x02400000, kind, space, connection)
    header += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    size = 128 + 4 + len(table) + len(bodies)
    return struct.pack(">II", size, 0) + header + struct.pack(">I", len(tags)) + table + bodies


LINEAR = b"curv" + bytes(8)


def linear_rgb_profile() -> bytes:
    """sRGB's primaries without its gamma."""
    primaries = {
        b"rXYZ": (0.43607, 0.22249, 0.01392),
        b"gXYZ": (0.38515, 0.71687, 0.09708),
        b"bXYZ": (0.14307, 0.06061, 0.71410),
    }
    tags = {name: b"XYZ " + bytes(4) + fixed(*xyz) for name, xyz in primaries.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR)
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile() -> bytes:
    """Grey with a gamma of 1.8, as old Macintosh scanners wrote it."""
    return icc_profile(
        b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.8 * 256))}
    )


def black_ink_only_profile() -> bytes:
    """A CMYK profile for which only black ink darkens the paper: a table of 2 x 2 x 2 x 2 points, black fastest."""
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    curve = bytes(range(256))
    paper, black = bytes((255, 128, 128)), bytes((0, 128, 128))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + curve * 4 + (paper + black) * 8 + curve * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


def srgb_of(samples: npt.NDArray[np.int64], gamma: float) -> npt.NDArray[np.int64]:
    light = (samples / 255) ** gamma
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    rounded: npt.NDArray[np.int64] = np.rint(255 * encoded).astype(np.int64)
    return rounded


# --- base64 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "DATA:Image/PNG;charset=utf-8;Base64,", " data:;base64,"]
)
def test_base64_is_decoded_with_and_without_a_data_url_prefix(prefix: str) -> None:
    payload = bytes(range(256))
    assert decode_base64(prefix + base64.b64encode(payload).decode(), "image", MIB) == payload


def test_base64_may_hold_line_breaks_and_spaces() -> None:
    payload = bytes(range(256))
    lines = base64.encodebytes(payload).decode().replace("\n", "\r\n \t")
    assert decode_base64("\n" + lines, "image", MIB) == payload


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,\n", "empty"),
        ("AAA*", "holds '*', which is not base64"),
        ("AA-_", "holds '-', which is not base64"),
        ("AA\0A", r"holds '\x00', which is not base64"),
        ("file:///tmp/a.png", "is a URL that begins with 'file:'"),
        ("data:image/png,AAAA", "is a data URL without ';base64'"),
        ("AAA:", "is a URL that begins with 'AAA:'"),
        ("AA/A:", "holds ':', which is not base64"),
        ("AAAé", "outside ASCII"),
        ("ＡＡＡＡ", "outside ASCII"),  # noqa: RUF001 full-width letters are the point
        ("AAA", "padding"),
        ("AAAAA", "padding"),
        ("AAAA=", "padding"),
        ("AAAA==", "padding"),
        ("AAAA====", "padding"),
        ("AA==AAAA", "padding"),
        ("=AAA", "padding"),
        ("====", "padding"),
    ],
)
def test_base64_refusals_name_the_field_and_the_fault(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(words)) as caught:
        decode_base64(text, "image[1]", MIB)
    assert caught.value.field == "image[1]"
    assert "image[1]" in caught.value.message


@pytest.mark.parametrize("size", [1, 2, 3, 4, 999, 1000])
def test_base64_size_limit_is_exact(size: int) -> None:
    text = base64.b64encode(bytes(size)).decode()
    assert decode_base64(text, "image", size) == bytes(size)
    with pytest.raises(InvalidInput, match="larger than"):
        decode_base64(text, "image", size - 1)


def test_base64_size_is_checked_before_decoding_and_told_in_mib() -> None:
    # Junk at the end would be found only by decoding.
    with pytest.raises(InvalidInput, match=r"image is larger than 2 MiB\. Send a smaller file\."):
        decode_base64("A" * 3 * MIB + "*", "image", 2 * MIB)


# --- kinds of pictures ------------------------------------------------------------------------------------------


def test_a_png_photograph_keeps_its_pixels() -> None:
    photo = Image.fromarray(original("coffee"))
    assert_close(read(saved(photo, "PNG", compress_level=1)), ints(photo), within=0)


def test_a_lossless_webp_keeps_its_pixels() -> None:
    photo = photograph()
    assert_close(read(saved(photo, "WEBP", lossless=True)), ints(photo), within=0)


@pytest.mark.parametrize(("kind", "within"), [("JPEG", 3.0), ("WEBP", 3.0)])
def test_a_lossy_photograph_stays_close(kind: str, within: float) -> None:
    photo = Image.fromarray(original("chelsea"))
    got = read(saved(photo, kind, quality=95))
    assert got.shape == (300, 451, 3)
    assert np.abs(got - ints(photo)).mean() < within


def test_a_progressive_jpeg_is_what_pillow_decodes() -> None:
    data = saved(photograph(), "JPEG", quality=90, progressive=True)
    assert_close(read(data), ints(Image.open(BytesIO(data))), within=0)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_rgba_is_laid_over_white(kind: str, options: dict[str, bool]) -> None:
    photo, alpha = photograph(), ramp(64, 96)
    picture = photo.copy()
    picture.putalpha(Image.fromarray(alpha))
    assert_close(read(saved(picture, kind, **options)), over_white(ints(photo), ints(alpha)), within=1)


def grey_photograph() -> Image.Image:
    return photograph().convert("L")


def three(grey: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.broadcast_to(grey[..., None], (*grey.shape, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_becomes_rgb(kind: str) -> None:
    data = saved(grey_photograph(), kind, **({"quality": 95} if kind == "JPEG" else {}))
    assert_close(read(data), three(ints(grey_photograph())), within=0 if kind == "PNG" else 12)


def test_grey_with_alpha_is_laid_over_white() -> None:
    grey, alpha = grey_photograph(), ramp(64, 96)
    picture = grey.copy()
    picture.putalpha(Image.fromarray(alpha))
    assert picture.mode == "LA"
    assert_close(read(saved(picture, "PNG")), over_white(three(ints(grey)), ints(alpha)), within=1)


def test_one_bit_is_black_and_white() -> None:
    bits = np.indices((16, 24)).sum(axis=0) % 3 == 0
    assert_close(read(saved(Image.fromarray(bits), "PNG")), three(ints(bits) * 255), within=0)


LEVELS_16 = np.array([[0, 1, 128, 129, 255, 256, 257, 1000], [32767, 32768, 40000, 51400, 65000, 65278, 65407, 65535]])


def test_16_bit_grey_is_scaled_to_the_nearest_level_and_not_clipped() -> None:
    got = read(png16(LEVELS_16.astype(np.uint16), GREY))
    assert_close(got, three(np.rint(LEVELS_16 / 257).astype(np.int64)), within=0)
    assert got.max() == 255
    assert 127 in got


def test_16_bit_grey_written_by_pillow_is_read_the_same() -> None:
    picture = Image.fromarray(LEVELS_16.astype(np.uint16))
    assert picture.mode == "I;16"
    assert_close(read(saved(picture, "PNG")), read(png16(LEVELS_16.astype(np.uint16), GREY)), within=0)


def test_16_bit_grey_with_alpha_is_laid_over_white() -> None:
    samples = np.array([[[20000, 65535], [20000, 0], [20000, 32768]]], dtype=np.uint16)
    expected = np.array([[[78] * 3, [255] * 3, [166] * 3]])
    assert_close(read(png16(samples, GREY_ALPHA)), expected, within=1)


def colours_16() -> npt.NDArray[np.uint16]:
    eight = np.asarray(photograph(32, 24)).astype(np.uint16)
    return eight * np.uint16(257)


def test_16_bit_rgb_is_narrowed() -> None:
    assert_close(read(png16(colours_16().reshape(24, -1, 3), TRUECOLOUR)), ints(photograph(32, 24)), within=0)


def test_16_bit_rgba_is_narrowed_and_laid_over_white() -> None:
    alpha = ramp(24, 32)
    samples = np.dstack([colours_16(), alpha.astype(np.uint16) * np.uint16(257)])
    assert_close(read(png16(samples, TRUECOLOUR_ALPHA)), over_white(ints(photograph(32, 24)), ints(alpha)), within=1)


def test_a_palette_is_looked_up() -> None:
    picture = photograph().quantize(64)
    assert_close(read(saved(picture, "PNG")), ints(picture.convert("RGB")), within=0)


def test_a_palette_with_one_clear_entry_shows_white_there() -> None:
    picture = photograph().quantize(64)
    expected = ints(picture.convert("RGB"))
    expected[ints(picture) == 7] = 255
    assert (ints(picture) == 7).any()
    assert_close(read(saved(picture, "PNG", transparency=7)), expected, within=0)


def test_a_palette_with_graded_transparency_is_laid_over_white() -> None:
    picture = photograph().quantize(64)
    alphas = np.linspace(0, 255, 64).astype(np.uint8)
    expected = over_white(ints(picture.convert("RGB")), ints(alphas[np.asarray(picture)]))
    assert_close(read(saved(picture, "PNG", transparency=alphas.tobytes())), expected, within=1)


CLEAR_COLOUR_CASES: dict[str, tuple[int, int, list[bytes], bytes, list[list[int]]]] = {
    # depth, PNG colour type, rows, tRNS, and the row expected: the clear colour has become 255.
    "1 bit": (1, GREY, [b"\x50"], b"\0\0", [[255] * 3, [255] * 3, [255] * 3, [255] * 3]),
    "2 bits": (2, GREY, [b"\x1b"], b"\0\1", [[0] * 3, [255] * 3, [170] * 3, [255] * 3]),
    "4 bits": (4, GREY, [b"\x05\xa7"], b"\0\5", [[0] * 3, [255] * 3, [170] * 3, [119] * 3]),
    "8 bits": (8, GREY, [b"\x05\x06\x50\x00"], b"\0\5", [[255] * 3, [6] * 3, [80] * 3, [0] * 3]),
    "16 bits": (
        16,
        GREY,
        [struct.pack(">4H", 1000, 1001, 0, 65535)],
        struct.pack(">H", 1000),
        [[255] * 3, [4] * 3, [0] * 3, [255] * 3],
    ),
    "RGB": (
        8,
        TRUECOLOUR,
        [bytes((1, 2, 3, 1, 2, 4, 9, 9, 9, 0, 0, 0))],
        struct.pack(">3H", 1, 2, 3),
        [[255] * 3, [1, 2, 4], [9] * 3, [0] * 3],
    ),
    "16-bit RGB": (
        16,
        TRUECOLOUR,
        [struct.pack(">12H", 5000, 6000, 7000, 5000, 6000, 9000, 256, 512, 768, 0, 0, 0)],
        struct.pack(">3H", 5000, 6000, 7000),
        [[255] * 3, [19, 23, 35], [1, 2, 3], [0] * 3],
    ),
}


@pytest.mark.parametrize("case", CLEAR_COLOUR_CASES)
def test_a_png_with_one_clear_colour_shows_white_there(case: str) -> None:
    depth, colour, rows, clear, expected = CLEAR_COLOUR_CASES[case]
    got = read(png(4, 1, depth, colour, rows, png_chunk(b"tRNS", clear)))
    assert got.tolist() == [expected]


INKS = {"white": (0, 0, 0, 0), "cyan": (255, 0, 0, 0), "yellow": (0, 0, 255, 0), "black": (0, 0, 0, 255)}


def ink_jpeg(**options: object) -> bytes:
    """Patches of 16 px: large enough for JPEG to keep their middles."""
    patches = np.array(list(INKS.values()), dtype=np.uint8).repeat(16, axis=0)
    picture = Image.fromarray(np.tile(patches, (16, 1, 1)), "CMYK")
    return saved(picture, "JPEG", quality=100, **options)


def middles(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return pixels[8, 8::16]


def test_cmyk_without_a_profile_mixes_inks_plainly() -> None:
    expected = np.array([[255, 255, 255], [0, 255, 255], [255, 255, 0], [0, 0, 0]])
    assert_close(middles(read(ink_jpeg())), expected, within=2)


def test_cmyk_goes_through_its_own_profile() -> None:
    expected = np.array([[255] * 3, [255] * 3, [255] * 3, [0] * 3])
    assert_close(middles(read(ink_jpeg(icc_profile=black_ink_only_profile()))), expected, within=2)


def test_a_multi_picture_jpeg_shows_its_first_picture() -> None:
    first, second = photograph(), Image.new("RGB", (96, 64), "red")
    data = saved(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(BytesIO(data)).format == "MPO"
    assert_close(read(data), ints(Image.open(BytesIO(saved(first, "JPEG", quality=95)))), within=0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_shows_its_first_frame(kind: str) -> None:
    first, second = photograph(), Image.new("RGB", (96, 64), "red")
    data = saved(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
    animation = Image.open(BytesIO(data))
    assert isinstance(animation, ImageFile.ImageFile)
    assert getattr(animation, "n_frames", 1) == 2
    assert_close(read(data), ints(first), within=0)


# How EXIF stores an upright picture: which side of it lies in the file's first row and first column.
STORED_AS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_orientation_is_turned_upright(orientation: int, kind: str, options: dict[str, object]) -> None:
    upright = np.asarray(photograph())
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](upright)))
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    got = read(saved(stored, kind, exif=tags, **options))
    assert_close(got, ints(upright), within=4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_unknown_orientation_counts_as_upright(orientation: int) -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    assert_close(read(saved(photograph(), "PNG", exif=tags)), ints(photograph()), within=0)


@pytest.mark.parametrize("tags", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01"])
def test_mangled_exif_counts_as_upright(tags: bytes) -> None:
    data = saved(photograph(), "PNG")
    # Behind the signature and the IHDR chunk.
    data = data[:33] + png_chunk(b"eXIf", tags) + data[33:]
    assert_close(read(data), ints(photograph()), within=0)


def test_no_metadata_is_left() -> None:
    tags = Image.Exif()
    tags[ExifTags.Base.Make] = "Camera"
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    data = saved(photograph(), "JPEG", exif=tags, comment=b"secret", xmp=b"<x/>", dpi=(72, 72))
    assert b"secret" in data
    assert b"Camera" in data
    assert read(data).shape == (64, 96, 3)


# --- colour profiles --------------------------------------------------------------------------------------------


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("profile", [srgb_profile(), b"", b"junk", bytes(128), srgb_profile()[:200]])
def test_srgb_and_broken_profiles_change_nothing(profile: bytes) -> None:
    assert_close(read(saved(photograph(), "PNG", icc_profile=profile)), ints(photograph()), within=0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_linear_profile_is_converted_to_srgb(kind: str) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    got = read(saved(photograph(), kind, icc_profile=linear_rgb_profile(), **options))
    assert_close(got, srgb_of(ints(photograph()), gamma=1.0), within=2)
    assert np.abs(got - ints(photograph())).mean() > 20


def test_a_grey_profile_is_converted_to_srgb() -> None:
    got = read(saved(grey_photograph(), "PNG", icc_profile=grey_profile()))
    assert_close(got, three(srgb_of(ints(grey_photograph()), gamma=1.8)), within=2)


def test_a_16_bit_grey_picture_goes_through_its_profile() -> None:
    picture = Image.fromarray(LEVELS_16.astype(np.uint16))
    expected = three(srgb_of(np.rint(LEVELS_16 / 257).astype(np.int64), gamma=1.8))
    assert_close(read(saved(picture, "PNG", icc_profile=grey_profile())), expected, within=2)


def test_a_palette_goes_through_its_profile() -> None:
    picture = photograph().quantize(64)
    expected = srgb_of(ints(picture.convert("RGB")), gamma=1.0)
    assert_close(read(saved(picture, "PNG", icc_profile=linear_rgb_profile())), expected, within=2)


def test_colours_are_converted_before_white_shines_through() -> None:
    picture, alpha = photograph(), ramp(64, 96)
    picture.putalpha(Image.fromarray(alpha))
    expected = over_white(srgb_of(ints(photograph()), gamma=1.0), ints(alpha))
    assert_close(read(saved(picture, "PNG", icc_profile=linear_rgb_profile())), expected, within=2)


@pytest.mark.parametrize("profile", [grey_profile(), black_ink_only_profile()])
def test_a_profile_for_another_kind_of_picture_is_ignored(profile: bytes) -> None:
    assert_close(read(saved(photograph(), "PNG", icc_profile=profile)), ints(photograph()), within=0)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello", b"BMW is a car maker", b"{}" * 500, b"\x89PNG", b"RIFF0000WAVE"]
)
def test_what_is_no_picture_is_refused_with_what_is_wanted(data: bytes) -> None:
    assert refusal(data) == f"image[1] is not a picture. {WANTED}."


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PDF"])
def test_other_formats_are_refused_by_name(kind: str) -> None:
    data = saved(photograph(), kind)
    assert refusal(data) == f"image[1] is a {kind} file, which is not accepted. {WANTED}."


@pytest.mark.parametrize(
    ("kind", "data"),
    [("SVG", b"<svg/>"), ("SVG", b"<?xml version='1.0'?>")],
)
def test_formats_that_pillow_cannot_write_are_refused_by_name(kind: str, data: bytes) -> None:
    assert f"is a {kind} file" in refusal(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_picture_is_refused_as_damaged(kind: str, kept: float) -> None:
    data = saved(photograph(), kind)
    short = data[: max(12, int(len(data) * kept))]
    assert refusal(short) == f"image[1] is damaged or truncated. {WANTED} that is whole."


def test_a_png_with_a_wrong_checksum_is_refused_as_damaged() -> None:
    data = bytearray(saved(photograph(), "PNG"))
    data[30] ^= 1
    assert "damaged" in refusal(bytes(data))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the readers that have decoded pixels."""
    names: list[str] = []

    def record(reader: type[ImageFile.ImageFile]) -> None:
        load = reader.load

        def recording(self: ImageFile.ImageFile) -> object:
            names.append(reader.__name__)
            return load(self)

        monkeypatch.setattr(reader, "load", recording)

    for kind in KINDS.values():
        if isinstance(kind.open, type):
            record(kind.open)
    return names


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_pixels_of_a_picture_within_the_limit_are_decoded(kind: str, decoded: list[str]) -> None:
    read(saved(photograph(), kind))
    assert decoded


def test_a_huge_png_is_refused_by_its_header(decoded: list[str]) -> None:
    bomb = png(20_000, 20_000, 8, TRUECOLOUR, [b""])
    assert refusal(bomb) == "image[1] is 20000x20000 pixels. Send a picture of at most 64,000,000 pixels."
    assert decoded == []


def huge_webp(side: int) -> bytes:
    """A lossless WebP's header and nothing behind it."""
    body = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(5)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize("side", [9_000, 12_000, 16_000])
def test_a_huge_webp_is_refused_by_its_header(side: int, decoded: list[str]) -> None:
    assert "pixels. Send a picture of at most 64,000,000 pixels." in refusal(huge_webp(side))
    assert decoded == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_size_limit_is_exact_and_needs_no_global(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data = saved(photograph(40, 30), kind)
    assert read(data, LimitSettings(max_picture_px=1200)).shape == (30, 40, 3)
    message = refusal(data, LimitSettings(max_picture_px=1199))
    assert message == "image[1] is 40x30 pixels. Send a picture of at most 1,199 pixels."


@pytest.mark.parametrize("size", [(301, 30), (30, 301)])
def test_a_sliver_is_refused(size: tuple[int, int]) -> None:
    data = saved(Image.new("RGB", size), "PNG")
    assert refusal(data) == (
        f"image[1] is {size[0]}x{size[1]} pixels, too long and narrow to be drawn. "
        "Crop it until the longer side is at most 10 times the shorter one."
    )
    assert read(saved(Image.new("RGB", (300, 30)), "PNG")).shape == (30, 300, 3)


def test_the_size_is_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    data = saved(Image.new("RGB", (40, 30)), "PNG")
    assert "40x30" in refusal(data, LimitSettings(max_picture_px=1199))
    with pytest.raises(AssertionError, match="decoded"):
        read_picture(data, "image", LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutated_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    dice = random.Random(20260101)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    whole = saved(photograph(24, 16), kind, exif=tags, icc_profile=srgb_profile())
    kept = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        with contextlib.suppress(InvalidInput):
            kept += read_picture(bytes(data), "image", LimitSettings(max_picture_px=MIB)).mode == "RGB"
    # Were either none or all of them refused, the mutations would prove nothing.
    assert 0 < kept < 300


# --- sizes and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_prepared_pictures_are_what_diffusers_makes(name: str) -> None:
    picture = Image.fromarray(original(name))
    prepared = prepare(picture, SizeSettings())
    processor = VaeImageProcessor(vae_scale_factor=16)
    for pixels, area in ((prepared.vae_pixels, 1024 * 1024), (prepared.condition_pixels, 384 * 384)):
        height, width, _ = pixels.shape
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        assert width * height == pytest.approx(area, rel=0.05)
        assert width / height == pytest.approx(picture.width / picture.height, rel=0.1)
        expected = processor.resize(picture, height, width)
        np.testing.assert_array_equal(pixels, np.asarray(expected))


def test_prepared_sizes_follow_the_settings() -> None:
    sizes = SizeSettings(vae_area_px=128 * 128, condition_area_px=64 * 64)
    prepared = prepare(photograph(90, 90), sizes)
    assert prepared.vae_pixels.shape == (128, 128, 3)
    assert prepared.condition_pixels.shape == (64, 64, 3)


def test_resampling_is_lanczos_and_the_identity_at_the_same_size() -> None:
    pixels = np.asarray(photograph())
    assert resample(pixels, Size(96, 64)) is pixels
    expected = np.asarray(photograph().resize((50, 30), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resample(pixels, Size(50, 30)), expected)


def test_resampling_to_the_transposed_size_is_not_the_identity() -> None:
    assert resample(np.asarray(photograph()), Size(64, 96)).shape == (96, 64, 3)


@pytest.mark.parametrize(("name", "within"), [("png", 0.0), ("jpeg", 3.0), ("webp", 3.0)])
def test_formats_round_trip_without_metadata(name: str, within: float) -> None:
    pixels = original("coffee")
    data = encode_picture(pixels, OutputFormat(format=name))
    opened = Image.open(BytesIO(data))
    assert opened.format == name.upper()
    assert not {"exif", "icc_profile", "xmp", "comment"} & set(opened.info)
    assert np.abs(read(data) - ints(pixels)).mean() <= within


def test_webp_is_written_by_the_fast_method() -> None:
    picture = photograph()
    expected = saved(picture, "WEBP", quality=80, method=0)
    assert encode_picture(np.asarray(picture), OutputFormat("webp", 80)) == expected
    assert expected != saved(picture, "WEBP", quality=80)


@pytest.mark.parametrize(("quality", "subsampling"), [(100, "4:4:4"), (95, "4:4:4"), (94, "4:2:0"), (0, "4:2:0")])
def test_jpeg_keeps_full_colour_from_quality_95(quality: int, subsampling: str) -> None:
    picture = photograph()
    data = encode_picture(np.asarray(picture), OutputFormat("jpeg", quality))
    assert data == saved(picture, "JPEG", quality=quality, subsampling=subsampling)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_decides_the_size_of_a_lossy_file(name: str) -> None:
    sizes = [len(encode_picture(np.asarray(photograph()), OutputFormat(name, quality))) for quality in (0, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_hash_of_pixels_depends_on_their_values_and_their_shape() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert pixels_hash(pixels) == pixels_hash(pixels.copy())
    assert pixels_hash(pixels) != pixels_hash(pixels.reshape(6, 4, 3))
    assert pixels_hash(pixels) != pixels_hash(pixels + np.uint8(1))
