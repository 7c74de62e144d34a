"""Small valid files of every kind of picture that the decoder reads, from which the mutations start."""

import math
import struct
import zlib
from functools import cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from tests.conftest import ROOT
from tests.fuzz.limits import SETTINGS
from tests.pictures import photograph

WIDTH, HEIGHT = 40, 32


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def pictures() -> dict[str, bytes]:
    """File contents by a name that describes the file."""
    frames = [photograph(name, WIDTH, HEIGHT) for name in ("astronaut", "coffee", "chelsea")]
    return {**_pngs(frames), **_jpegs(frames), **_webps(frames), **_others(frames), **heif_pictures()}


@cache
def heif_pictures() -> dict[str, bytes]:
    """Those of them that are HEIC and AVIF files."""
    frames = [photograph(name, WIDTH, HEIGHT) for name in ("astronaut", "coffee", "chelsea")]
    return {**_avifs(frames), **{f"HEIC {name}": _heic(name) for name in ("photo", "turned", "deep", "alpha")}}


@cache
def bulky_heif_pictures() -> dict[str, bytes]:
    """Those of the bulky ones."""
    side = _side()
    flat = Image.new("RGBA", (side, side), (200, 100, 50, 128))
    animated = {"save_all": True, "append_images": [flat.convert("RGB")]}
    return {
        "HEIC": _heic("flat"),
        "AVIF": saved(flat, "AVIF", speed=10, **_tags(flat)),
        "AVIF animated": saved(flat.convert("RGB"), "AVIF", speed=10, **animated),
    }


@cache
def bulky_pictures() -> dict[str, bytes]:
    """Small files of pictures just below the size limit, which take the most memory and time to decode."""
    side = _side()
    flat = Image.new("RGBA", (side, side), (200, 100, 50, 128))
    colours = flat.convert("RGB")
    return {
        "PNG RGBA": saved(flat, "PNG", **_tags(flat)),
        "PNG I;16": saved(colours.convert("L").convert("I;16"), "PNG", transparency=7),
        "PNG clear palette entry": saved(colours.quantize(4), "PNG", transparency=0, **_tags(flat)),
        "JPEG CMYK": saved(colours.convert("CMYK"), "JPEG", progressive=True, **_tags(flat)),
        "WebP animated": saved(flat, "WEBP", save_all=True, append_images=[colours], **_tags(flat)),
        "GIF animated": saved(flat, "GIF", save_all=True, append_images=[colours]),
        "TIFF": saved(flat, "TIFF", compression="tiff_lzw", tiffinfo={ExifTags.Base.Orientation: 6}),
        **bulky_heif_pictures(),
    }


def _side() -> int:
    """Of a square just below the size limit."""
    return math.isqrt(SETTINGS.limits.max_picture_px)


