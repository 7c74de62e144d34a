"""The demo's pictures and requests: what the server parses, and that the tiny weights know every word of them."""

import json
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.config import TINY_FILE, LimitSettings
from serve_app.edits.camera import CameraPose
from serve_app.errors import InvalidInput
from serve_app.ingress.pictures.prepare import ParsedRequest
from serve_app.ingress.runpod.parse import parse_input
from serve_app.ingress.runpod.request import RunPodRequest
from serve_app.tiny.wishes import styled, wishes_of
from serve_app.tiny.world import POSES, is_held_out, render
from serve_app.tools.demo.modes import MODES, POSE, SCENES, Mode, demo_pictures, encode_png, load_picture
from serve_app.tools.training.data import INPUT_POSES
from serve_app.tools.training.vague import VAGUE
from tests.conftest import settings_in
from tests.pictures import photograph, pixels_of

FILES = (b"first", b"second")
NUM_PICTURES = {
    "orbit": [1] * 8,
    "camera": [1] * 4,
    "instruction": [1],
    "rewriting": [1],
    "batch": [1] * 4,
    "style": [2],
    "adapter": [1],
}
MODE = {mode.name: mode for mode in MODES}
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def parse(mode: Mode) -> ParsedRequest:
    """Parse the mode's payload as the server does."""
    body = RunPodRequest.model_validate_json(json.dumps(mode.payload(FILES)))
    return parse_input(body.input, LimitSettings(), settings_in(TINY_FILE).editor.loras)


@cache
def wishes(index: int) -> frozenset[str]:
    """The training prompts that apply to a scene of the demo, by its index."""
    rng = np.random.default_rng(0)
    return frozenset(wish.prompt for _ in range(100) for wish in wishes_of(SCENES[index], rng))


@every_mode
def test_server_reads_each_payload_as_the_mode_means_it(mode: Mode) -> None:
    parsed = parse(mode)
    assert [len(parsed.picture_sets[index]) for index in parsed.pictures_of] == NUM_PICTURES[mode.name]
    assert {edit.rewrite_prompt for edit in parsed.edits} == {mode.name == "rewriting"}
    assert len(mode.captions) == len(parsed.edits)


@every_mode
def test_each_prompt_is_a_wish_that_the_scene_can_be_granted(mode: Mode) -> None:
    parsed = parse(mode)
    for edit, set_index in zip(parsed.edits, parsed.pictures_of, strict=True):
        if edit.camera is not None:
            assert not edit.prompt
            continue
        clear = {each: wish for wish, vague in VAGUE.items() for each in vague} if edit.rewrite_prompt else {}
        assert (edit.prompt in clear) == edit.rewrite_prompt
        assert clear.get(edit.prompt, edit.prompt) in wishes(mode.pictures[set_index])


def test_orbit_goes_once_round_at_the_pictures_own_height() -> None:
    poses = [edit.camera for edit in parse(MODE["orbit"]).edits]
    assert poses == [CameraPose(azimuth, POSE.elevation, POSE.distance) for azimuth in range(0, 360, 45)]
    assert MODE["orbit"].captions == ("0°", "45°", "90°", "135°", "180°", "225°", "270°", "315°")


def test_camera_moves_up_and_down_and_to_and_fro() -> None:
    poses = dict(zip(MODE["camera"].captions, [edit.camera for edit in parse(MODE["camera"]).edits], strict=True))
    assert poses == {
        "from below": CameraPose(POSE.azimuth, -30, POSE.distance),
        "from above": CameraPose(POSE.azimuth, 60, POSE.distance),
        "close-up": CameraPose(POSE.azimuth, POSE.elevation, 0.6),
        "wide": CameraPose(POSE.azimuth, POSE.elevation, 1.8),
    }


def test_adapter_is_named_by_its_mode_alone() -> None:
    loras = {name: [lora.name for edit in parse(mode).edits for lora in edit.loras] for name, mode in MODE.items()}
    assert loras == {**{name: [] for name in MODE}, "adapter": ["cyanotype"]}


@pytest.mark.parametrize("name", ["instruction", "rewriting", "batch", "style"])
def test_captions_are_the_prompts(name: str) -> None:
    assert MODE[name].captions == tuple(f"“{edit.prompt}”" for edit in parse(MODE[name]).edits)


def test_payload_holds_the_pictures_that_the_mode_names() -> None:
    sent = {name: [each.content for found in parse(mode).picture_sets for each in found] for name, mode in MODE.items()}
    first, second = "Zmlyc3Q=", "c2Vjb25k"
    assert sent["orbit"] == sent["camera"] == sent["instruction"] == sent["rewriting"] == sent["adapter"] == [first]
    assert sent["batch"] == [first, first, second, second]
    assert sent["style"] == [first, second]


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
    file = tmp_path / "drawing.bmp"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(InvalidInput, match=r"drawing\.bmp is a BMP file"):
        load_picture(file, LimitSettings())


def test_png_holds_the_picture_without_loss() -> None:
    scene, _ = demo_pictures(None, LimitSettings())
    with Image.open(BytesIO(encode_png(scene))) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(pixels_of(picture), pixels_of(scene))
