"""Loads the configured model onto its device, in the same way for the tiny checkpoint and the real one."""

import logging
import os
import threading
import time

import numpy as np
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel

from serve_app.config import EditorSettings
from serve_app.editor.loading.lora import fuse_adapters
from serve_app.editor.loading.quantize import quantize
from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.modulation import LiveModulation, Modulation, TableModulation
from serve_app.editor.model.packed import PackedTransformer
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.editor.model.schedule import tabled_timesteps
from serve_app.editor.model.vae import Vae
from serve_app.edits.request import EditRequest, PreparedPicture, Sampling
from serve_app.edits.sizes import OutputSize, Size
from serve_app.errors import CheckpointError, ConfigError
from serve_app.weights.gpu_memory import prepare_gpu
from serve_app.weights.locate import MODEL_FILES, locate

logger = logging.getLogger(__name__)


def load_at_low_priority(settings: EditorSettings, gpu_share: float) -> EditModel:
    """Load the model on the thread that will run it. On a CPU, this thread and those that it starts get the lowest
    priority, so that requests are answered first on the same cores. On a GPU, limit torch to the replica's share.

    Args:
        gpu_share: part of a GPU whose memory this process may use.

    Raises:
        StartupError: as `load_model` and `prepare_gpu`.
    """
    if settings.device == "cpu":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    elif torch.cuda.is_available():  # otherwise `load_model` raises
        prepare_gpu(gpu_share)
    return load_model(settings)


def load_model(settings: EditorSettings) -> EditModel:
    """Load base model and adapters, fuse them, and put all on the configured device.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        LoraAuditError: an adapter does not fit the transformer tensor by tensor.
    """
    started = time.monotonic()
    model = as_edit_model(load_pipeline(settings), settings)
    _warm_up(model)
    logger.info("edit model ready on %s after %.1f s", settings.device, time.monotonic() - started)
    return model


def _warm_up(model: EditModel) -> None:
    """Run one small edit, so that the first request does not wait for lazy imports and kernel selection."""
    side = Size(64, 64)
    blank = np.zeros((side.height, side.width, 3), np.uint8)
    request = EditRequest(
        request_id="warm-up", prompt="warm up", sampling=Sampling(num_inference_steps=1), size=OutputSize(side, side)
    )
    model.draw(model.begin([model.prepare(request, (PreparedPicture(blank, blank),))]))


def load_pipeline(settings: EditorSettings) -> QwenImageEditPlusPipeline:
    """The stock pipeline with the configured adapters fused. The engine does not use the pipeline's scheduler.

    It is on the configured device, or on the CPU where `as_edit_model` will make the transformer smaller first.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        LoraAuditError: an adapter does not fit the transformer.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("editor.device is cuda, but torch sees no CUDA device on this node; use device: cpu.")
    folder = locate(settings.base, MODEL_FILES)
    try:
        pipeline = QwenImageEditPlusPipeline.from_pretrained(
            folder, dtype=getattr(torch, settings.dtype), use_safetensors=True
        )
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{folder} is not a Qwen-Image-Edit pipeline folder: {problem}") from problem
    if not isinstance(pipeline.transformer, QwenImageTransformer2DModel):
        raise CheckpointError(f"{folder} holds a {type(pipeline.transformer).__name__} as its transformer.")
    if not _made_smaller(settings):
        _place(pipeline, settings)
    fuse_adapters(pipeline, [(lora, locate(lora.source, [lora.file]) / lora.file) for lora in settings.loras])
    return pipeline


def as_edit_model(pipeline: QwenImageEditPlusPipeline, settings: EditorSettings) -> EditModel:
    """The pipeline's parts behind the engine's interface."""
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    device = torch.device(settings.device)
    modulation = choose_modulation(pipeline.transformer, settings)
    quantized = quantize(pipeline.transformer, settings.quantization, device)
    logger.info("%d linear layers quantized (%s)", quantized, settings.quantization)
    _place(pipeline, settings)
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    transformer = PackedTransformer(
        pipeline.transformer,
        modulation,
        choose_attention(settings.attention, device),
        compiled=settings.compile,
    )
    return EditModel(
        transformer=transformer,
        vae=Vae(pipeline.vae, settings.vae),
        prompt_encoder=PromptEncoder(
            pipeline.text_encoder,
            pipeline.processor,
            template=pipeline.prompt_template_encode,
            num_template_tokens=pipeline.prompt_template_encode_start_idx,
            # Text positions start after half the largest picture side in tokens; 256 allows sides of 4096 px.
            max_tokens=transformer.max_position - 256,
        ),
        scheduler=settings.scheduler,
        latent_channels=pipeline.vae.config.z_dim,
        device=device,
        dtype=getattr(torch, settings.dtype),
        latents_cache_bytes=settings.latents_cache_bytes,
        prompts_cache_bytes=settings.prompts_cache_bytes,
    )


@torch.inference_mode()
def choose_modulation(transformer: QwenImageTransformer2DModel, settings: EditorSettings) -> Modulation:
    """AdaLN tables for the timesteps of 1 to 16 steps if configured, otherwise the transformer's own weights.

    Raises:
        ConfigError: the scheduler's shift depends on the picture's size, so no timesteps are known in advance.
    """
    if not settings.adaln_tables:
        return LiveModulation(transformer)
    if settings.scheduler.base_shift != settings.scheduler.max_shift:
        raise ConfigError(
            "editor.adaln_tables needs a scheduler with a fixed shift, base_shift equal to max_shift, as Lightning has."
        )
    tables = TableModulation(transformer, tabled_timesteps(settings.scheduler), torch.device(settings.device))
    logger.info("AdaLN tables of %d bytes for %d parameters kept off the device", tables.table_bytes, tables.num_freed)
    return tables


def _made_smaller(settings: EditorSettings) -> bool:
    """Whether the transformer is made smaller before it is moved to its device, where all of it may not fit."""
    return settings.adaln_tables or settings.quantization != "none"


def _place(pipeline: QwenImageEditPlusPipeline, settings: EditorSettings) -> None:
    pipeline.transformer.to(settings.device)
    pipeline.vae.to(settings.device)
    pipeline.text_encoder.to(settings.device if settings.text_encoder_device == "same" else "cpu")
