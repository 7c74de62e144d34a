"""Decoding pictures (base64 and files to upright 8-bit sRGB without metadata) and encoding them."""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
from pi_heif.as_plugin import HeifImageFile
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.PngImagePlugin import PngImageFile

from serve_app.config import LimitSettings, SizeSettings
from serve_app.edits.colour import nclx_profile, rgb_profile
from serve_app.edits.containers import nclx, png_chunk
from serve_app.edits.picture_files import KINDS, kind_of
from serve_app.edits.png import encode_png
from serve_app.edits.request import OutputFormat, Pixels, PreparedPicture
from serve_app.edits.sizes import Size, fit_area
from serve_app.errors import InvalidInput, listed

DATA_URL = re.compile(r"\s*data:[^,;]*(?:;[^,;]+)*;base64,", re.IGNORECASE)
MAX_PREFIX_CHARS = 1024
"""Of a data URL, up to its comma. The expression keeps a step back for each semicolon."""
NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]")
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,31}(?=:)")
WHITE_SPACE = b" \t\r\n\v\f"

# Raised by Pillow and its decoders on damaged files, RuntimeError by those of HEIC and AVIF; includes warnings for
# processes that turn them into errors.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, Warning)

# EXIF orientation to the transposition that makes the picture upright; 1 needs none.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes whose colours an ICC profile describes directly; other modes are converted to RGB first.
COLOUR_MODES = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}

# Pillow 13 converts these PNG samples to 8 bits, but not the transparent colour.
TRANSPARENT_SCALES: dict[object, float] = {"L;2": 255 / 3, "L;4": 255 / 15, "RGB;16B": 1 / 256}


def decode_base64(text: str, field: str, max_bytes: int) -> bytes:
    """Decode base64, with or without a data-URL prefix; white space is ignored.

    Raises:
        InvalidInput: empty, over `max_bytes` (checked before decoding), or not strictly base64.
    """
    prefix = DATA_URL.match(text, 0, MAX_PREFIX_CHARS)
    try:
        body = text[prefix.end() if prefix else 0 :].encode("ascii").translate(None, WHITE_SPACE)
    except UnicodeEncodeError:
        raise InvalidInput(f"{field} holds characters outside ASCII. Send it as base64.", field) from None
    if not body:
        raise InvalidInput(f"{field} is empty. Send a picture's file as base64.", field)
    size = len(body) // 4 * 3 - body[-2:].count(b"=")
    if size > max_bytes:
        raise InvalidInput(f"{field} is larger than {max_bytes / 2**20:.4g} MiB. Send a smaller file.", field)
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error:
        raise InvalidInput(_base64_fault(body, field), field) from None
    # Strict decoding accepts padding after a complete group, as in "AAAA=".
    if len(data) != size:
        raise InvalidInput(_base64_fault(body, field), field)
    return data


def encode_base64(data: bytes) -> str:
    """The bytes as base64, without a prefix."""
    return base64.b64encode(data).decode("ascii")


def _base64_fault(body: bytes, field: str) -> str:
    if scheme := SCHEME.match(body):
        if scheme[0].lower() == b"data":
            return f"{field} is a data URL without ';base64'. Encode the picture's file as base64."
        return f"{field} is a URL that begins with '{scheme[0].decode()}:'. Send the picture's file as base64."
    junk = NOT_BASE64.search(body)
    if junk:
        return f"{field} holds {junk[0].decode()!r}, which is not base64. Use the alphabet A-Z a-z 0-9 + / only."
    return f"{field} is base64 of a wrong length or with wrong '=' padding. Send it whole."


