"""All poses, all snapping, exhaustively; the expected words are spelt out here a second time."""

import itertools
import re
from fractions import Fraction

import pytest

from serve_app.config import CameraWords
from serve_app.edits import camera
from serve_app.edits.camera import CameraPose, camera_prompt, snap, words_of

AZIMUTHS = {
    0: "front view",
    45: "front-right quarter view",
    90: "right side view",
    135: "back-right quarter view",
    180: "back view",
    225: "back-left quarter view",
    270: "left side view",
    315: "front-left quarter view",
}
ELEVATIONS = {-30: "low-angle shot", 0: "eye-level shot", 30: "elevated shot", 60: "high-angle shot"}
DISTANCES = {0.6: "close-up", 1.0: "medium shot", 1.8: "wide shot"}
POSES = list(itertools.product(AZIMUTHS, ELEVATIONS, DISTANCES))


def test_there_are_96_poses() -> None:
    assert len(POSES) == 96


@pytest.mark.parametrize(("azimuth", "elevation", "distance"), POSES)
def test_each_trained_pose_says_its_own_words(azimuth: int, elevation: int, distance: float) -> None:
    pose = snap(azimuth, elevation, distance)
    assert pose == CameraPose(azimuth, elevation, distance)
    assert pose.tokens == f"<sks> {AZIMUTHS[azimuth]} {ELEVATIONS[elevation]} {DISTANCES[distance]}"


def test_distance_1_4_is_kept_and_spoken_as_medium() -> None:
    pose = snap(0, 0, 1.4)
    assert pose is not None
    assert pose.distance == 1.4
    assert pose.tokens == "<sks> front view eye-level shot medium shot"


def test_every_degree_snaps_to_the_nearest_azimuth_on_the_circle() -> None:
    def nearest(azimuth: int) -> int:
        gaps = {listed: min((azimuth - listed) % 360, (listed - azimuth) % 360) for listed in AZIMUTHS}
        return min(listed for listed, gap in gaps.items() if gap == min(gaps.values()))

    for azimuth in range(-720, 721):
        assert snap(azimuth, None, None) == CameraPose(nearest(azimuth), 0, 1.0), azimuth


@pytest.mark.parametrize(
    ("azimuth", "expected"), [(350, 0), (-45, 315), (22.5, 0), (67.5, 45), (337.5, 0), (337.4, 315), (1e9, 270)]
)
def test_azimuths_to_remember(azimuth: float, expected: int) -> None:
    assert snap(azimuth, None, None) == CameraPose(expected, 0, 1.0)


def test_every_degree_snaps_to_the_nearest_elevation() -> None:
    for elevation in range(-120, 121):
        gap = min(abs(elevation - listed) for listed in ELEVATIONS)
        expected = min(listed for listed in ELEVATIONS if abs(elevation - listed) == gap)
        assert snap(None, elevation, None) == CameraPose(0, expected, 1.0), elevation


def test_every_distance_snaps_to_the_nearest_ties_to_the_smaller() -> None:
    listed = [Fraction(6, 10), Fraction(1), Fraction(14, 10), Fraction(18, 10)]
    for hundredths in range(301):
        gap = min(abs(Fraction(hundredths, 100) - each) for each in listed)
        expected = min(each for each in listed if abs(Fraction(hundredths, 100) - each) == gap)
        assert snap(None, None, hundredths / 100) == CameraPose(0, 0, float(expected)), hundredths


def test_no_camera_field_means_no_camera() -> None:
    assert snap(None, None, None) is None
    assert camera_prompt(None, "a <sks> b") == "a <sks> b"


@pytest.mark.parametrize("fields", [(0, None, None), (None, 0, None), (None, None, 1.0), (0.0, 0.0, 1.0)])
def test_a_zero_is_a_camera_field(fields: tuple[float | None, float | None, float | None]) -> None:
    assert snap(*fields) == CameraPose(0, 0, 1.0)


def test_the_prompt_follows_the_tokens_after_one_space() -> None:
    pose = CameraPose(270, 60, 1.8)
    expected = "<sks> left side view high-angle shot wide shot A futuristic city street"
    assert camera_prompt(pose, "A futuristic city street") == expected
    assert camera_prompt(pose, "") == "<sks> left side view high-angle shot wide shot"


