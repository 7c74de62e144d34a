"""Mutations of HEIC and AVIF files that keep the nested boxes of their container (ISO/IEC 14496-12) valid."""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.fuzz import bytewise
from tests.fuzz.bytewise import EDGES

# Boxes that hold boxes, and the bytes before the first of these.
_STILL = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"dinf": 0, b"iref": 4, b"grpl": 0}
_MOVING = dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0)
_CONTAINERS = _STILL | _MOVING
# What decides sizes, codecs and places of data. The rest is mostly compressed pixels.
_PROPERTIES = (
    b"ispe",
    b"pixi",
    b"hvcC",
    b"av1C",
    b"colr",
    b"irot",
    b"imir",
    b"clap",
    b"iloc",
    b"ipma",
    b"iinf",
    b"pitm",
)


@dataclass(frozen=True)
class Box:
    """A box. `front`: the bytes before its `boxes`, or all its content if it is no container. `length`: the declared
    one, where it is not the true one."""

    name: bytes
    front: bytes
    boxes: "tuple[Box, ...]" = ()
    length: int | None = None


def split(data: bytes) -> tuple[Box, ...]:
    """The boxes of a file, as far as they can be separated."""
    boxes, at = [], 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + max(length, 8)]
        front = _CONTAINERS.get(name, len(content))
        boxes.append(Box(name, content[:front], split(content[front:])))
        at += max(length, 8)
    return tuple(boxes)


def joined(boxes: Sequence[Box]) -> bytes:
    """The file of these boxes."""
    return b"".join(map(_bytes, boxes))


def _bytes(box: Box) -> bytes:
    content = box.front + joined(box.boxes)
    return struct.pack(">I4s", len(content) + 8 if box.length is None else box.length, box.name) + content


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to three boxes swapped, dropped, repeated, copied from another file, of a wrong length, or
    mutated inside. Mostly the number of bytes stays, since places of data are counted from the file's start."""
    boxes = split(data)
    for _ in range(rng.randint(1, 3)):
        boxes = _mutated(rng, boxes, others)
    return joined(boxes)


def _mutated(rng: random.Random, boxes: tuple[Box, ...], others: Sequence[bytes]) -> tuple[Box, ...]:
    if not boxes:
        return boxes
    likely = [at for at, box in enumerate(boxes) if box.boxes or box.name in _PROPERTIES]
    at = rng.choice(likely) if likely and rng.random() < 0.8 else rng.randrange(len(boxes))
    box = boxes[at]
    if box.boxes and rng.random() < 0.8:
        return (*boxes[:at], replace(box, boxes=_mutated(rng, box.boxes, others)), *boxes[at + 1 :])
    match rng.randrange(10):
        case 0:
            return tuple(rng.sample(boxes, len(boxes)))
        case 1:
            changed: tuple[Box, ...] = ()
        case 2:
            changed = (box,) * rng.choice((2, 3, 200))
        case 3:
            changed = (box, rng.choice(split(rng.choice(others)) or boxes))
        case 4:
            changed = (replace(box, length=rng.choice((*EDGES, len(box.front) + 7))),)
        case 5:
            changed = (replace(box, front=bytewise.mutated(rng, box.front, others, most=2)),)
        case _:
            changed = (replace(box, front=_overwritten(rng, box.front)),)
    return (*boxes[:at], *changed, *boxes[at + 1 :])


def _overwritten(rng: random.Random, content: bytes) -> bytes:
    """The same number of bytes, a few of them changed."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3) if content else 0):
        at, width = rng.randrange(len(content)), rng.choice((1, 1, 2, 4))
        value = rng.choice((rng.choice(EDGES), rng.randrange(2**32)))
        changed[at : at + width] = (value & (256**width - 1)).to_bytes(width)
    return bytes(changed[: len(content)])
