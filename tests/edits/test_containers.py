"""The number of parts of a picture's file: both sides of each limit, and what is not counted."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from PIL import Image

from serve_app.config import LimitSettings
from serve_app.edits.containers import MAX_CHUNKS, MAX_METADATA_PARTS, MAX_SCANS, MAX_SEGMENTS, jpeg_excess
from serve_app.edits.images import read_picture
from serve_app.errors import InvalidInput
from tests.fuzz.containers import Chunk, joined, split
from tests.pictures import progressive_jpeg


def saved(kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (16, 16), "navy").save(buffer, kind, **options)
    return buffer.getvalue()


def with_segments(segment: bytes, number: int) -> bytes:
    """A JPEG with so many copies of a segment behind its first marker."""
    data = saved("JPEG")
    return data[:2] + segment * number + data[2:]


def with_chunks(name: bytes, body: bytes, number: int) -> bytes:
    """A PNG with so many copies of a chunk behind its first one."""
    data = saved("PNG")
    header, *rest = split(data)
    return joined(data, [header, *[Chunk(name, body)] * number, *rest])


OWN_SEGMENTS = len(split(saved("JPEG"))) - 1  # the first marker has no body, and is not counted
OWN_CHUNKS = len(split(saved("PNG"))) - 1  # the end is not counted
PROFILE = b"name\0\0" + zlib.compress(bytes(2**20))

# Name: a file with so many parts, the limit, and how the message calls it.
LIMITS: dict[str, tuple[Callable[[int], bytes], int, str]] = {
    "scans": (lambda number: progressive_jpeg(16, number), MAX_SCANS, "100 scans"),
    "segments": (lambda n: with_segments(b"\xff\xe7\0\2", n - OWN_SEGMENTS), MAX_SEGMENTS, "1000 segments"),
    "comments": (lambda n: with_segments(b"\xff\xfe\0\2", n - OWN_SEGMENTS), MAX_SEGMENTS, "1000 segments"),
    "fill bytes": (lambda n: with_segments(b"\xff", n - OWN_SEGMENTS), MAX_SEGMENTS, "1000 segments"),
    "junk": (lambda n: with_segments(b"\xff\xe7\0\2" + bytes(n - OWN_SEGMENTS - 1), 1), MAX_SEGMENTS, "1000 segments"),
    "EXIF": (lambda n: with_segments(b"\xff\xe1\0\x08Exif\0\0", n), MAX_METADATA_PARTS, "16 EXIF segments"),
    "PNG chunks": (lambda n: with_chunks(b"prVt", b"", n - OWN_CHUNKS), MAX_CHUNKS, "50,000 chunks"),
    "PNG texts": (lambda n: with_chunks(b"tEXt", b"a\0", n - OWN_CHUNKS), MAX_CHUNKS, "50,000 chunks"),
    "PNG profiles": (lambda n: with_chunks(b"iCCP", PROFILE, n), MAX_METADATA_PARTS, "16 colour profiles"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_both_sides_of_each_limit(name: str) -> None:
    file_of, limit, what = LIMITS[name]
    assert read_picture(file_of(limit), "image", LimitSettings()).size == (16, 16)
    with pytest.raises(InvalidInput) as caught:
        read_picture(file_of(limit + 1), "image", LimitSettings())
    assert caught.value.message == f"image has more than {what}. Save it anew as a plain PNG or JPEG file."


def test_nothing_is_counted_that_the_decoder_does_not_read() -> None:
    """Markers in the body of a segment, in the data of a scan, and behind the end: a thumbnail, a video."""
    scans = b"\xff\xda\0\2" * (MAX_SCANS + 1)
    thumbnail = b"\xff\xe2" + struct.pack(">H", 2 + len(scans)) + scans
    restarts = saved("JPEG", restart_marker_blocks=1)
    for data in (with_segments(thumbnail, 1), saved("JPEG") + scans, restarts):
        assert read_picture(data, "image", LimitSettings()).size == (16, 16)
    assert jpeg_excess(with_segments(b"\xff\xe7\0\2" + b"\xff\xd0" * MAX_SEGMENTS, 1)) == "1000 segments"
    assert jpeg_excess(restarts[:-2] + b"\xff\xd0" * 2 * MAX_SEGMENTS + restarts[-2:]) is None
