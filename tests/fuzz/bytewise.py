"""Mutations of arbitrary bytes: flip, overwrite, truncate, delete, repeat, insert, splice."""

import random
import struct
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""Takes a random generator, the data to mutate, and other inputs to copy from."""

# The limits of each integer type, signed and unsigned, where lengths, counts and sides go wrong.
EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_WIDTHS = {1: "B", 2: "H", 4: "I"}


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes], most: int = 4) -> bytes:
    """`data` after one to `most` mutations of any kind."""
    for _ in range(rng.randint(1, most)):
        data = rng.choice(MUTATIONS)(rng, data, others)
    return data


def span(rng: random.Random, data: bytes, most: int = 64) -> tuple[int, int]:
    """Start and end of a random range; empty for empty data."""
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.randint(1, most))


def _flip(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for at in rng.choices(range(len(data)), k=rng.randint(1, 8)) if data else ():
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(rng, data, 16)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def _number(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    width = rng.choice(list(_WIDTHS))
    value = rng.choice(EDGES) & (256**width - 1)
    at = rng.randrange(len(data) + 1)
    return data[:at] + struct.pack(rng.choice("<>") + _WIDTHS[width], value) + data[at + width :]


def _truncate(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(rng, data)
    return data[:begin] + data[end:]


def _repeat(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(rng, data)
    return data[:begin] + data[begin:end] * rng.choice((2, 3, 50)) + data[end:]


def _insert(rng: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 32)) + data[at:]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _insert_from_other(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    begin, end = span(rng, other)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[begin:end] + data[at:]


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _overwrite, _number, _number, _truncate),
    *(_delete, _repeat, _insert, _splice, _insert_from_other),
)
