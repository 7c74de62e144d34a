"""Writes PNG files (ISO/IEC 15948) with ISA-L's compression, eight times as fast as Pillow's and about as small."""

import struct
import zlib

import numpy as np
from isal import isal_zlib

from serve_app.edits.request import Pixels

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_8_BITS, _RGB = 8, 2
_UP = 2
_LEVEL = 1
"""Of 0 to 3. Higher ones find hardly more in filtered rows."""


def encode_png(pixels: Pixels, xmp: bytes = b"") -> bytes:
    """`pixels` (uint8, H x W x 3, sRGB) as a PNG file with the packet `xmp` as the only metadata.

    Each row is stored as its difference from the one above. On photographs this one filter comes within a twentieth of
    the best filter for each row, and numpy computes it fast.
    """
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, _8_BITS, _RGB, 0, 0, 0)
    # No compression, language or translated keyword.
    text = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if xmp else b""
    data = _chunk(b"IDAT", isal_zlib.compress(filtered, _LEVEL))
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), text, data, _chunk(b"IEND", b"")))


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return b"".join((struct.pack(">I", len(data)), body, struct.pack(">I", zlib.crc32(body))))