def read_picture(data: bytes, field: str, limits: LimitSettings) -> Image.Image:
    """Decode a file of one of `limits.picture_kinds` to an upright sRGB picture: mode RGB, 8 bits, no metadata, alpha
    over white.

    Of an animation or a multi-picture file, the first frame. The size, and the number of the file's parts, are checked
    before any pixel is decoded.

    Raises:
        InvalidInput: another kind of file, damaged, truncated, of too many parts, or over `limits.max_picture_px`.
    """
    try:
        stored = _open(data, field, limits)
        _check_size(stored, field, limits)
        _scale_transparent_colour(stored)
        stored.load()
        _check_palette(stored)
        _check_size(stored, field, limits)  # libheif may find another size
        picture = _upright(_over_white(_to_8_bits(stored), _profile_of(stored, data)), stored)
    except Image.DecompressionBombError:
        raise InvalidInput(f"{field} has too many pixels. {_smaller(limits)}", field) from None
    except DAMAGE:
        raise InvalidInput(f"{field} is damaged or truncated. {_wanted(limits)} that is whole.", field) from None
    picture.info = {}
    return picture


def _open(data: bytes, field: str, limits: LimitSettings) -> ImageFile.ImageFile:
    name = kind_of(data)
    kind = None if name is None else KINDS[name]
    if kind is None or kind.open is None or name not in limits.picture_kinds:
        what = "not a picture" if kind is None else f"a {kind.title} file, which is not accepted"
        raise InvalidInput(f"{field} is {what}. {_wanted(limits)}.", field)
    excess = kind.excess(data)
    if excess is not None:
        raise InvalidInput(f"{field} has more than {excess}. Save it anew as a plain PNG or JPEG file.", field)
    return kind.open(BytesIO(data))


def _profile_of(stored: ImageFile.ImageFile, data: bytes) -> bytes | None:
    """An ICC profile in place of the one that Pillow found, or None."""
    match stored:
        case PngImageFile():
            return rgb_profile(stored.info, png_chunk(data, b"cICP"))
        case HeifImageFile():
            named = stored.info.get("nclx_profile", {})
            numbers = named.get("color_primaries"), named.get("transfer_characteristics")
            return None if None in numbers else nclx_profile(stored.info, numbers)
        case AvifImageFile():
            return nclx_profile(stored.info, nclx(data))
        case _:
            return None


def _wanted(limits: LimitSettings) -> str:
    return f"Send a {listed(KINDS[name].title for name in limits.picture_kinds)} file"


def _check_size(picture: Image.Image, field: str, limits: LimitSettings) -> None:
    if picture.width * picture.height > limits.max_picture_px:
        size = f"{picture.width}x{picture.height}"
        raise InvalidInput(f"{field} is {size} pixels. {_smaller(limits)}", field)
    if max(picture.size) > limits.max_aspect_ratio * min(picture.size):
        # A very narrow picture would be scaled to at least 32 pixels on its short side, and so to a huge area.
        raise InvalidInput(
            f"{field} is {picture.width}x{picture.height} pixels, too long and narrow to be drawn. Crop it until the "
            f"longer side is at most {limits.max_aspect_ratio:g} times the shorter one.",
            field,
        )


def _check_palette(stored: Image.Image) -> None:
    if stored.mode == "P" and stored.palette is None:
        # Pillow loads a palette PNG without a PLTE chunk, and fails an assertion at its first use.
        raise SyntaxError("no palette")


def _smaller(limits: LimitSettings) -> str:
    return f"Send a picture of at most {limits.max_picture_px:,} pixels."


