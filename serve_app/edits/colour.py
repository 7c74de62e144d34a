"""The colours of a file without an ICC profile as an ICC profile: of a PNG its cICP, gAMA and cHRM chunks, of a HEIC or
AVIF file its nclx box.

The order of precedence is that of the PNG specification (third edition, 13.13): cICP, iCCP, sRGB, then gAMA and cHRM.
"""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
"""CIE x and y."""


class Primaries(NamedTuple):
    """The chromaticities of white, red, green and blue."""

    white: Point
    red: Point
    green: Point
    blue: Point


_D65 = (0.3127, 0.3290)
_BT709 = Primaries(_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
# By their numbers in ITU-T H.273, which cICP uses.
_PRIMARIES = {
    1: _BT709,
    5: Primaries(_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: Primaries(_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: Primaries(_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: Primaries(_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Primaries((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Primaries(_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}

Curve = tuple[float, ...]
"""The parameters g, a, b, c, d of ICC's parametric curve: (aX + b)^g from X = d on, cX below; g alone is X^g."""

_SRGB: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
# Likewise. The curves of HDR (16 and 18) need tone mapping; their pictures are read as sRGB.
_CURVES: dict[int, Curve] = {1: _BT709_CURVE, 4: (2.2,), 5: (2.8,), 6: _BT709_CURVE, 8: (1.0,), 13: _SRGB}
_CURVES |= {14: _BT709_CURVE, 15: _BT709_CURVE}

_WIDE_GAMUTS = (9, 11, 12)
_SCREEN_GAMMA = 2.2
_THRESHOLD = 0.05
"""libpng corrects no gamma that differs less from a screen's, relative to it. Most encoders write 1/2.2 for sRGB."""

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def rgb_profile(info: Mapping[Any, Any], cicp: bytes | None) -> bytes | None:
    """An ICC profile of the picture's colours as RGB; None: no chunk says more than the picture's own ICC profile, or
    than sRGB without one.

    Args:
        info: the `info` of Pillow's PNG reader.
        cicp: the content of the cICP chunk, if there is one.
    """
    named = _named(cicp)
    if named is not None:
        return _profile(*named)
    if "icc_profile" in info or "srgb" in info:
        return None
    gamma, points = info.get("gamma", 0.0), info.get("chromaticity")
    if not gamma and points is None:
        return None
    primaries = _BT709 if points is None else Primaries(*zip(points[::2], points[1::2], strict=True))
    is_corrected = 1 / 100 < gamma < 100 and abs(gamma * _SCREEN_GAMMA - 1) >= _THRESHOLD
    curve: Curve = (1 / gamma,) if is_corrected else _SRGB
    if curve is _SRGB and np.allclose(primaries, _BT709, atol=0.001):
        return None
    return _profile(primaries, curve)


def nclx_profile(info: Mapping[Any, Any], nclx: tuple[int, int] | None) -> bytes | None:
    """The same for a HEIC or AVIF file. An ICC profile takes precedence. Without a wide gamut, viewers show the colours
    as sRGB: many encoders write numbers of television there, whatever the picture.

    Args:
        info: the `info` of the file's reader.
        nclx: the numbers of its primaries and its curve, if the file has them.
    """
    if nclx is None or nclx[0] not in _WIDE_GAMUTS or info.get("icc_profile"):
        return None
    named = _numbered(*nclx)
    return None if named is None else _profile(*named)


def _named(cicp: bytes | None) -> tuple[Primaries, Curve] | None:
    """What a cICP chunk names: primaries, curve, matrix 0 for RGB, and full range."""
    return None if cicp is None or len(cicp) != 4 or cicp[2] != 0 else _numbered(cicp[0], cicp[1])


def _numbered(primaries_number: int, curve_number: int) -> tuple[Primaries, Curve] | None:
    primaries, curve = _PRIMARIES.get(primaries_number), _CURVES.get(curve_number)
    return None if primaries is None or curve is None else (primaries, curve)


def _profile(primaries: Primaries, curve: Curve) -> bytes | None:
    """An ICC profile, version 4.3, of a display."""
    tone = struct.pack(">4sIHH", b"para", 0, 3 if len(curve) > 1 else 0, 0) + _fixed(*curve)
    tags = {b"desc": _text("colours"), b"cprt": _text("none"), b"wtpt": _xyz(_D50)}
    try:
        columns = _to_d50(primaries).T
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None
    for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
        if not np.isfinite(column).all() or abs(column).max() > 100:
            return None
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": tone}
    return _packed(tags)


def _to_d50(primaries: Primaries) -> NDArray[np.float64]:
    """The matrix from linear RGB to XYZ, adapted to D50 by Bradford's method."""
    white, *colours = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in primaries)
    matrix = np.stack(colours, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    adapted = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    to_d50: NDArray[np.float64] = np.linalg.solve(_BRADFORD, adapted[:, None] * (_BRADFORD @ matrix))
    return to_d50


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _xyz(numbers: NDArray[np.float64]) -> bytes:
    return struct.pack(">4sI", b"XYZ ", 0) + _fixed(*numbers)


def _text(text: str) -> bytes:
    return struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", 2 * len(text), 28) + text.encode("utf-16-be")


def _packed(tags: Mapping[bytes, bytes]) -> bytes:
    table, content = struct.pack(">I", len(tags)), b""
    begin = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, begin + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    size = begin + len(content)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"", b"acsp")
    header += bytes(68 - len(header)) + _fixed(*_D50)
    return header + bytes(128 - len(header)) + table + content
