"""Checks that edits of toy-world scenes do what they say, for any service: over HTTP, or without Ray.

Each check requests edits of held-out scenes and compares the pictures with the toy world's own rendering.
"""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from serve_app.edits.camera import CameraPose
from serve_app.tiny.cyanotype import cyanotype
from serve_app.tiny.wishes import styled
from serve_app.tiny.world import Picture, Scene, Thing, is_held_out, nearest_pose, psnr, render, views
from tests.meaning.training_reference import training_picture
from tests.pictures import to_base64

RunJob = Callable[..., dict[str, Any]]
"""Runs a RunPod job with these input fields and returns its envelope."""

FRONT = CameraPose(0, 30, 1.0)
AWAY = CameraPose(45, 60, 1.8)
SCENE = Scene(Thing("box", "orange"), Thing("sphere", "blue"), "snow", "day")
OTHER = Scene(Thing("cylinder", "blue"), Thing("sphere", "purple"), "grass", "sunset")


def drawn(run_job: RunJob, **fields: Any) -> list[Picture]:
    """The pictures of a job, in the envelope's order."""
    envelope = run_job(**fields)
    assert envelope.get("status") == "COMPLETED", envelope
    return [opened(picture) for picture in envelope["output"]["images"]]


def opened(picture: str) -> Picture:
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        pixels: Picture = np.asarray(image.convert("RGB"))
    assert pixels.shape == (64, 64, 3)
    return pixels


def sent(scene: Scene, pose: CameraPose = FRONT) -> str:
    """The scene rendered from a pose, in base64."""
    return to_base64(Image.fromarray(render(scene, pose)))


def azimuth_90_shows_the_right_side_and_not_the_left(run_job: RunJob) -> None:
    for scene in (SCENE, OTHER):
        (picture,) = drawn(run_job, image=sent(scene), prompt="", azimuth=90, elevation=30, distance=1.0)
        right, left = (render(scene, CameraPose(azimuth, 30, 1.0)) for azimuth in (90, 270))
        assert nearest_pose(picture, views(scene)).azimuth == 90
        assert psnr(picture, right) > psnr(picture, left) + 4


def each_picture_of_an_orbit_is_its_own_view(run_job: RunJob) -> None:
    pictures = drawn(run_job, image=sent(OTHER, AWAY), prompt="", views="orbit:8", elevation=30, distance=1.0)
    seen = views(OTHER)
    assert [nearest_pose(each, seen).azimuth for each in pictures] == [0, 45, 90, 135, 180, 225, 270, 315]


def near_is_larger_than_far(run_job: RunJob) -> None:
    near, far = drawn(run_job, image=sent(SCENE), prompt="", elevation=30, views=[{"distance": 0.6}, {"distance": 1.8}])
    assert orange_share(near) > 2 * orange_share(far) > 0


def orange_share(picture: Picture) -> float:
    """The share of the picture that has the orange of the box: red far above blue, and green above blue."""
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return float(((red - blue > 70) & (green - blue > 30)).mean())


def camera_words_and_a_wish_both_work(run_job: RunJob) -> None:
    night = replace(SCENE, light="night")
    (picture,) = drawn(run_job, image=sent(SCENE), prompt="make it night", azimuth=180, elevation=60, distance=1.8)
    assert nearest_pose(picture, views(night)) == CameraPose(180, 60, 1.8)
    assert psnr(picture, render(night, CameraPose(180, 60, 1.8))) > 20


def eight_different_edits_return_in_their_order(run_job: RunJob) -> None:
    subject = SCENE.subject
    wishes = {
        "make it night": replace(SCENE, light="night"),
        "paint the box green": replace(SCENE, subject=replace(subject, colour="green")),
        "change the ground to sand": replace(SCENE, ground="sand"),
        "remove the sphere": replace(SCENE, neighbour=None),
        "make it sunset": replace(SCENE, light="sunset"),
        "paint the box purple": replace(SCENE, subject=replace(subject, colour="purple")),
        "change the ground to grass": replace(SCENE, ground="grass"),
        "change the ground to stone": replace(SCENE, ground="stone"),
    }
    pictures = drawn(run_job, images=[sent(SCENE)] * 8, prompt=list(wishes))
    truths = [render(scene, FRONT) for scene in wishes.values()]
    nearest = [int(np.argmax([psnr(picture, truth) for truth in truths])) for picture in pictures]
    assert nearest == list(range(8))


