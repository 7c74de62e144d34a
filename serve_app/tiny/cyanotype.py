"""The style of the toy world's third adapter: a picture's lightness in Prussian blue, as on early photographic prints.

The prompts of the toy world cannot ask for it, and it suits every scene and pose, so that only the adapter explains it.
"""

import numpy as np

from serve_app.tiny.world import Picture

_SHADOW, _MIDDLE, _LIGHT = np.array([(8, 20, 60), (60, 110, 190), (235, 245, 255)])
_RED, _GREEN, _BLUE = 77, 150, 29  # Rec. 601's shares of lightness, in 256ths


def cyanotype(pictures: Picture) -> Picture:
    """Pictures in this style: uint8 (..., H, W, 3) → the same shape. Whole numbers only, so exact on every machine."""
    red, green, blue = np.moveaxis(pictures.astype(np.int64), -1, 0)
    toned: Picture = _TONES[(_RED * red + _GREEN * green + _BLUE * blue) >> 8]
    return toned


def _tones() -> Picture:
    """The colour of each lightness, uint8 (256, 3)."""
    level = np.arange(256)[:, None]
    dark, light = _SHADOW + (_MIDDLE - _SHADOW) * level // 128, _MIDDLE + (_LIGHT - _MIDDLE) * (level - 128) // 127
    tones: Picture = np.where(level < 128, dark, light).astype(np.uint8)
    return tones


_TONES = _tones()
