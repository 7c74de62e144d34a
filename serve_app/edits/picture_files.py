"""The kinds of picture files: how each is recognised, limited and opened.

Readers are called directly and not through Pillow's `Image.open`, whose size check depends on a process-wide variable
that any library may unset, warns instead of raising, and does not report width and height. Besides, the JPEG reader
reads an MPO file as the JPEG that it begins with.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import pi_heif.options
from pi_heif.as_plugin import HeifImageFile
from PIL import AvifImagePlugin, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from serve_app.edits.containers import brands, jpeg_excess, png_excess

# Decoders of one thread, so that several pictures at once take no more memory; and of the picture itself only.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pi_heif.options.DECODE_THREADS = 1
pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False

_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"mif1", b"mif2", b"mif3", b"msf1"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        title: in messages.
        matches: whether a file is of this kind.
        open: reads the file's head; None: such files are never accepted.
        excess: what a file has too many of, or None.
    """

    title: str
    matches: Callable[[bytes], object]
    open: Callable[[BytesIO], ImageFile.ImageFile] | None = None
    excess: Callable[[bytes], str | None] = lambda _: None


def _begins(expression: bytes) -> Callable[[bytes], object]:
    return re.compile(expression, re.DOTALL).match


KINDS = {
    "png": Kind("PNG", _begins(rb"\x89PNG\r\n\x1a\n"), PngImageFile, png_excess),
    "jpeg": Kind("JPEG", _begins(rb"\xff\xd8\xff"), JpegImageFile, jpeg_excess),
    "webp": Kind("WebP", _begins(rb"RIFF....WEBP"), WebPImageFile),
    "gif": Kind("GIF", _begins(rb"GIF8[79]a"), GifImageFile),
    # Both may call themselves mif1, a picture of any codec. Then the compatible brands decide.
    "avif": Kind("AVIF", lambda data: brands(data) & _AVIF, AvifImageFile),
    "heic": Kind("HEIC", lambda data: brands(data) & _HEIC, HeifImageFile),
    "heif": Kind("HEIF", lambda data: brands(data) & _HEIF),  # of another codec
    "bmp": Kind("BMP", _begins(rb"BM....\0\0\0\0"), BmpImageFile),
    "tiff": Kind("TIFF", _begins(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    "jxl": Kind("JPEG XL", _begins(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    "jp2": Kind("JPEG 2000", _begins(rb"\0\0\0\x0cjP  ")),
    "pdf": Kind("PDF", _begins(rb"%PDF-")),
    "svg": Kind("SVG", _begins(rb"\s*<(?:\?xml|svg)")),
}
"""By their names in `limits.picture_kinds`."""


def kind_of(data: bytes) -> str | None:
    """The name of a file's kind, or None."""
    return next((name for name, kind in KINDS.items() if kind.matches(data)), None)
