"""The drawn landscapes: size, repeatability, colours, smooth edges."""

from dataclasses import replace

import numpy as np
import pytest

from serve_app.tools.bench.pictures import MORNING, NIGHT, Palette, draw_scene
from tests.pictures import pixels_of


@pytest.mark.parametrize("palette", [MORNING, NIGHT], ids=["morning", "night"])
@pytest.mark.parametrize("size", [(160, 120), (96, 144)])
def test_scene_has_its_size_and_is_the_same_each_time(palette: Palette, size: tuple[int, int]) -> None:
    scene = draw_scene(palette, *size)
    assert (scene.mode, scene.size) == ("RGB", size)
    assert (pixels_of(scene) == pixels_of(draw_scene(palette, *size))).all()


def test_scene_shows_sky_field_roof_and_wall_in_the_palettes_colours() -> None:
    pixels = pixels_of(draw_scene(MORNING, 320, 240))
    assert tuple(pixels[0, 0]) == MORNING.zenith
    assert tuple(pixels[-1, 0]) == MORNING.hills[-1]
    for colour in (MORNING.roof, MORNING.wall, MORNING.leaves, MORNING.path):
        assert (pixels == colour).all(axis=2).sum() > 100, colour


def test_edges_are_smoothed() -> None:
    pixels = pixels_of(draw_scene(MORNING, 320, 240)).astype(int)
    # Down a column from the field's ridge: at most a pixel or two lie between hill and field, but some must.
    near, middle = np.array(MORNING.hills[2]), np.array(MORNING.hills[1])
    low, high = np.minimum(near, middle), np.maximum(near, middle)
    between = ((pixels > low) & (pixels < high)).all(axis=2)
    assert between.sum() > 50


def test_night_is_darker() -> None:
    morning, night = (pixels_of(draw_scene(palette, 320, 240)) for palette in (MORNING, NIGHT))
    assert night.mean() < morning.mean() / 2


def test_stars_stand_in_the_sky_alone() -> None:
    starry, bare = (pixels_of(draw_scene(replace(NIGHT, num_stars=number), 320, 240)) for number in (90, 0))
    rows, _ = np.nonzero((starry != bare).any(axis=2))
    assert rows.size > 50
    assert rows.max() <= 122
