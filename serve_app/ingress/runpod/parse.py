"""RunPod's `input`, checked against the limits and turned into edits."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.config import LimitSettings, LoraSettings
from serve_app.edits.request import EditOptions
from serve_app.errors import InvalidInput
from serve_app.ingress.parsing.fields import MAX_PARTIAL_IMAGES, checked_seed, checked_size, output_format
from serve_app.ingress.parsing.loras import posed
from serve_app.ingress.parsing.validation import checked_prompt, default, within
from serve_app.ingress.pictures.prepare import ParsedRequest, PictureSource
from serve_app.ingress.runpod.request import RunPodInput

DEFAULT_SEED = 42


def parse_input(
    fields: RunPodInput, limits: LimitSettings, adapters: Sequence[LoraSettings] = (), *, low_priority: bool = False
) -> ParsedRequest:
    """Check an `input` against the limits and give every absent field its default.

    Args:
        adapters: all that there are.

    Raises:
        InvalidInput: naming the field and the fix.
    """
    options = fields.options(checked_seed(fields.seed, DEFAULT_SEED, "input.seed"), limits, adapters, "input.")
    moved = [posed(options, camera, adapters, "input.") for camera in fields.cameras("input.")]
    pictures = pictures_of(fields)
    if not pictures:
        raise InvalidInput("No picture: give input.image, or input.images, in base64.", "input.image")
    if isinstance(fields.prompt, list):
        _check_batch(fields, len(pictures), len(fields.prompt))
        sets: tuple[tuple[PictureSource, ...], ...] = tuple((picture,) for picture in pictures)
        edits = [replace(moved[0], prompt=prompt) for prompt in fields.prompt]
    else:
        sets = (pictures,)
        edits = [replace(each, prompt=fields.prompt or "") for each in moved]
    _check(sets, edits, isinstance(fields.prompt, list), limits)
    width, height, side_fields = _sides(fields, limits)
    quality = within(default(fields.output_quality, 95), 1, 100, "input.output_quality")
    output = output_format(fields.output_format, quality, "input.output_format")
    num_previews = within(default(fields.partial_images, 0), 0, MAX_PARTIAL_IMAGES, "input.partial_images")
    return ParsedRequest(
        picture_sets=sets,
        edits=tuple(
            replace(edit, output=output, low_priority=low_priority, num_previews=num_previews) for edit in edits
        ),
        pictures_of=tuple(range(len(sets))) if len(sets) > 1 else (0,) * len(edits),
        width=width,
        height=height,
        side_fields=side_fields,
        timeout_s=fields.timeout(limits, "input."),
    )


def pictures_of(fields: RunPodInput) -> tuple[PictureSource, ...]:
    """All pictures of an `input` with their fields, in order."""
    single = [PictureSource("input.image", fields.image)] if fields.image is not None else []
    several = [PictureSource(f"input.images[{i}]", picture) for i, picture in enumerate(fields.images or [])]
    return (*single, *several)


def _check_batch(fields: RunPodInput, num_pictures: int, num_prompts: int) -> None:
    """Check that a list of prompts comes with as many pictures, and without views."""
    if fields.views is not None:
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


def _sides(fields: RunPodInput, limits: LimitSettings) -> tuple[int | None, int | None, tuple[str, str]]:
    """Width, height, and the names of their fields."""
    if fields.size is not None:
        if fields.width is not None or fields.height is not None:
            raise InvalidInput("input.size cannot be combined with width and height. Give one of them.", "input.size")
        return *checked_size(fields.size, limits, "input.size"), ("input.size", "input.size")
    return (
        _side(fields.width, "input.width", limits),
        _side(fields.height, "input.height", limits),
        ("input.width", "input.height"),
    )


def _side(value: int | None, field: str, limits: LimitSettings) -> int | None:
    return None if value is None else within(value, limits.min_side_px, limits.max_side_px, field)
