"""Camera words of the base model, which it knows without any adapter.

The toy world's subject faces south, towards its rug. None of these words is one of the angles adapter's, so that the
base model can draw other views, but does not know the adapter's words.
"""

import re
from collections.abc import Iterable

import numpy as np

from serve_app.edits.camera import CameraPose
from serve_app.tiny.wishes import VOCABULARY

_COMPASS = {
    0: "south",
    45: "south east",
    90: "east",
    135: "north east",
    180: "north",
    225: "north west",
    270: "west",
    315: "south west",
}
_HEIGHT = {-30: "from below", 0: "level", 30: "from above", 60: "from overhead"}
_REACH = {0.6: "near", 1.0: "midway", 1.8: "far away"}
_WORDINGS = ("look from {compass} , {height} , {reach}", "walk {compass} and look {height} , {reach}")
KEEPING = ("", "keep it", "keep the scene", "keep the picture")
"""Prompts that request no change."""


def view_words(pose: CameraPose, rng: np.random.Generator) -> str:
    """The pose in the base model's camera words."""
    wording = _WORDINGS[int(rng.integers(len(_WORDINGS)))]
    return wording.format(compass=_COMPASS[pose.azimuth], height=_HEIGHT[pose.elevation], reach=_REACH[pose.distance])


def _words(texts: Iterable[str]) -> set[str]:
    return set(re.sub(r"{\w+}", "", " ".join(texts)).split())


WORDS = tuple(
    sorted({*VOCABULARY, *_words((*_COMPASS.values(), *_HEIGHT.values(), *_REACH.values(), *_WORDINGS, *KEEPING))})
)
"""Every word of the prompts for wishes and views."""
