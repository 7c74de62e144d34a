"""Mutations that know nothing of what they mutate: bytes flipped, cut, doubled, spliced, numbers overwritten."""

import random
import struct
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""From dice, what to mutate, and other inputs to borrow from."""

# Where lengths, counts and sides go wrong: the ends of each integer type, signed or not.
EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_WIDTHS = {1: "B", 2: "H", 4: "I"}


def mutated(dice: random.Random, data: bytes, others: Sequence[bytes], most: int = 4) -> bytes:
    """`data` after one to `most` mutations of any kind."""
    for _ in range(dice.randint(1, most)):
        data = dice.choice(MUTATIONS)(dice, data, others)
    return data


def span(dice: random.Random, data: bytes, most: int = 64) -> tuple[int, int]:
    """Begin and end of a random stretch; empty for empty data."""
    begin = dice.randrange(len(data) + 1)
    return begin, min(len(data), begin + dice.randint(1, most))


def _flip(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for at in dice.choices(range(len(data)), k=dice.randint(1, 8)) if data else ():
        changed[at] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _overwrite(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(dice, data, 16)
    return data[:begin] + dice.randbytes(end - begin) + data[end:]


def _number(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    width = dice.choice(list(_WIDTHS))
    value = dice.choice(EDGES) & (256**width - 1)
    at = dice.randrange(len(data) + 1)
    return data[:at] + struct.pack(dice.choice("<>") + _WIDTHS[width], value) + data[at + width :]


def _truncate(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _delete(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(dice, data)
    return data[:begin] + data[end:]


def _repeat(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = span(dice, data)
    return data[:begin] + data[begin:end] * dice.choice((2, 3, 50)) + data[end:]


def _insert(dice: random.Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.randbytes(dice.randint(1, 32)) + data[at:]


def _splice(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = dice.choice(others)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _borrow(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = dice.choice(others)
    begin, end = span(dice, other)
    at = dice.randrange(len(data) + 1)
    return data[:at] + other[begin:end] + data[at:]


MUTATIONS: tuple[Mutation, ...] = (
    *(_flip, _overwrite, _number, _number, _truncate),
    *(_delete, _repeat, _insert, _splice, _borrow),
)