def style_comes_from_picture_2(run_job: RunJob) -> None:
    (picture,) = drawn(run_job, images=[sent(SCENE), sent(OTHER)], prompt="apply the style of picture 2")
    right, wrong = render(styled(SCENE, OTHER), FRONT), render(styled(OTHER, SCENE), FRONT)
    assert psnr(picture, right) > 20
    assert psnr(picture, right) > psnr(picture, wrong) + 3
    assert psnr(picture, right) > psnr(picture, render(SCENE, FRONT)) + 3


def a_style_is_on_the_edits_that_name_it_and_on_no_other(run_job: RunJob) -> None:
    """Edits that differ in nothing else run beside each other."""
    fields = {"image": sent(SCENE), "prompt": "change the ground to sand", "seed": 5}
    uses: list[list[dict[str, str]]] = [STYLE, []] * 4
    with ThreadPoolExecutor(len(uses)) as clients:
        pictures = [each for (each,) in clients.map(lambda loras: drawn(run_job, **fields, loras=loras), uses)]
    plain = render(replace(SCENE, ground="sand"), FRONT)
    for loras, picture in zip(uses, pictures, strict=True):
        right, wrong = (cyanotype(plain), plain) if loras else (plain, cyanotype(plain))
        assert psnr(picture, right) > 20
        assert psnr(picture, right) > psnr(picture, wrong) + 6


def a_style_keeps_the_pose(run_job: RunJob) -> None:
    for scene, pose in ((SCENE, CameraPose(90, 30, 1.0)), (OTHER, CameraPose(225, 60, 1.8))):
        camera = {"azimuth": pose.azimuth, "elevation": pose.elevation, "distance": pose.distance}
        (picture,) = drawn(run_job, image=sent(scene), prompt="", **camera, loras=STYLE)
        assert nearest_pose(picture, cyanotype(views(scene))) == pose
        assert psnr(picture, cyanotype(render(scene, pose))) > 20


def rewriting_turns_a_vague_wish_into_a_precise_one(run_job: RunJob) -> None:
    night = replace(SCENE, light="night")
    fields = {"image": sent(night), "prompt": "make it better"}
    (vague,), (precise,) = drawn(run_job, **fields), drawn(run_job, **fields, rewrite_prompt=True)
    wanted = render(SCENE, FRONT)
    assert psnr(precise, wanted) > psnr(vague, wanted) + 3


def the_same_seed_gives_the_same_file(run_job: RunJob) -> None:
    fields = {"image": sent(SCENE), "prompt": "make it sunset", "azimuth": 45}
    files = [run_job(**fields, seed=seed)["output"]["images"][0] for seed in (7, 7, 8)]
    assert files[0] == files[1] != files[2]


def pictures_equal_those_of_the_training_code(run_job: RunJob) -> None:
    """Steps, schedule, adapters and their strengths are the ones that the weights were trained with."""
    pose = CameraPose(225, 60, 1.0)
    camera_fields = {"azimuth": pose.azimuth, "elevation": pose.elevation, "distance": pose.distance}
    for prompt, camera, whole, loras in (
        ("make it sunset", {}, "make it sunset", []),
        ("", camera_fields, pose.tokens, []),
        ("paint the box green", camera_fields, f"{pose.tokens} paint the box green", []),
        ("paint the box green", camera_fields, f"{pose.tokens} paint the box green", STYLE),
    ):
        (picture,) = drawn(run_job, image=sent(SCENE), prompt=prompt, seed=11, loras=loras, **camera)
        expected = training_picture(whole, render(SCENE, FRONT), seed=11, in_style=bool(loras))
        apart = np.abs(picture.astype(int) - expected)
        assert apart.max() <= LEVELS_APART, (prompt, loras, apart.max())


LEVELS_APART = 2
STYLE = [{"name": "cyanotype"}]

CHECKS = (
    azimuth_90_shows_the_right_side_and_not_the_left,
    each_picture_of_an_orbit_is_its_own_view,
    near_is_larger_than_far,
    camera_words_and_a_wish_both_work,
    eight_different_edits_return_in_their_order,
    style_comes_from_picture_2,
    a_style_is_on_the_edits_that_name_it_and_on_no_other,
    a_style_keeps_the_pose,
    rewriting_turns_a_vague_wish_into_a_precise_one,
    the_same_seed_gives_the_same_file,
    pictures_equal_those_of_the_training_code,
)

assert is_held_out(SCENE)
assert is_held_out(OTHER)
