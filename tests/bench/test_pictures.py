"""The drawn scenes: size, repeatability, colours, smooth edges; and reading the user's own picture."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.config import LimitSettings
from serve_app.demo.pictures import MORNING, NIGHT, Palette, draw_scene, encode_png
from serve_app.demo.run import load_picture
from serve_app.errors import InvalidInput
from tests.pictures import photograph, pixels_of


@pytest.mark.parametrize("palette", [MORNING, NIGHT], ids=["morning", "night"])
@pytest.mark.parametrize("size", [(160, 120), (96, 144)])
def test_scene_has_its_size_and_is_the_same_each_time(palette: Palette, size: tuple[int, int]) -> None:
    scene = draw_scene(palette, *size)
    assert (scene.mode, scene.size) == ("RGB", size)
    assert encode_png(scene) == encode_png(draw_scene(palette, *size))


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


def test_png_holds_the_picture_without_loss() -> None:
    scene = draw_scene(NIGHT, 64, 48)
    with Image.open(BytesIO(encode_png(scene))) as picture:
        assert picture.format == "PNG"
        assert (pixels_of(picture) == pixels_of(scene)).all()


def test_own_picture_is_reduced_and_keeps_its_aspect(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    photograph("astronaut").resize((2048, 1024)).save(file)
    picture = load_picture(file, LimitSettings())
    assert (picture.mode, picture.size) == ("RGB", (1024, 512))


def test_small_own_picture_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "small.webp"
    small = photograph("coffee", 300, 200)
    small.save(file, lossless=True)
    assert (pixels_of(load_picture(file, LimitSettings())) == pixels_of(small)).all()


def test_own_picture_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "moving.gif"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(InvalidInput, match=r"moving\.gif is a GIF file"):
        load_picture(file, LimitSettings())
