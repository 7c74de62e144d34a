"""The toy world: azimuths turn the right way, its 96 views are distinguishable, and its split is by pairs of things."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.edits.camera import CameraPose
from serve_app.tiny.solids import SHAPES
from serve_app.tiny.world import (
    COLOURS,
    GROUNDS,
    LIGHTS,
    POSES,
    Picture,
    Scene,
    Thing,
    is_held_out,
    nearest_pose,
    psnr,
    random_scene,
    render,
    views,
)

SCENE = Scene(Thing("box", "red"), Thing("sphere", "yellow"), "grass", "day")
HARD = {
    "a box by day": SCENE,
    "a cone at sunset": Scene(Thing("cone", "purple"), None, "grass", "sunset"),
    "a lone sphere at night": Scene(Thing("sphere", "yellow"), None, "stone", "night", 0.92),
    "a cylinder at night": Scene(Thing("cylinder", "green"), Thing("cone", "blue"), "snow", "night"),
}
SMALLEST_MARGIN = 40.0
"""Mean squared error that any two of a scene's views differ by at least, of 255²."""


def changed(scene: Scene, other: Scene, pose: CameraPose) -> NDArray[np.bool_]:
    """The pixels in which the two scenes' pictures differ by more than 40 levels."""
    first, second = (render(each, pose).astype(np.int16) for each in (scene, other))
    return np.asarray(abs(first - second).max(axis=2) > 40, np.bool_)


def neighbour_at(azimuth: int, elevation: int = 30) -> tuple[float, int]:
    """The neighbour's mean column, of 64, and its number of pixels, in medium shots: found by recolouring it."""
    blue = replace(SCENE, neighbour=Thing("sphere", "blue"))
    where = changed(SCENE, blue, CameraPose(azimuth, elevation, 1.0))
    return float(where.nonzero()[1].mean()), int(where.sum())


def subject_pixels(scene: Scene, pose: CameraPose) -> int:
    blue = replace(scene, subject=Thing(scene.subject.shape, "blue"))
    return int(changed(scene, blue, pose).sum())


def test_the_neighbour_stands_at_the_front_views_right_edge() -> None:
    column, _ = neighbour_at(0)
    assert column > 40


def test_the_camera_goes_to_the_viewers_right() -> None:
    """At 90 the neighbour is nearer than from any other side, and seen left of the middle: it stands to the front."""
    sizes = {azimuth: neighbour_at(azimuth)[1] for azimuth in (0, 90, 180, 270)}
    assert max(sizes, key=sizes.__getitem__) == 90
    assert sizes[90] > 1.5 * sizes[180] > 0
    assert neighbour_at(45)[0] > 32 > neighbour_at(90)[0]


def test_the_rug_shows_where_the_front_is() -> None:
    """From the right the rug lies left, from the left it lies right, from above and before it lies low."""
    lone, centres = replace(SCENE, neighbour=None), {}
    for azimuth in (0, 90, 180, 270):
        picture = render(lone, CameraPose(azimuth, 60, 1.0)).astype(np.int16)
        pink = (picture[..., 0] > picture[..., 1] + 70) & (picture[..., 2] > picture[..., 1] + 30)
        centres[azimuth] = [float(axis.mean()) for axis in pink.nonzero()]
    assert centres[90][1] < 22
    assert centres[270][1] > 42
    assert centres[0][0] > 42
    assert centres[180][0] < 22


@pytest.mark.parametrize("azimuth", [0, 45, 90, 135, 180, 225, 270, 315])
def test_a_view_is_not_its_mirror_nor_that_from_the_other_side(azimuth: int) -> None:
    here, there = (render(SCENE, CameraPose(side % 360, 30, 1.0)) for side in (azimuth, -azimuth))
    assert psnr(here, here[:, ::-1]) < 26
    assert psnr(here, there[:, ::-1]) < 26


@pytest.mark.parametrize(("elevation", "shape"), list(product([-30, 0, 30, 60], SHAPES)))
def test_the_subject_shrinks_with_distance(elevation: int, shape: str) -> None:
    scene = Scene(Thing(shape, "red"), None, "snow", "day")
    near, middle, far = (subject_pixels(scene, CameraPose(0, elevation, distance)) for distance in (0.6, 1.0, 1.8))
    assert near > 1.8 * middle
    assert middle > 1.8 * far
    assert far > 40


def test_the_horizon_sinks_in_a_low_angle_shot_and_rises_above_a_high_one() -> None:
    def sky_rows(elevation: int) -> int:
        picture = render(SCENE, CameraPose(270, elevation, 1.8)).astype(np.int16)
        return int((picture[:, 2, 2] > picture[:, 2, 1]).sum())

    low, level, raised, high = (sky_rows(elevation) for elevation in (-30, 0, 30, 60))
    assert low > level + 10 > level > raised + 20
    assert high == 0


