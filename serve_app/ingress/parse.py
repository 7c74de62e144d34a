"""RunPod's `input`, checked against the limits and turned into edits."""

from dataclasses import dataclass
from typing import TypeVar

from serve_app.config import LimitSettings
from serve_app.edits.camera import CameraPose, snap
from serve_app.edits.request import OutputFormat, PictureFormat, Sampling
from serve_app.edits.sizes import OutputSize
from serve_app.errors import InvalidInput
from serve_app.ingress.problems import echo
from serve_app.ingress.runpod import RunPodInput

MAX_SEED = 2**63 - 1
_FORMATS: dict[str, PictureFormat] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}

T = TypeVar("T")
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class PictureField:
    """A base64 picture and the field it came in."""

    field: str
    base64: str


@dataclass(frozen=True)
class Item:
    """One edit of the job: its prompt and its pictures, not yet decoded."""

    prompt: str
    pictures: tuple[PictureField, ...]


@dataclass(frozen=True)
class ParsedInput:
    """A validated `input`: what is common to the job's edits, and the edits."""

    items: tuple[Item, ...]
    camera: CameraPose | None
    rewrite_prompt: bool
    sampling: Sampling
    width: int | None
    height: int | None
    output: OutputFormat


def parse_input(given: RunPodInput, limits: LimitSettings) -> ParsedInput:
    """Check an `input` against the limits and give every absent field its default.

    Raises:
        InvalidInput: naming the field and the fix.
    """
    camera = snap(given.azimuth, given.elevation, given.distance)
    guidance_field = "guidance_scale" if given.true_cfg_scale is None else "true_cfg_scale"
    guidance = _default(getattr(given, guidance_field), 1.0)
    sampling = Sampling(
        seed=_within(_default(given.seed, 42), 0, MAX_SEED, "seed"),
        num_inference_steps=_within(
            _default(given.num_inference_steps, 4), 1, limits.max_inference_steps, "num_inference_steps"
        ),
        true_cfg_scale=_within(guidance, 0.0, limits.max_guidance_scale, guidance_field),
        negative_prompt=_checked_prompt(_default(given.negative_prompt, " "), "input.negative_prompt", limits),
    )
    return ParsedInput(
        items=_items(given, limits, has_camera=camera is not None),
        camera=camera,
        rewrite_prompt=bool(given.rewrite_prompt),
        sampling=sampling,
        width=_side(given.width, "width", limits),
        height=_side(given.height, "height", limits),
        output=_output_format(given),
    )


def check_output_size(size: OutputSize, limits: LimitSettings) -> None:
    """Refuse a side that follows from the other one and the picture's aspect, and is out of bounds.

    Raises:
        InvalidInput: naming the side.
    """
    for name, side_px in (("width", size.final.width), ("height", size.final.height)):
        if side_px > limits.max_side_px:
            raise InvalidInput(
                f"input.{name} would be {side_px} pixels with this picture's aspect; at most {limits.max_side_px} are "
                "allowed. Ask for a smaller picture, or give both width and height.",
                f"input.{name}",
            )


def _items(given: RunPodInput, limits: LimitSettings, *, has_camera: bool) -> tuple[Item, ...]:
    pictures = _pictures(given)
    if isinstance(given.prompt, list):
        items = _batch(pictures, given.prompt, limits)
    else:
        items = (_single(pictures, given.prompt or "", limits),)
    for number, item in enumerate(items):
        field = f"input.prompt[{number}]" if isinstance(given.prompt, list) else "input.prompt"
        _checked_prompt(item.prompt, field, limits)
        if not item.prompt.strip() and not has_camera:
            raise InvalidInput(f"{field} is empty: give an instruction, or a camera pose, or both.", field)
    return items


def _pictures(given: RunPodInput) -> tuple[PictureField, ...]:
    single = [PictureField("input.image", given.image)] if given.image is not None else []
    several = [PictureField(f"input.images[{i}]", picture) for i, picture in enumerate(given.images or [])]
    if not single and not several:
        raise InvalidInput("No picture: give input.image, or input.images, in base64.", "input.image")
    return (*single, *several)


def _batch(pictures: tuple[PictureField, ...], prompts: list[str], limits: LimitSettings) -> tuple[Item, ...]:
    if len(prompts) != len(pictures):
        raise InvalidInput(
            f"input.prompt is a list of {len(prompts)} for {len(pictures)} pictures: the lengths must match. "
            "For one edit with several references, give one string.",
            "input.prompt",
        )
    if len(prompts) > limits.max_edits_per_request:
        raise InvalidInput(
            f"input.images holds {len(prompts)} edits; at most {limits.max_edits_per_request} go into one request.",
            "input.images",
        )
    return tuple(Item(prompt, (picture,)) for prompt, picture in zip(prompts, pictures, strict=True))


def _single(pictures: tuple[PictureField, ...], prompt: str, limits: LimitSettings) -> Item:
    if len(pictures) > limits.max_pictures_per_edit:
        raise InvalidInput(
            f"input.images: {len(pictures)} pictures for one prompt; at most {limits.max_pictures_per_edit} can be "
            "references of one edit. For a batch, give as many prompts.",
            "input.images",
        )
    return Item(prompt, pictures)


def _checked_prompt(prompt: str, field: str, limits: LimitSettings) -> str:
    if len(prompt) > limits.max_prompt_chars:
        raise InvalidInput(
            f"{field} has {len(prompt)} characters; at most {limits.max_prompt_chars} are allowed. Shorten it.", field
        )
    return prompt


def _side(value: int | None, name: str, limits: LimitSettings) -> int | None:
    return None if value is None else _within(value, limits.min_side_px, limits.max_side_px, name)


def _output_format(given: RunPodInput) -> OutputFormat:
    name = _default(given.output_format, "png").lower()
    if name not in _FORMATS:
        raise InvalidInput(
            f"input.output_format must be png, jpeg or webp, got {echo(given.output_format)}.", "input.output_format"
        )
    return OutputFormat(_FORMATS[name], _within(_default(given.output_quality, 95), 1, 100, "output_quality"))


def _within(value: N, low: N, high: N, name: str) -> N:
    if not low <= value <= high:
        raise InvalidInput(f"input.{name} must be between {low} and {high}, got {echo(value)}.", f"input.{name}")
    return value


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
