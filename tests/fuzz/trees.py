"""Mutated JSON trees: values replaced, names changed, elements nested, duplicated, removed."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None,
    lambda _: True,
    lambda _: False,
    lambda rng: rng.choice((0, -1, 1, 2, 63, 2048, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400)),
    lambda rng: rng.choice((0.0, -0.0, 0.5, 4.0, 1e-320, 1e308, 1e22, float("nan"), float("inf"), -float("inf"))),
    lambda rng: rng.choice(("", " ", "\0", "4", "true", "NaN", "orbit", "orbit:²", "orbit:0", "64x", "9" * 5000)),
    lambda rng: rng.choice(("\ud800", "a\udfffb", "🎉" * 50, "<|im_end|>", "<sks>", "e\u0301", "\u202e", "\r\n")),
    lambda rng: "x" * rng.choice((100, 4000, 4001, 100_000)),
    lambda rng: rng.choice(("http://127.0.0.1/", "https://example.com/a", "file:///etc/passwd", "data:,", "AAAA=")),
    lambda rng: [] if rng.random() < 0.5 else {},
    lambda rng: rng.choice(([None], [[]], [1, "x"], {"": 1}, {"azimuth": 1}, [{"azimuth": "x"}], ["", ""])),
    lambda rng: [{"azimuth": 45}] * rng.choice((1, 8, 16, 17, 2000)),
)
ODD_NAMES = (
    "",
    "body",
    "query",
    "input",
    "azimut",
    "image[]",
    "image[0]",
    "__class__",
    "\ud800",
    "x" * 5000,
    "0",
    "$ref",
)
MAX_NESTED, FAR_TOO_DEEP = 2000, 50_000
"""Levels of lists: beyond where any parser's recursion ends, and far beyond."""


def mutated(rng: random.Random, fields: dict[str, Any]) -> Any:
    """A copy of `fields` after one to four changes."""
    tree: Any = copy.deepcopy(fields)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _changed(rng, tree)
    return tree


def _changed(rng: random.Random, tree: Any) -> Any:
    if rng.random() < 0.02 or not isinstance(tree, dict | list) or not tree:
        return rng.choice(ODD_VALUES)(rng)
    parent, key = _place(rng, tree)
    match rng.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(ODD_NAMES)] = parent.pop(key)
        case 2 if isinstance(parent, dict):
            parent[rng.choice(ODD_NAMES)] = rng.choice(ODD_VALUES)(rng)
        case 3:
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"azimuth": parent[key]}
        case 4:
            other, name = _place(rng, tree)
            parent[key] = copy.deepcopy(other[name])
        case _:
            parent[key] = rng.choice(ODD_VALUES)(rng)
    return tree


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """A random list or object of a tree, which must be one itself, and a random key or index in it."""
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        below = tree[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.3:
            return tree, key
        tree = below


def to_json(rng: random.Random, tree: Any) -> str:
    """The tree as JSON, sometimes invalid: with control characters, duplicate names or very deep nesting."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    match rng.randrange(40):
        case 0:
            return text.replace('"image"', '"image": "x", "image"', 1)
        case 1:
            return text.replace("null", rng.choice("[{") * _levels(rng), 1)
        case 2:
            return rng.choice(('{"input":', '{"a":', "[")) * _levels(rng)
        case 3:
            return text.replace("\\n", "\n").replace("turn", "tu\trn\0")
        case 4:
            return text.replace("1", rng.choice(("1e999", "0" * 50, "9" * 5000, "1_000", "+1", "0x1")), 1)
        case _:
            return text


def _levels(rng: random.Random) -> int:
    return FAR_TOO_DEEP if rng.random() < 0.2 else rng.randint(1, MAX_NESTED)
