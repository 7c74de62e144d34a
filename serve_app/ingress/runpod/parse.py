"""RunPod's `input`, checked against the limits and turned into edits."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.config import LimitSettings
from serve_app.edits.request import EditOptions
from serve_app.errors import InvalidInput
from serve_app.ingress.asked import (
    MAX_SEED,
    ParsedRequest,
    PictureSource,
    checked_prompt,
    default,
    output_format,
    within,
)
from serve_app.ingress.runpod.request import RunPodInput
from serve_app.ingress.views import poses


def parse_input(given: RunPodInput, limits: LimitSettings, *, low_priority: bool = False) -> ParsedRequest:
    """Check an `input` against the limits and give every absent field its default.

    Raises:
        InvalidInput: naming the field and the fix.
    """
    options = given.options(within(default(given.seed, 42), 0, MAX_SEED, "input.seed"), limits, "input.")
    cameras = poses(given.views, given.azimuth, given.elevation, given.distance, prefix="input.")
    pictures = given_pictures(given)
    if isinstance(given.prompt, list):
        _check_batch(given, len(pictures), len(given.prompt))
        sets: tuple[tuple[PictureSource, ...], ...] = tuple((picture,) for picture in pictures)
        edits = [replace(options, prompt=prompt, camera=cameras[0]) for prompt in given.prompt]
    else:
        sets = (pictures,)
        edits = [replace(options, prompt=given.prompt or "", camera=camera) for camera in cameras]
    _check(sets, edits, isinstance(given.prompt, list), limits)
    width, height = _side(given.width, "input.width", limits), _side(given.height, "input.height", limits)
    quality = within(default(given.output_quality, 95), 1, 100, "input.output_quality")
    output = output_format(given.output_format, quality, "input.output_format")
    return ParsedRequest(
        picture_sets=sets,
        edits=tuple(replace(edit, output=output, low_priority=low_priority) for edit in edits),
        pictures_of=tuple(range(len(sets))) if len(sets) > 1 else (0,) * len(edits),
        width=width,
        height=height,
        timeout_s=given.timeout(limits, "input."),
    )


def given_pictures(given: RunPodInput) -> tuple[PictureSource, ...]:
    """All pictures of an `input` with their fields, in order.

    Raises:
        InvalidInput: there is none.
    """
    single = [PictureSource("input.image", given.image)] if given.image is not None else []
    several = [PictureSource(f"input.images[{i}]", picture) for i, picture in enumerate(given.images or [])]
    if not single and not several:
        raise InvalidInput("No picture: give input.image, or input.images, in base64.", "input.image")
    return (*single, *several)


def _check_batch(given: RunPodInput, num_pictures: int, num_prompts: int) -> None:
    """A list of prompts needs as many pictures."""
    if given.views is not None:
        raise InvalidInput("input.views needs one prompt, a string, not a list of them.", "input.views")
    if num_prompts != num_pictures:
        raise InvalidInput(
            f"input.prompt is a list of {num_prompts} for {num_pictures} pictures: the lengths must match. "
            "For one edit with several references, give one string.",
            "input.prompt",
        )


def _check(
    sets: Sequence[Sequence[PictureSource]], edits: Sequence[EditOptions], is_batch: bool, limits: LimitSettings
) -> None:
    if len(edits) > limits.max_edits_per_request:
        field = "input.images" if is_batch else "input.views"
        raise InvalidInput(
            f"{field} holds {len(edits)} edits; at most {limits.max_edits_per_request} go into one request.", field
        )
    if len(sets[0]) > limits.max_pictures_per_edit:
        raise InvalidInput(
            f"input.images: {len(sets[0])} pictures for one prompt; at most {limits.max_pictures_per_edit} can be "
            "references of one edit. For a batch, give as many prompts.",
            "input.images",
        )
    for index, edit in enumerate(edits):
        field = f"input.prompt[{index}]" if is_batch else "input.prompt"
        checked_prompt(edit.prompt, field, limits)
        if not edit.prompt.strip() and edit.camera is None:
            raise InvalidInput(f"{field} is empty: give an instruction, or a camera pose, or both.", field)


def _side(value: int | None, field: str, limits: LimitSettings) -> int | None:
    return None if value is None else within(value, limits.min_side_px, limits.max_side_px, field)
