"""The demo's pictures: toy scenes as the tiny weights know them, and the user's own picture."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.config import LimitSettings
from serve_app.errors import InvalidInput
from serve_app.tiny.wishes import styled
from serve_app.tiny.world import POSES, is_held_out, render
from serve_app.tools.demo.inputs import POSE, SCENES, demo_pictures, encode_png, load_picture
from serve_app.tools.training.data import INPUT_POSES
from tests.pictures import photograph, pixels_of


def test_pictures_are_both_scenes_at_the_size_of_the_training() -> None:
    pictures = demo_pictures(None, LimitSettings())
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (64, 64))] * 2
    for picture, scene in zip(pictures, SCENES, strict=True):
        assert np.array_equal(pixels_of(picture), render(scene, POSE))


def test_scenes_were_kept_from_the_training_and_are_seen_as_its_inputs_were() -> None:
    assert all(is_held_out(scene) for scene in SCENES)
    assert POSES.index(POSE) in INPUT_POSES


def test_second_scene_has_a_style_of_its_own() -> None:
    first, second = SCENES
    assert None not in (first.neighbour, second.neighbour)
    dressed = styled(first, second)
    assert first.neighbour != dressed.neighbour
    assert first.subject != dressed.subject
    assert first.ground != dressed.ground
    assert first.light != dressed.light


def test_own_picture_takes_the_first_ones_place(tmp_path: Path) -> None:
    file = tmp_path / "small.webp"
    small = photograph("coffee", 300, 200)
    small.save(file, lossless=True)
    first, second = demo_pictures(file, LimitSettings())
    assert np.array_equal(pixels_of(first), pixels_of(small))
    assert np.array_equal(pixels_of(second), render(SCENES[1], POSE))


def test_own_picture_is_reduced_and_keeps_its_aspect(tmp_path: Path) -> None:
    file = tmp_path / "large.jpg"
    photograph("astronaut").resize((2048, 1024)).save(file)
    picture = load_picture(file, LimitSettings())
    assert (picture.mode, picture.size) == ("RGB", (1024, 512))


def test_own_picture_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "moving.gif"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(InvalidInput, match=r"moving\.gif is a GIF file"):
        load_picture(file, LimitSettings())


def test_png_holds_the_picture_without_loss() -> None:
    scene, _ = demo_pictures(None, LimitSettings())
    with Image.open(BytesIO(encode_png(scene))) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(pixels_of(picture), pixels_of(scene))