@pytest.mark.parametrize("prompt", ["<sks> back view A cat", "A <SKS> cat", "<sks>", "a <sks><sks> b"])
def test_a_users_trigger_word_cannot_fake_a_pose(prompt: str) -> None:
    spoken = camera_prompt(CameraPose(0, 0, 1.0), prompt)
    assert spoken.lower().count("<sks>") == 1
    assert "  " not in spoken
    assert spoken.startswith("<sks> front view eye-level shot medium shot")


LOOKALIKES = {
    "itself": "<sks>",
    "case": "<SkS>",
    "space": "< s k s >",
    "no-break space": "<\u00a0sks>",
    "full width": "\uff1c\uff33\uff4b\uff53\uff1e",
    "Cyrillic": "<\u0455\u043a\u0405>",
    "Greek": "<s\u039as>",
    "quotation marks": "\u2039sks\u203a",
    "zero-width space": "<s\u200bks>",
    "soft hyphen and byte order mark": "<\u00adsks\ufeff>",
    "long s and Kelvin": "<\u017f\u212aS>",
}


@pytest.mark.parametrize("trigger", LOOKALIKES.values(), ids=LOOKALIKES.keys())
def test_nor_can_what_looks_like_it(trigger: str) -> None:
    pose = CameraPose(0, 0, 1.0)
    assert camera_prompt(pose, f"a {trigger} back view {trigger}{trigger} b") == f"{pose.tokens} a back view b"


def test_nor_can_what_is_left_when_another_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass for each trigger that the prompt is wrapped in, and a last one."""
    pose, passes = CameraPose(0, 0, 1.0), 0
    pattern = camera._TRIGGER_LIKE

    class Counted:
        def search(self, text: str) -> re.Match[str] | None:
            nonlocal passes
            passes += 1
            return pattern.search(text)

        def split(self, text: str) -> list[str | None]:
            return list(pattern.split(text))

    monkeypatch.setattr(camera, "_TRIGGER_LIKE", Counted())
    spoken = camera_prompt(pose, "<sk" * 570 + "<sks>" + "s>" * 570)
    assert "sk" not in spoken.removeprefix(pose.tokens)
    assert passes == 572


@pytest.mark.parametrize("prompt", ["a <sky> b", "sks", "<desks>", "a < b, sks > c", "two  spaces\nand a line"])
def test_other_words_stay_as_they_are(prompt: str) -> None:
    pose = CameraPose(0, 0, 1.0)
    assert camera_prompt(pose, prompt) == f"{pose.tokens} {prompt}"


MOVES = CameraWords(
    azimuth={0: "", 45: "Rotate the camera to the right."},
    elevation={0: ""},
    distance={1.0: "", 0.6: "Turn the camera to a close-up."},
    order=("distance", "azimuth"),
)


def test_an_adapter_may_have_other_words() -> None:
    assert words_of(CameraPose(45, 0, 0.6), MOVES) == "Turn the camera to a close-up. Rotate the camera to the right."
    assert camera_prompt(CameraPose(45, 0, 1.0), "<sks> a hat", "Rotate.") == "Rotate. a hat"
    assert camera_prompt(CameraPose(0, 0, 1.0), "a hat", words_of(CameraPose(0, 0, 1.0), MOVES)) == "a hat"


def test_the_default_words_as_a_table_are_the_default_words() -> None:
    table = CameraWords(
        trigger=camera.TRIGGER,
        azimuth=camera.AZIMUTH_WORDS,
        elevation=camera.ELEVATION_WORDS,
        distance=camera.DISTANCE_WORDS,
    )
    for azimuth, elevation, distance in itertools.product(AZIMUTHS, ELEVATIONS, DISTANCES):
        pose = CameraPose(azimuth, elevation, distance)
        assert words_of(pose, table) == pose.tokens


def test_a_pose_without_words_is_named() -> None:
    with pytest.raises(KeyError, match="elevation"):
        words_of(CameraPose(45, 30, 1.0), MOVES)


def test_a_table_names_known_poses_only() -> None:
    with pytest.raises(ValueError, match="azimuth 46 is none of 0, 45, 90"):
        CameraWords(azimuth={46: "x"}, elevation={}, distance={})
