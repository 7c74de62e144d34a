"""JSON mutated as what it is: values replaced, names bent, things nested, doubled, left out."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None,
    lambda _: True,
    lambda _: False,
    lambda dice: dice.choice((0, -1, 1, 2, 63, 2048, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400)),
    lambda dice: dice.choice((0.0, -0.0, 0.5, 4.0, 1e-320, 1e308, 1e22, float("nan"), float("inf"), -float("inf"))),
    lambda dice: dice.choice(("", " ", "\0", "4", "true", "NaN", "orbit", "orbit:²", "orbit:0", "64x", "9" * 5000)),
    lambda dice: dice.choice(("\ud800", "a\udfffb", "🎉" * 50, "<|im_end|>", "<sks>", "e\u0301", "\u202e", "\r\n")),
    lambda dice: "x" * dice.choice((100, 4000, 4001, 100_000)),
    lambda dice: dice.choice(("http://127.0.0.1/", "https://example.com/a", "file:///etc/passwd", "data:,", "AAAA=")),
    lambda dice: [] if dice.random() < 0.5 else {},
    lambda dice: dice.choice(([None], [[]], [1, "x"], {"": 1}, {"azimuth": 1}, [{"azimuth": "x"}], ["", ""])),
    lambda dice: [{"azimuth": 45}] * dice.choice((1, 8, 16, 17, 2000)),
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
NESTED = 50_000
"""Levels of lists: far deeper than any parser's recursion goes."""


def mutated(dice: random.Random, fields: dict[str, Any]) -> Any:
    """A copy of `fields` after one to four changes."""
    tree: Any = copy.deepcopy(fields)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        tree = _changed(dice, tree)
    return tree


def _changed(dice: random.Random, tree: Any) -> Any:
    if dice.random() < 0.02 or not isinstance(tree, dict | list) or not tree:
        return dice.choice(ODD_VALUES)(dice)
    parent, key = _place(dice, tree)
    match dice.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[dice.choice(ODD_NAMES)] = parent.pop(key)
        case 2 if isinstance(parent, dict):
            parent[dice.choice(ODD_NAMES)] = dice.choice(ODD_VALUES)(dice)
        case 3:
            parent[key] = [parent[key]] if dice.random() < 0.5 else {"azimuth": parent[key]}
        case 4:
            other, name = _place(dice, tree)
            parent[key] = copy.deepcopy(other[name])
        case _:
            parent[key] = dice.choice(ODD_VALUES)(dice)
    return tree


def _place(dice: random.Random, tree: Any) -> tuple[Any, Any]:
    """Some list or object of a tree that is one, and a key or an index in it."""
    while True:
        key = dice.choice(list(tree)) if isinstance(tree, dict) else dice.randrange(len(tree))
        below = tree[key]
        if not isinstance(below, dict | list) or not below or dice.random() < 0.3:
            return tree, key
        tree = below


def written(dice: random.Random, tree: Any) -> str:
    """The tree as JSON, or nearly: sometimes with control characters, doubled names or endless nesting."""
    text = json.dumps(tree, ensure_ascii=dice.random() < 0.5)
    match dice.randrange(40):
        case 0:
            return text.replace('"image"', '"image": "x", "image"', 1)
        case 1:
            return text.replace("null", dice.choice("[{") * NESTED, 1)
        case 2:
            return dice.choice(('{"input":', '{"a":', "[")) * NESTED
        case 3:
            return text.replace("\\n", "\n").replace("turn", "tu\trn\0")
        case 4:
            return text.replace("1", dice.choice(("1e999", "0" * 50, "9" * 5000, "1_000", "+1", "0x1")), 1)
        case _:
            return text