@pytest.mark.parametrize("scene", HARD.values(), ids=HARD.keys())
def test_all_views_of_a_scene_are_distinguishable(scene: Scene) -> None:
    flat = views(scene).reshape(len(POSES), -1).astype(np.float64)
    squares = (flat**2).sum(axis=1)
    errors = (squares[:, None] + squares[None] - 2 * flat @ flat.T) / flat.shape[1]
    assert errors[~np.eye(len(POSES), dtype=bool)].min() > SMALLEST_MARGIN


def test_the_nearest_pose_is_the_one_rendered_even_under_noise() -> None:
    candidates = views(SCENE)
    noise = np.random.default_rng(0).normal(0, 20, candidates.shape[1:])
    for pose, picture in zip(POSES, candidates, strict=True):
        noisy: Picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
        assert nearest_pose(picture, candidates) == pose
        assert nearest_pose(noisy, candidates) == pose


def test_there_are_96_poses_and_views_are_in_their_order() -> None:
    assert len(set(POSES)) == 96
    candidates = views(SCENE, size=16)
    assert candidates.shape == (96, 16, 16, 3)
    assert np.array_equal(candidates[41], render(SCENE, POSES[41], size=16))


def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "import hashlib; from serve_app.tiny.world import *;"
        "scene = Scene(Thing('box', 'red'), Thing('sphere', 'yellow'), 'grass', 'day');"
        "print(hashlib.sha256(views(scene).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == hashlib.sha256(views(SCENE).tobytes()).hexdigest()


@pytest.mark.parametrize("antialiasing", [1, 2, 3])
def test_a_picture_has_the_requested_size(antialiasing: int) -> None:
    picture = render(SCENE, POSES[0], size=48, antialiasing=antialiasing)
    assert picture.shape == (48, 48, 3)
    assert picture.dtype == np.uint8


def test_antialiasing_is_near_the_picture_of_many_rays() -> None:
    truth = render(SCENE, POSES[20], antialiasing=8)
    plain, smooth = (psnr(render(SCENE, POSES[20], antialiasing=rays), truth) for rays in (1, 2))
    assert smooth > plain + 3
    assert smooth > 33


@pytest.mark.parametrize("elevation", [-30, 0, 30, 60])
@pytest.mark.parametrize(
    "scenes",
    [[replace(SCENE, ground=ground) for ground in GROUNDS], [replace(SCENE, light=light) for light in LIGHTS]],
    ids=["grounds", "lights"],
)
def test_grounds_and_lights_are_distinguishable(scenes: list[Scene], elevation: int) -> None:
    pictures = [render(scene, CameraPose(0, elevation, 1.0)) for scene in scenes]
    assert max(psnr(one, other) for one, other in permutations(pictures, 2)) < 26


def test_psnr_of_known_pictures() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + np.uint8(255)) == 0
    assert psnr(black, black + np.uint8(51)) == pytest.approx(13.979, abs=1e-3)


def test_an_eighth_is_held_out_and_every_attribute_is_on_both_sides() -> None:
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng) for _ in range(4000)]
    sides = {side: [scene for scene in scenes if is_held_out(scene) == side] for side in (True, False)}
    assert 0.08 < len(sides[True]) / len(scenes) < 0.17
    for side in sides.values():
        neighbours = [scene.neighbour for scene in side if scene.neighbour]
        assert len(neighbours) < len(side)
        assert {thing.shape for thing in neighbours} == {scene.subject.shape for scene in side} == set(SHAPES)
        assert {thing.colour for thing in neighbours} == {scene.subject.colour for scene in side} == set(COLOURS)
        assert {(scene.ground, scene.light) for scene in side} == set(product(GROUNDS, LIGHTS))


def test_the_split_depends_only_on_the_pair_of_things() -> None:
    rng = np.random.default_rng(4)
    for scene in (random_scene(rng) for _ in range(50)):
        answers = {is_held_out(replace(scene, ground=g, light=li, size=1.0)) for g, li in product(GROUNDS, LIGHTS)}
        assert answers == {is_held_out(scene)}


def test_a_random_scenes_neighbour_is_unlike_its_subject() -> None:
    rng = np.random.default_rng(5)
    for scene in (random_scene(rng) for _ in range(200)):
        if scene.neighbour is not None:
            assert scene.neighbour.shape != scene.subject.shape
            assert scene.neighbour.colour != scene.subject.colour