def _scale_transparent_colour(stored: ImageFile.ImageFile) -> None:
    colour = stored.info.get("transparency")
    scale = TRANSPARENT_SCALES.get(stored.tile[0].args) if stored.tile else None
    if colour is None or scale is None:
        return
    stored.info["transparency"] = (
        tuple(int(sample * scale) for sample in colour) if isinstance(colour, tuple) else int(colour * scale)
    )


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey scaled to L, or LA if it has a transparent level; other pictures unchanged."""
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).clip(0, 65535).astype(np.uint16)
    # To the nearest of 256 levels, which are 257 apart. Pillow's conversion clips at 255.
    level, rest = np.divmod(levels, np.uint16(257))
    grey = Image.fromarray((level + (rest > 128)).astype(np.uint8))
    if "transparency" in picture.info:
        opaque = levels != picture.info["transparency"]
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * np.uint8(255)))
    grey.info["icc_profile"] = picture.info.get("icc_profile")
    return grey


def _over_white(picture: Image.Image, rgb_profile: bytes | None) -> Image.Image:
    """Any 8-bit mode as sRGB. The profile applies to the colours only: the white is sRGB already.

    Args:
        rgb_profile: describes the colours as RGB, in place of the picture's own profile.
    """
    mode = "RGB" if rgb_profile is not None else COLOUR_MODES.get(picture.mode, "RGB")
    profile = picture.info.get("icc_profile") if rgb_profile is None else rgb_profile
    if not picture.has_transparency_data:
        return _to_srgb(picture.convert(mode), profile)
    # No copy that can be avoided: of 64 megapixels, each takes a quarter of a gigabyte.
    if picture.mode != f"{mode}A":
        picture = picture.convert(f"{mode}A")
    colours = _to_srgb(picture.convert(mode), profile)
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, None, picture.getchannel("A"))
    return white


def _to_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None:
        try:
            to_srgb = ImageCms.buildTransform(BytesIO(profile), ImageCms.createProfile("sRGB"), colours.mode, "RGB")
            return to_srgb.apply(colours)
        except (ImageCms.PyCMSError, *DAMAGE):
            # Damaged, or for another colour mode: viewers then show the colours as sRGB.
            pass
    return colours if colours.mode == "RGB" else colours.convert("RGB")


def _upright(picture: Image.Image, stored: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(stored.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGE:
        # Many programs write damaged EXIF beside an intact picture.
        turn = None
    return picture if turn is None else picture.transpose(turn)


def prepare(picture: Image.Image, sizes: SizeSettings) -> PreparedPicture:
    """Resize an RGB picture to the model's two sizes, each from the original as diffusers' VaeImageProcessor does."""
    aspect = picture.width / picture.height
    return PreparedPicture(
        vae_pixels=_resized(picture, fit_area(sizes.vae_area_px, aspect)),
        condition_pixels=_resized(picture, fit_area(sizes.condition_area_px, aspect)),
    )


def resample(pixels: Pixels, size: Size) -> Pixels:
    """`pixels` (uint8, H x W x 3) resized by Lanczos; the same array if it has that size."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    return _resized(Image.fromarray(pixels), size)


def _resized(picture: Image.Image, size: Size) -> Pixels:
    # A copy: a view of Pillow's bytes is read-only, and torch warns about such arrays.
    return np.array(picture.resize((size.width, size.height), Image.Resampling.LANCZOS), dtype=np.uint8)


def pixels_hash(pixels: Pixels) -> str:
    """A hash of a picture's size and pixels."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


def encode_picture(pixels: Pixels, output: OutputFormat, xmp: bytes = b"") -> bytes:
    """Encode `pixels` (uint8, H x W x 3, sRGB) as `output` says, with the packet `xmp` as the only metadata."""
    return ENCODERS[output.format](pixels, output.quality, xmp)


def _encode_jpeg(pixels: Pixels, quality: int, xmp: bytes) -> bytes:
    # 0 keeps full colour resolution (4:4:4), -1 is the encoder's default (4:2:0).
    return _saved(pixels, "JPEG", xmp, quality=quality, subsampling=0 if quality >= 95 else -1)


def _encode_webp(pixels: Pixels, quality: int, xmp: bytes) -> bytes:
    return _saved(pixels, "WEBP", xmp, quality=quality, method=0)


def _saved(pixels: Pixels, format_name: str, xmp: bytes, **options: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format_name, xmp=xmp, **options)
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[Pixels, int, bytes], bytes]] = {
    "png": lambda pixels, _, xmp: encode_png(pixels, xmp),
    "jpeg": _encode_jpeg,
    "webp": _encode_webp,
}
"""By the format's name: the pixels, a quality of 1 to 100 and an XMP packet, which may be empty, to a file."""
