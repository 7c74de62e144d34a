"""Mutations that keep a picture's container in order, so that what is wrong inside it reaches the decoder.

A PNG with a wrong checksum is refused at once: only with lengths and checksums mended is a mutated header, palette or
profile ever looked at.
"""

import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.fuzz import bytewise
from tests.fuzz.bytewise import EDGES
from tests.fuzz.seeds import png_chunk

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_UNPACKED_BYTES = 2**20
# Bytes in front of the zlib stream, by chunk; iCCP and zTXt have a name of any length and two bytes more.
_PACKED = {b"IDAT": 0, b"fdAT": 4}
_NAMED_PACKED = (b"iCCP", b"zTXt")
_ALONE = {0xD8, 0xD9, *range(0xD0, 0xD8), 0x01}
_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class Chunk:
    """A named part of a container. `length`: what is told of its size where that is a lie."""

    name: bytes
    body: bytes
    length: int | None = None


def split(data: bytes) -> list[Chunk]:
    """The parts of a PNG, JPEG or WebP file, as far as they can be told apart; none of any other file."""
    if data.startswith(PNG_SIGNATURE):
        return _split_png(data)
    return _split_jpeg(data) if data.startswith(b"\xff\xd8") else _split_webp(data)


def joined(like: bytes, chunks: Sequence[Chunk]) -> bytes:
    """A file of the kind of `like` from its parts, with lengths and checksums that fit but where a part lies."""
    if like.startswith(PNG_SIGNATURE):
        return PNG_SIGNATURE + b"".join(map(_png_chunk, chunks))
    if like.startswith(b"\xff\xd8"):
        return b"".join(map(_jpeg_segment, chunks))
    body = b"".join(map(_riff_chunk, chunks))
    return b"RIFF" + struct.pack("<I", (len(body) + 4) & 0xFFFFFFFF) + b"WEBP" + body


def mutated(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with its parts swapped, dropped, doubled, borrowed, lied about, or mutated inside."""
    chunks = split(data)
    for _ in range(dice.randint(1, 3) if chunks else 0):
        at = dice.randrange(len(chunks))
        match dice.randrange(7):
            case 0:
                to = dice.randrange(len(chunks))
                chunks[at], chunks[to] = chunks[to], chunks[at]
            case 1 if len(chunks) > 1:
                del chunks[at]
            case 2:
                chunks.insert(at, dice.choice(chunks))
            case 3:
                chunks.insert(at, dice.choice(split(dice.choice(others)) or chunks))
            case 4:
                chunks[at] = replace(chunks[at], length=dice.choice((*EDGES, len(chunks[at].body) + 1)))
            case _:
                chunks[at] = replace(chunks[at], body=_body(dice, chunks[at], others))
    return joined(data, chunks)


def _body(dice: random.Random, chunk: Chunk, others: Sequence[bytes]) -> bytes:
    """The part's bytes mutated; every second time what is packed inside them, if anything is."""
    front = _PACKED.get(chunk.name)
    if chunk.name in _NAMED_PACKED:
        front = chunk.body.find(b"\0") + 2
    if front is not None and dice.random() < 0.5:
        try:
            unpacked = zlib.decompressobj().decompress(chunk.body[front:], MAX_UNPACKED_BYTES)
        except zlib.error:
            unpacked = b""
        return chunk.body[:front] + zlib.compress(bytewise.mutated(dice, unpacked, others), 1)
    return bytewise.mutated(dice, chunk.body, others, most=2)


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
    """Segments by their markers; from the first scan on all is one."""
    segments, at = [], 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _START_OF_SCAN:
            break
        length = 0 if marker in _ALONE else struct.unpack_from(">H", data, at + 2)[0]
        segments.append(Chunk(data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return [*segments, Chunk(b"", data[at:])]


def _jpeg_segment(chunk: Chunk) -> bytes:
    if not chunk.name or chunk.name[-1] in _ALONE:
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
