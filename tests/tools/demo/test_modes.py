"""The demo's requests: what the server reads in them, and that the tiny weights know every word."""

import json
from functools import cache

import numpy as np
import pytest

from serve_app.config import LimitSettings
from serve_app.edits.camera import CameraPose
from serve_app.ingress.asked import ParsedRequest
from serve_app.ingress.runpod.parse import parse_input
from serve_app.ingress.runpod.request import RunPodRequest
from serve_app.tiny.wishes import wishes_of
from serve_app.tools.demo.inputs import POSE, SCENES
from serve_app.tools.demo.modes import MODES, Mode
from serve_app.tools.training.vague import VAGUE

FILES = (b"first", b"second")
NUM_PICTURES = {
    "orbit": [1] * 8,
    "camera": [1] * 4,
    "instruction": [1],
    "rewriting": [1],
    "batch": [1] * 4,
    "style": [2],
}
MODE = {mode.name: mode for mode in MODES}
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


def read(mode: Mode) -> ParsedRequest:
    """What the server makes of the mode's payload."""
    request = RunPodRequest.model_validate_json(json.dumps(mode.payload(FILES)))
    return parse_input(request.input, LimitSettings())


@cache
def wishes(place: int) -> frozenset[str]:
    """All that a scene of the demo can be asked in the words of the training."""
    rng = np.random.default_rng(0)
    return frozenset(wish.prompt for _ in range(100) for wish in wishes_of(SCENES[place], rng))


@every_mode
def test_server_reads_each_payload_as_the_mode_means_it(mode: Mode) -> None:
    parsed = read(mode)
    assert [len(parsed.picture_sets[index]) for index in parsed.pictures_of] == NUM_PICTURES[mode.name]
    assert {edit.rewrite_prompt for edit in parsed.edits} == {mode.name == "rewriting"}
    assert len(mode.captions) == len(parsed.edits)


@every_mode
def test_each_prompt_is_a_wish_that_the_scene_can_be_granted(mode: Mode) -> None:
    parsed = read(mode)
    for edit, set_index in zip(parsed.edits, parsed.pictures_of, strict=True):
        if edit.camera is not None:
            assert not edit.prompt
            continue
        clear = {each: wish for wish, vague in VAGUE.items() for each in vague} if edit.rewrite_prompt else {}
        assert (edit.prompt in clear) == edit.rewrite_prompt
        assert clear.get(edit.prompt, edit.prompt) in wishes(mode.pictures[set_index])


def test_orbit_goes_once_round_at_the_pictures_own_height() -> None:
    poses = [edit.camera for edit in read(MODE["orbit"]).edits]
    assert poses == [CameraPose(azimuth, POSE.elevation, POSE.distance) for azimuth in range(0, 360, 45)]
    assert MODE["orbit"].captions == ("0°", "45°", "90°", "135°", "180°", "225°", "270°", "315°")


def test_camera_moves_up_and_down_and_to_and_fro() -> None:
    poses = dict(zip(MODE["camera"].captions, [edit.camera for edit in read(MODE["camera"]).edits], strict=True))
    assert poses == {
        "from below": CameraPose(POSE.azimuth, -30, POSE.distance),
        "from above": CameraPose(POSE.azimuth, 60, POSE.distance),
        "close-up": CameraPose(POSE.azimuth, POSE.elevation, 0.6),
        "wide": CameraPose(POSE.azimuth, POSE.elevation, 1.8),
    }


@pytest.mark.parametrize("name", ["instruction", "rewriting", "batch", "style"])
def test_captions_are_the_prompts(name: str) -> None:
    assert MODE[name].captions == tuple(f"“{edit.prompt}”" for edit in read(MODE[name]).edits)


def test_payload_holds_the_pictures_that_the_mode_names() -> None:
    sent = {name: [each.content for found in read(mode).picture_sets for each in found] for name, mode in MODE.items()}
    first, second = "Zmlyc3Q=", "c2Vjb25k"
    assert sent["orbit"] == sent["camera"] == sent["instruction"] == sent["rewriting"] == [first]
    assert sent["batch"] == [first, first, second, second]
    assert sent["style"] == [first, second]
