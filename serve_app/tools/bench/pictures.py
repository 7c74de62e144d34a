"""Landscapes of any size for the benchmark: a house on a hill, drawn from a palette, the same at every run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]

_SUPERSAMPLING = 3  # drawn larger by this factor and reduced, which smooths every edge


@dataclass(frozen=True)
class Palette:
    """The scene's colours, from back to front, and the number of stars."""

    zenith: Colour
    horizon: Colour
    light: Colour
    cloud: Colour
    hills: tuple[Colour, Colour, Colour]
    wall: Colour
    gable: Colour
    roof: Colour
    window: Colour
    trunk: Colour
    leaves: Colour
    path: Colour
    num_stars: int = 0


MORNING = Palette(
    zenith=(78, 148, 206),
    horizon=(252, 228, 186),
    light=(255, 244, 206),
    cloud=(255, 252, 244),
    hills=((150, 186, 190), (118, 168, 122), (92, 146, 76)),
    wall=(246, 236, 214),
    gable=(222, 206, 180),
    roof=(190, 82, 58),
    window=(96, 128, 150),
    trunk=(112, 78, 54),
    leaves=(58, 112, 62),
    path=(222, 200, 150),
)
NIGHT = Palette(
    zenith=(22, 20, 58),
    horizon=(178, 92, 128),
    light=(250, 232, 222),
    cloud=(120, 76, 126),
    hills=((96, 62, 122), (62, 46, 98), (36, 32, 70)),
    wall=(122, 96, 140),
    gable=(92, 72, 118),
    roof=(52, 36, 78),
    window=(255, 204, 112),
    trunk=(30, 22, 48),
    leaves=(28, 30, 66),
    path=(98, 76, 118),
    num_stars=90,
)