def _pngs(frames: list[Image.Image]) -> dict[str, bytes]:
    photo, *others = frames
    modes = {mode: saved(photo.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")}
    words = PngImagePlugin.PngInfo()
    words.add_text("Comment", "plain")
    words.add_text("Comment", "packed" * 50, zip=True)
    words.add_itxt("Title", "international", lang="en", zip=True)
    return {
        **{f"PNG {mode}": data for mode, data in modes.items()},
        "PNG 16-bit RGB": _deep_png(photo),
        "PNG clear palette entry": saved(photo.quantize(16), "PNG", transparency=3),
        "PNG clear colour": saved(photo, "PNG", transparency=(9, 8, 7)),
        "PNG two colours": saved(photo.quantize(2), "PNG", bits=1),
        "PNG tags": saved(photo, "PNG", **_tags(photo), pnginfo=words, dpi=(72, 72)),
        "APNG": saved(photo, "PNG", save_all=True, append_images=others, duration=50),
        "APNG apart": saved(photo, "PNG", save_all=True, append_images=others, default_image=True),
    }


def _jpegs(frames: list[Image.Image]) -> dict[str, bytes]:
    photo, *others = frames
    return {
        "JPEG": saved(photo, "JPEG"),
        "JPEG full colour": saved(photo, "JPEG", subsampling=0, quality=100),
        "JPEG progressive": saved(photo, "JPEG", progressive=True, optimize=True),
        "JPEG restarts": saved(photo, "JPEG", restart_marker_blocks=1),
        "JPEG grey": saved(photo.convert("L"), "JPEG"),
        "JPEG CMYK": saved(photo.convert("CMYK"), "JPEG"),
        "JPEG CMYK profile": saved(photo.convert("CMYK"), "JPEG", icc_profile=_profile()),
        "JPEG tags": saved(photo, "JPEG", **_tags(photo), comment=b"a comment", dpi=(72, 72)),
        "MPO": saved(photo, "MPO", save_all=True, append_images=others),
    }


def _webps(frames: list[Image.Image]) -> dict[str, bytes]:
    photo, *others = frames
    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    return {
        "WebP": saved(photo, "WEBP"),
        "WebP lossless": saved(photo, "WEBP", lossless=True),
        "WebP alpha": saved(clear, "WEBP"),
        "WebP lossless alpha": saved(clear, "WEBP", lossless=True, exact=True),
        "WebP tags": saved(photo, "WEBP", **_tags(photo), xmp=b"<x:xmpmeta/>"),
        "WebP animated": saved(photo, "WEBP", save_all=True, append_images=others, duration=50),
        "WebP animated alpha": saved(clear, "WEBP", save_all=True, append_images=others, minimize_size=True),
    }


def _avifs(frames: list[Image.Image]) -> dict[str, bytes]:
    photo, *others = frames
    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    return {
        "AVIF": saved(photo, "AVIF"),
        "AVIF full colour": saved(photo, "AVIF", subsampling="4:4:4", range="limited"),
        "AVIF grey": saved(photo, "AVIF", subsampling="4:0:0"),
        "AVIF alpha": saved(clear, "AVIF", alpha_premultiplied=True),
        "AVIF tags": saved(photo, "AVIF", **_tags(photo), xmp=b"<x:xmpmeta/>"),
        "AVIF animated": saved(photo, "AVIF", save_all=True, append_images=others),
    }


def _heic(name: str) -> bytes:
    return (ROOT / "tests" / "edits" / "files" / f"{name}.heic").read_bytes()


def _others(frames: list[Image.Image]) -> dict[str, bytes]:
    """Of the kinds that Pillow alone reads: GIF, BMP and TIFF."""
    photo, *others = frames
    packed = {name: saved(photo, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")}
    return {
        "GIF": saved(photo, "GIF"),
        "GIF clear colour": saved(photo.quantize(16), "GIF", transparency=3, interlace=0),
        "GIF animated": saved(photo, "GIF", save_all=True, append_images=others, comment=b"a comment"),
        "BMP": saved(photo, "BMP"),
        "BMP palette": saved(photo.quantize(16), "BMP"),
        "TIFF": saved(photo, "TIFF", **_tags(photo)),
        "TIFF 16-bit": saved(photo.convert("L").convert("I;16"), "TIFF"),
        "TIFF two colours": saved(photo.convert("1"), "TIFF", compression="group4"),
        **{f"TIFF {name}": data for name, data in packed.items()},
    }


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _tags(photo: Image.Image) -> dict[str, object]:
    tags = photo.getexif()
    tags[ExifTags.Base.Orientation] = 6
    tags[ExifTags.Base.Artist] = "somebody"
    tags.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    return {"exif": tags.tobytes(), "icc_profile": _profile()}


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _deep_png(photo: Image.Image) -> bytes:
    """16 bits a sample, with a transparent colour: Pillow reads such files and cannot write them."""
    rows = np.asarray(photo).astype(">u2") * np.uint16(257)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", photo.width, photo.height, 16, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"tRNS", rows[0, 0].tobytes()), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
