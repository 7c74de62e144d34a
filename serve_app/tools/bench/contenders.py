"""Ways to draw the same edits: the diffusers pipeline one by one, our model one by one, our model packed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

from serve_app.config import EditorSettings, SizeSettings
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.edits.images import encode_picture
from serve_app.edits.request import Pixels
from serve_app.tools.bench.orders import Order


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


def draw_stock(pipeline: QwenImageEditPlusPipeline, orders: Sequence[Order]) -> None:
    """Draw the edits one after the other by the public call of the pipeline, and encode each picture as PNG."""
    for order in orders:
        sampling, size = order.request.sampling, order.request.size.made
        result = pipeline(
            list(order.originals),
            order.request.prompt,
            num_inference_steps=sampling.num_inference_steps,
            true_cfg_scale=sampling.true_cfg_scale,
            width=size.width,
            height=size.height,
            generator=torch.Generator().manual_seed(sampling.seed),
            output_type="np",
        )
        encode_picture((result.images[0] * 255).round().astype("uint8"), order.request.output)


def begin(model: EditModel, orders: Sequence[Order]) -> list[Draft]:
    return model.begin([model.prepare(order.request, order.pictures) for order in orders])


def draw_packed(model: EditModel, orders: Sequence[Order]) -> list[Pixels]:
    """Draw all edits in one pack and encode each picture as PNG; returns the pixels for comparisons."""
    pictures = model.draw(begin(model, orders))
    for pixels, order in zip(pictures, orders, strict=True):
        encode_picture(pixels, order.request.output)
    return pictures


def draw_one_by_one(model: EditModel, orders: Sequence[Order]) -> list[Pixels]:
    """Draw the edits one after the other by our model."""
    return [pixels for order in orders for pixels in draw_packed(model, [order])]
