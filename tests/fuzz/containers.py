"""Mutations that keep a picture file's container valid, so that the damage inside it reaches the decoder.

A PNG with a wrong checksum is refused at once: a mutated header, palette or profile is decoded only if lengths and
checksums are correct.
"""

import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.fuzz import boxes, bytewise
from tests.fuzz.bytewise import EDGES
from tests.fuzz.seeds import png_chunk

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_INFLATED_BYTES = 2**20
# Bytes before the zlib stream, by chunk; in iCCP and zTXt, a name of any length and two bytes.
_COMPRESSED = {b"IDAT": 0, b"fdAT": 4}
_NAMED_COMPRESSED = (b"iCCP", b"zTXt")
_WITHOUT_LENGTH = {0xD8, 0xD9, *range(0xD0, 0xD8), 0x01}
_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class Chunk:
    """A named part of a container. `length`: the declared length, where it is not that of `body`."""

    name: bytes
    body: bytes
    length: int | None = None


def split(data: bytes) -> list[Chunk]:
    """The parts of a PNG, JPEG or WebP file, as far as they can be separated; empty for any other file."""
    if data.startswith(PNG_SIGNATURE):
        return _split_png(data)
    if data.startswith(b"\xff\xd8"):
        return _split_jpeg(data)
    return _split_webp(data) if data.startswith(b"RIFF") else []


def joined(like: bytes, chunks: Sequence[Chunk]) -> bytes:
    """A file of the format of `like` from its parts, with correct checksums, and lengths unless a part declares one."""
    if like.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(map(_png_chunk, chunks))
    if like.startswith(b"\xff\xd8"):
        return b"".join(map(_jpeg_segment, chunks))
    body = b"".join(map(_riff_chunk, chunks))
    return b"RIFF" + struct.pack("<I", (len(body) + 4) & 0xFFFFFFFF) + b"WEBP" + body


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with parts swapped, dropped, duplicated, copied from other files, of a wrong length, or mutated inside.
    Files of kinds without such parts stay as they are."""
    if data[4:8] == b"ftyp":
        return boxes.mutated(rng, data, others)
    chunks = split(data)
    for _ in range(rng.randint(1, 3) if chunks else 0):
        at = rng.randrange(len(chunks))
        match rng.randrange(7):
            case 0:
                to = rng.randrange(len(chunks))
                chunks[at], chunks[to] = chunks[to], chunks[at]
            case 1 if len(chunks) > 1:
                del chunks[at]
            case 2:
                chunks.insert(at, rng.choice(chunks))
            case 3:
                chunks.insert(at, rng.choice(split(rng.choice(others)) or chunks))
            case 4:
                chunks[at] = replace(chunks[at], length=rng.choice((*EDGES, len(chunks[at].body) + 1)))
            case _:
                chunks[at] = replace(chunks[at], body=_body(rng, chunks[at], others))
    return joined(data, chunks) if chunks else data


def _body(rng: random.Random, chunk: Chunk, others: Sequence[bytes]) -> bytes:
    """The part's bytes mutated; half of the time, the compressed data inside them, if there is any."""
    front = _COMPRESSED.get(chunk.name)
    if chunk.name in _NAMED_COMPRESSED:
        front = chunk.body.find(b"\0") + 2
    if front is not None and rng.random() < 0.5:
        try:
            inflated = zlib.decompressobj().decompress(chunk.body[front:], MAX_INFLATED_BYTES)
        except zlib.error:
            inflated = b""
        return chunk.body[:front] + zlib.compress(bytewise.mutated(rng, inflated, others), 1)
    return bytewise.mutated(rng, chunk.body, others, most=2)


def _split_png(data: bytes) -> list[Chunk]:
    chunks, at = [], len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append(Chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _png_chunk(chunk: Chunk) -> bytes:
    whole = png_chunk(chunk.name, chunk.body)
    return whole if chunk.length is None else struct.pack(">I", chunk.length) + whole[4:]


def _split_jpeg(data: bytes) -> list[Chunk]:
    """Segments by their markers; everything from the first scan on is one."""
    segments, at = [], 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            break
        length = 0 if marker in _WITHOUT_LENGTH else struct.unpack_from(">H", data, at + 2)[0]
        segments.append(Chunk(data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return [*segments, Chunk(b"", data[at:])]


def _jpeg_segment(chunk: Chunk) -> bytes:
    if not chunk.name or chunk.name[-1] in _WITHOUT_LENGTH:
        return chunk.name + chunk.body
    length = len(chunk.body) + 2 if chunk.length is None else chunk.length
    return chunk.name[:2] + struct.pack(">H", length & 0xFFFF) + chunk.body


def _split_webp(data: bytes) -> list[Chunk]:
    chunks, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks.append(Chunk(data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks


def _riff_chunk(chunk: Chunk) -> bytes:
    length = len(chunk.body) if chunk.length is None else chunk.length
    return chunk.name + struct.pack("<I", length) + chunk.body + bytes(len(chunk.body) % 2)