@dataclass(frozen=True)
class _Canvas:
    """A large picture with drawing in fractions of its width and height; (0, 0) is the upper left corner."""

    picture: Image.Image
    pen: ImageDraw.ImageDraw

    def at(self, point: Point) -> Point:
        return point[0] * self.picture.width, point[1] * self.picture.height

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon([self.at(point) for point in points], fill=colour)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A circle; `radius` is a fraction of the shorter side, so that it stays round."""
        self.pen.circle(self.at(centre), radius * min(self.picture.size), fill=colour)


def draw_scene(palette: Palette, width: int, height: int) -> Image.Image:
    """A house on a hill under a wide sky: mode RGB, `width` x `height` pixels."""
    sky = _sky(palette, width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    canvas = _Canvas(sky, ImageDraw.Draw(sky))
    _draw_stars(canvas, palette)
    _draw_clouds(canvas, palette)
    _draw_hills(canvas, palette)
    _draw_path(canvas, palette)
    _draw_trees(canvas, palette)
    _draw_house(canvas, palette)
    return sky.resize((width, height), Image.Resampling.BOX)


def _sky(palette: Palette, width: int, height: int) -> Image.Image:
    """From zenith to horizon, with a sun or moon and the glow about it."""
    down = np.clip(np.linspace(0, 1.5, height), 0, 1)[:, None, None]
    sky = (1 - down) * np.array(palette.zenith) + down * np.array(palette.horizon)
    across = (np.arange(width) - 0.74 * width)[None, :, None] / min(width, height)
    along = (np.arange(height) - 0.25 * height)[:, None, None] / min(width, height)
    distance = np.hypot(across, along)
    glow = 0.55 * np.exp(-((distance / 0.2) ** 2))
    disc = np.clip((0.075 - distance) * min(width, height), 0, 1)
    light = np.maximum(glow, disc)
    return Image.fromarray(np.round(sky * (1 - light) + light * np.array(palette.light)).astype(np.uint8))


def _draw_stars(canvas: _Canvas, palette: Palette) -> None:
    stars = np.random.default_rng(7).uniform((0, 0, 0.0008), (1, 0.5, 0.0028), (palette.num_stars, 3))
    for x, y, radius in stars:
        canvas.disc((x, y), radius, palette.light)


def _draw_clouds(canvas: _Canvas, palette: Palette) -> None:
    """Blurred circles on a mask, through which the cloud colour is pasted onto the sky."""
    mask = Image.new("L", canvas.picture.size)
    pen = ImageDraw.Draw(mask)
    side = min(mask.size)
    for x, y, size in ((0.17, 0.2, 1.0), (0.46, 0.11, 0.7), (0.93, 0.36, 0.6)):
        for step, radius in enumerate((0.026, 0.042, 0.05, 0.036, 0.022)):
            centre = (x * mask.width + (step - 2) * 0.048 * size * side, y * mask.height - radius * 0.5 * size * side)
            pen.circle(centre, radius * size * side, fill=210)
    soft = mask.filter(ImageFilter.GaussianBlur(0.006 * side))
    canvas.picture.paste(palette.cloud, (0, 0, *mask.size), soft)


def _far(x: float) -> float:
    return 0.60 - 0.055 * math.sin(5.2 * x + 0.4) - 0.03 * math.sin(11.0 * x)


def _middle(x: float) -> float:
    return 0.69 - 0.06 * math.sin(3.6 * x + 2.6) - 0.012 * math.sin(13.0 * x)


def _near(x: float) -> float:
    return 0.80 - 0.075 * math.sin(3.1 * x + 0.15)


def _draw_hills(canvas: _Canvas, palette: Palette) -> None:
    for ridge, colour in zip((_far, _middle, _near), palette.hills, strict=True):
        canvas.polygon([*_line(ridge), (1, 1), (0, 1)], colour)


def _line(ridge: Callable[[float], float]) -> list[Point]:
    return [(x, ridge(x)) for x in np.linspace(0, 1, 200)]


def _draw_path(canvas: _Canvas, palette: Palette) -> None:
    """A path from the door to the lower edge, wider towards the viewer."""
    left, right = [], []
    for t in np.linspace(0, 1, 60):
        y = 0.735 + 0.265 * t
        x = 0.43 + 0.10 * math.sin(2.6 * t) * t
        half = 0.014 + 0.07 * t**2
        left.append((x - half, y))
        right.append((x + half, y))
    canvas.polygon([*left, *reversed(right)], palette.path)


def _draw_trees(canvas: _Canvas, palette: Palette) -> None:
    for x, size in ((0.12, 1.1), (0.20, 0.8), (0.70, 0.9), (0.88, 1.25)):
        foot = _near(x) + 0.012
        trunk, top = 0.008 * size, foot - 0.05 * size
        canvas.polygon([(x - trunk, foot), (x - trunk, top), (x + trunk, top), (x + trunk, foot)], palette.trunk)
        for lift, half in ((0.0, 0.052), (0.055, 0.042), (0.11, 0.03)):
            base = top - lift * size
            tip = base - 0.1 * size
            canvas.polygon([(x - half * size, base), (x, tip), (x + half * size, base)], palette.leaves)


def _draw_house(canvas: _Canvas, palette: Palette) -> None:
    """A long front with the gable end at its right, in fractions of the picture."""
    left, corner, right = 0.34, 0.50, 0.58
    foot, eaves, ridge = 0.745, 0.60, 0.49
    chimney = ((0.40, 0.52), (0.40, 0.45), (0.425, 0.45), (0.425, 0.52))
    canvas.polygon(chimney, palette.gable)
    canvas.polygon(((left, eaves), (corner, eaves), (corner, foot), (left, foot)), palette.wall)
    gable = ((corner, eaves), (0.54, ridge), (right, eaves), (right, foot - 0.012), (corner, foot))
    canvas.polygon(gable, palette.gable)
    roof = ((left - 0.015, eaves + 0.015), (left + 0.03, ridge), (0.54, ridge), (corner, eaves + 0.015))
    canvas.polygon(roof, palette.roof)
    canvas.polygon(
        ((0.54, ridge), (0.548, ridge), (right + 0.012, eaves + 0.012), (right, eaves + 0.008)), palette.roof
    )
    for x in (0.365, 0.455):
        canvas.polygon(((x, 0.635), (x + 0.028, 0.635), (x + 0.028, 0.68), (x, 0.68)), palette.window)
    canvas.polygon(((0.528, 0.63), (0.552, 0.63), (0.552, 0.672), (0.528, 0.672)), palette.window)
    canvas.polygon(((0.415, 0.655), (0.442, 0.655), (0.442, foot), (0.415, foot)), palette.roof)
