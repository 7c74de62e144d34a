"""OpenAI's fields, checked against the limits and turned into edits."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.config import AppSettings, LimitSettings, LoraSettings
from serve_app.edits.camera import CameraPose
from serve_app.errors import InvalidInput, MissingField
from serve_app.ingress.openai.body import OpenAIBody
from serve_app.ingress.openai.request import OpenAIEdit
from serve_app.ingress.parsing.fields import (
    MAX_PARTIAL_IMAGES,
    MAX_SEED,
    Lora,
    checked_seed,
    checked_size,
    output_format,
)
from serve_app.ingress.parsing.loras import posed
from serve_app.ingress.parsing.validation import check_num_pictures, checked_prompt, default, echo, within
from serve_app.ingress.pictures.prepare import ParsedRequest

MAX_VARIANTS = 10


def parse_body(
    body: OpenAIBody, settings: AppSettings, adapters: Sequence[LoraSettings] | None = None
) -> ParsedRequest:
    """Check an edit against the limits and give every absent field its default; an absent seed becomes a random one.

    Args:
        adapters: all that there are; None: those of the settings.

    Raises:
        MissingField: no prompt and no camera, or no picture.
        InvalidInput: naming the field and the fix.
    """
    edit, limits = body.edit, settings.limits
    cameras = edit.cameras()
    prompt = _prompt(edit, cameras, limits)
    if not body.pictures:
        raise MissingField("Field 'image' or 'url' is required", "image")
    check_num_pictures(len(body.pictures), limits)
    adapters = settings.editor.loras if adapters is None else adapters
    edit = _with_model(edit, settings.served_model_names, adapters)
    seeds = _seeds(edit, len(cameras), limits)
    options = edit.options(seeds[0], limits, adapters)
    width, height = checked_size(edit.size, limits, "size")
    num_previews = within(default(edit.partial_images, 0), 0, MAX_PARTIAL_IMAGES, "partial_images")
    quality = within(default(edit.output_compression, 100), 0, 100, "output_compression")
    options = replace(
        options,
        prompt=prompt,
        output=output_format(edit.output_format, quality, "output_format"),
        num_previews=num_previews if edit.stream else 0,
    )
    edits = tuple(
        replace(posed(options, camera, adapters, ""), sampling=replace(options.sampling, seed=seed))
        for camera in cameras
        for seed in seeds
    )
    return ParsedRequest(
        picture_sets=(body.pictures,),
        edits=edits,
        pictures_of=(0,) * len(edits),
        width=width,
        height=height,
        side_fields=("size", "size"),
        timeout_s=default(edit.timeout(limits), limits.request_timeout_s),
    )


def _prompt(edit: OpenAIEdit, cameras: Sequence[CameraPose | None], limits: LimitSettings) -> str:
    needed = cameras[0] is None
    if edit.prompt is None and needed:
        raise MissingField("Field 'prompt' is required", "prompt")
    prompt = edit.prompt or ""
    if not prompt.strip() and needed:
        raise InvalidInput("prompt is empty: give an instruction, or a camera pose, or both.", "prompt")
    return checked_prompt(prompt, "prompt", limits)


def _with_model(edit: OpenAIEdit, served: Sequence[str], adapters: Sequence[LoraSettings]) -> OpenAIEdit:
    """The edit with the adapter that its `model` names among its loras."""
    model, named = edit.model, [*(edit.loras or [])]
    if model is None or model in served:
        return edit
    names = [*served, *(lora.name for lora in adapters if not lora.is_fused)]
    if model not in names:
        known = " or ".join(repr(name) for name in names)
        raise InvalidInput(f"model {echo(model)} is not served here. Use {known}, or leave it out.", "model")
    if any(lora.name == model for lora in named):
        return edit
    return edit.model_copy(update={"loras": [*named, Lora(name=model, weight=None)]})


def _seeds(edit: OpenAIEdit, num_poses: int, limits: LimitSettings) -> Sequence[int]:
    """The seed of each variant; with views there is one variant of each."""
    num_variants = within(default(edit.n, 1), 1, min(MAX_VARIANTS, limits.max_edits_per_request), "n")
    # So that the last variant's seed is valid, too.
    seed = checked_seed(edit.seed, -1, "seed", MAX_SEED - num_variants + 1)
    if edit.views is not None and num_variants > 1:
        raise InvalidInput("n cannot be above 1 with views: each view is one picture.", "n")
    if num_poses > limits.max_edits_per_request:
        raise InvalidInput(
            f"views holds {num_poses} poses; at most {limits.max_edits_per_request} go into one request.", "views"
        )
    return range(seed, seed + num_variants)
