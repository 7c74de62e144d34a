"""The benchmark's edits, and ways to draw them: the diffusers pipeline, our model one by one, our model packed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from PIL import Image

from serve_app.config import EditorSettings, SizeSettings
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.edits.camera import CameraPose, camera_prompt
from serve_app.edits.images import encode_picture, prepare
from serve_app.edits.request import EditRequest, Pictures, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size, fit_area
from serve_app.tools.bench.pictures import MORNING, NIGHT, Palette, draw_scene

ORBIT = (0, 45, 90, 135, 180, 225, 270, 315)
PROMPT = "Change the time of day to sunset with warm light"


@dataclass(frozen=True)
class BenchEdit:
    """An edit with its pictures, both the originals and the model's prepared inputs."""

    request: EditRequest
    originals: tuple[Image.Image, ...]
    pictures: Pictures


def make_edit(
    originals: tuple[Image.Image, ...], size: Size, sampling: Sampling, sizes: SizeSettings, prompt: str = PROMPT
) -> BenchEdit:
    request = EditRequest(request_id="bench", prompt=prompt, sampling=sampling, size=OutputSize(size, size))
    return BenchEdit(request, originals, tuple(prepare(picture, sizes) for picture in originals))


@cache
def _scene(palette: Palette, width: int, height: int) -> Image.Image:
    """The sections edit the same scenes, each of which takes longer to draw than to edit. Nobody changes them."""
    return draw_scene(palette, width, height)


def plain_edit(sizes: SizeSettings) -> BenchEdit:
    """One edit of one picture at the configured output area, 4 steps, no guidance."""
    return make_edit((_scene(MORNING, 640, 640),), fit_area(sizes.output_area_px, 1.0), Sampling(), sizes)


def unlike_edits(sizes: SizeSettings) -> list[BenchEdit]:
    """Eight small edits that differ in aspect, prompt, step count and seed: a quarter of the configured areas."""
    small = SizeSettings(
        output_area_px=max(1024, sizes.output_area_px // 4),
        vae_area_px=max(1024, sizes.vae_area_px // 4),
        condition_area_px=sizes.condition_area_px,
    )
    aspects = ((4, 3), (1, 1), (3, 4), (16, 9))
    edits = []
    for number in range(8):
        width, height = aspects[number % len(aspects)]
        scene = _scene(MORNING if number % 2 else NIGHT, 80 * width, 80 * height)
        sampling = Sampling(seed=number, num_inference_steps=(4, 5, 6)[number % 3])
        size = fit_area(small.output_area_px, width / height)
        edits.append(make_edit((scene,), size, sampling, small, f"{PROMPT}, " * (1 + number % 4)))
    return edits


def orbit_edits(sizes: SizeSettings) -> list[BenchEdit]:
    """Eight views of one picture, all around its subject."""
    plain = plain_edit(sizes)
    poses = (CameraPose(azimuth, 0, 1.0) for azimuth in ORBIT)
    return [
        make_edit(plain.originals, plain.request.size.made, plain.request.sampling, sizes, camera_prompt(pose, ""))
        for pose in poses
    ]


@contextmanager
def stock_pipeline(
    pipeline: QwenImageEditPlusPipeline, settings: EditorSettings, sizes: SizeSettings
) -> Iterator[QwenImageEditPlusPipeline]:
    """The diffusers pipeline with the configured scheduler and the configured areas, which it holds as constants."""
    module = pipeline_qwenimage_edit_plus
    constants = module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings.scheduler.model_dump())
    pipeline.set_progress_bar_config(disable=True)
    module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = sizes.vae_area_px, sizes.condition_area_px
    try:
        yield pipeline
    finally:
        module.VAE_IMAGE_SIZE, module.CONDITION_IMAGE_SIZE = constants


def draw_stock(pipeline: QwenImageEditPlusPipeline, edits: Sequence[BenchEdit]) -> None:
    """Draw the edits one after the other by the public call of the pipeline, and encode each picture as PNG."""
    for edit in edits:
        sampling, size = edit.request.sampling, edit.request.size.made
        result = pipeline(
            list(edit.originals),
            edit.request.prompt,
            num_inference_steps=sampling.num_inference_steps,
            true_cfg_scale=sampling.true_cfg_scale,
            width=size.width,
            height=size.height,
            generator=torch.Generator().manual_seed(sampling.seed),
            output_type="np",
        )
        encode_picture((result.images[0] * 255).round().astype("uint8"), edit.request.output)


def begin(model: EditModel, edits: Sequence[BenchEdit]) -> list[Draft]:
    return model.begin([model.prepare(edit.request, edit.pictures) for edit in edits])


def draw_packed(model: EditModel, edits: Sequence[BenchEdit]) -> list[Pixels]:
    """Draw all edits in one pack and encode each picture as PNG; returns the pixels for comparisons."""
    pictures = model.draw(begin(model, edits))
    for pixels, edit in zip(pictures, edits, strict=True):
        encode_picture(pixels, edit.request.output)
    return pictures


def draw_one_by_one(model: EditModel, edits: Sequence[BenchEdit]) -> list[Pixels]:
    """Draw the edits one after the other by our model."""
    return [pixels for edit in edits for pixels in draw_packed(model, [edit])]
