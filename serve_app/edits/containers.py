"""Bounds the number of parts of a picture's file. Each part costs its decoder time, whatever the number of pixels.

WebP files need no such bound: libwebp takes a tenth of a second for the 400,000 smallest frames in 20 MiB.
"""

import re
import struct
from collections.abc import Iterator

MAX_SCANS = 100
"""Of a JPEG. Encoders of progressive files write about ten; each is a pass over the whole picture."""

MAX_SEGMENTS = 1000
"""Of a JPEG, and bytes between them. A colour profile may take 255."""

MAX_METADATA_PARTS = 16
"""EXIF segments of a JPEG, which Pillow joins, copying what it has for each one; colour profiles of a PNG, which it
decompresses to up to 1 MiB each. One is usual."""

MAX_CHUNKS = 50_000
"""Of a PNG, the frames of an animation included. Encoders write about one in 8 KiB."""

_MAX_BRANDS_BYTES = 256
"""Of the list of brands of a HEIC or AVIF file. The rest is not read; encoders write about five, of four bytes each."""

_MAX_META_BYTES = 64 * 2**10
"""Of a HEIC or AVIF file, where its boxes of colours are looked for. They stand before the pixels."""

_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
# FF 00 is data of a scan. SOI, TEM and the restart markers stand alone; all others begin a segment.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")


def jpeg_excess(data: bytes) -> str | None:
    """What the JPEG has too many of, or None. It is read as libjpeg does: from marker to marker, up to the end of the
    first image."""
    num_scans = num_exif = num_segments = 0
    at = 2
    while (found := _MARKER.search(data, at)) is not None and (marker := found[1][0]) != _END_OF_IMAGE:
        # Pillow takes a step in Python for each byte between the segments before the first scan.
        num_segments += 1 + (0 if num_scans else found.start() - at)
        num_scans += marker == _START_OF_SCAN
        num_exif += marker == _APP1 and data.startswith(b"Exif\0", found.end() + 2)
        if num_scans > MAX_SCANS:
            return f"{MAX_SCANS} scans"
        if num_segments > MAX_SEGMENTS:
            return f"{MAX_SEGMENTS} segments"
        if num_exif > MAX_METADATA_PARTS:
            return f"{MAX_METADATA_PARTS} EXIF segments"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return None


def png_excess(data: bytes) -> str | None:
    """The same for a PNG file."""
    num_profiles = 0
    for num_chunks, (name, _) in enumerate(_png_chunks(data), 1):
        num_profiles += name == b"iCCP"
        if num_chunks > MAX_CHUNKS:
            return f"{MAX_CHUNKS:,} chunks"
        if num_profiles > MAX_METADATA_PARTS:
            return f"{MAX_METADATA_PARTS} colour profiles"
    return None


def png_chunk(data: bytes, name: bytes) -> bytes | None:
    """The content of a PNG's first chunk of this name before its pixels, or None."""
    for found, content in _png_chunks(data):
        if found == name:
            return data[content]
        if found == b"IDAT":
            break
    return None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """The names of a PNG's chunks before IEND, and where their contents are."""
    at = len(b"\x89PNG\r\n\x1a\n")
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IEND":
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        yield name, slice(at + 8, end)
        at = end + len(b"CRC.")


def nclx(data: bytes) -> tuple[int, int] | None:
    """The numbers of primaries and curve in the first colour box of an AVIF file that has them, or None. Pillow does
    not report them. A file whose first such box belongs to another picture than the main one is misread."""
    at = data.find(b"colrnclx", 0, _MAX_META_BYTES)
    return None if at < 0 or len(data) < at + 12 else struct.unpack_from(">HH", data, at + 8)


def brands(data: bytes) -> frozenset[bytes]:
    """The major and the compatible brands of an ISO media file, as HEIC and AVIF are; none of any other file."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4]), _MAX_BRANDS_BYTES)
    return frozenset({data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))})
