"""Loads the configured model onto its device, in the same way for the tiny checkpoint and the real one."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from serve_app.config import EditorSettings
from serve_app.editor.loading.adapters import Adapters
from serve_app.editor.loading.quantize import choose_quantizer
from serve_app.editor.loading.transformer import StreamedTransformer, stream_transformer
from serve_app.editor.model.adapters import AdapterSlabs
from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.modulation import LiveModulation, Modulation, TableModulation
from serve_app.editor.model.packed import PackedTransformer
from serve_app.editor.model.prompt_encoder import PromptEncoder
from serve_app.editor.model.schedule import tabled_timesteps
from serve_app.editor.model.vae import Vae
from serve_app.edits.request import EditRequest, LoraUse, Pictures, PreparedPicture, Sampling
from serve_app.edits.sizes import TOKEN_PX, OutputSize, Size
from serve_app.errors import CheckpointError, ConfigError
from serve_app.weights.gpu_memory import prepare_gpu
from serve_app.weights.locate import MODEL_FILES, locate

logger = logging.getLogger(__name__)


def load_at_low_priority(settings: EditorSettings, adapters: Adapters, gpu_share: float) -> EditModel:
    """Load the model on the thread that will run it. On a CPU, this thread and those that it starts get the lowest
    priority, so that requests are answered first on the same cores. On a GPU, limit torch to the replica's share.

    Args:
        adapters: gets those that are not fused.
        gpu_share: part of a GPU whose memory this process may use.

    Raises:
        StartupError: as `load_model` and `prepare_gpu`.
    """
    if settings.device == "cpu":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    elif torch.cuda.is_available():  # otherwise `load_model` raises
        prepare_gpu(gpu_share)
    return load_model(settings, adapters)


def load_model(settings: EditorSettings, adapters: Adapters | None = None) -> EditModel:
    """Load base model and adapters, fuse those that are to be, and put all on the configured device.

    Args:
        adapters: gets the others.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        LoraAuditError: an adapter does not fit the transformer tensor by tensor.
        ConfigError: the device does not support the settings, or has no room for the adapters.
    """
    started = time.monotonic()
    pipeline, transformer = _open_pipeline(settings)
    model = as_edit_model(pipeline, settings, adapters, transformer)
    _warm_up(model, warm_up_side_px(settings))
    logger.info("edit model ready on %s after %.1f s", settings.device, time.monotonic() - started)
    return model


def warm_up_side_px(settings: EditorSettings) -> int:
    """The side of the warm-up's output and reference: small on a CPU. On a GPU, where kernels are chosen and compiled
    by size, they fill a step, but are no larger than the pictures that the model was trained with, for which `check`
    plans the VAE's memory."""
    if settings.device == "cpu":
        return 64
    return min(math.isqrt(settings.max_pack_tokens // 2) * TOKEN_PX, 1024)


def _warm_up(model: EditModel, side_px: int) -> None:
    """Run one edit, and one with an adapter if there is any, so that the first request does not wait for lazy imports,
    kernel selection and compilation."""
    for loras in ((), *((LoraUse(lora.name, 1.0),) for lora, _ in model.library.current[:1])):
        model.draw(model.begin([model.prepare(*warm_up_edit(side_px, loras))]))


def warm_up_edit(side_px: int, loras: tuple[LoraUse, ...]) -> tuple[EditRequest, Pictures]:
    """One step with one reference."""
    size = Size(side_px, side_px)
    blank = np.zeros((side_px, side_px, 3), np.uint8)
    request = EditRequest(
        request_id="warm-up",
        prompt="warm up",
        sampling=Sampling(num_inference_steps=1),
        size=OutputSize(size, size),
        loras=loras,
    )
    return request, (PreparedPicture(blank, blank[:64, :64]),)


def load_pipeline(settings: EditorSettings) -> QwenImageEditPlusPipeline:
    """The stock pipeline with the configured adapters fused, at its full size on the configured device. The engine does
    not use the pipeline's scheduler.

    Raises:
        CheckpointError: weights are missing or of another kind, or the device is not there.
        LoraAuditError: an adapter does not fit the transformer.
    """
    pipeline, transformer = _open_pipeline(settings)
    for _ in transformer.blocks:
        pass
    return pipeline


def _open_pipeline(settings: EditorSettings) -> tuple[QwenImageEditPlusPipeline, StreamedTransformer]:
    """The pipeline on its devices, but for the transformer's blocks, which are loaded in turn."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("editor.device is cuda, but torch sees no CUDA device on this node; use device: cpu.")
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    folder = locate(settings.base, MODEL_FILES)
    _require_pipeline(folder)
    try:
        transformer = stream_transformer(folder / "transformer", settings.fused_loras, device, dtype)
        text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder",
            dtype=dtype,
            # Each tensor goes from its file to the device; without a map, all of them would go through the host first.
            device_map={"": device if settings.text_encoder_device == "same" else torch.device("cpu")},
            use_safetensors=True,
        )
        pipeline = QwenImageEditPlusPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, transformer=transformer.model, text_encoder=text_encoder
        )
    except (OSError, ValueError, SafetensorError) as problem:
        raise CheckpointError(f"{folder} is not a Qwen-Image-Edit pipeline folder: {problem}") from problem
    pipeline.vae.to(device)
    return pipeline, transformer


def _require_pipeline(folder: Path) -> None:
    """
    Raises:
        CheckpointError: the folder's pipeline is of another class, whose prompts or steps differ.
    """
    try:
        found = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as problem:
        raise CheckpointError(f"{folder} is not a Qwen-Image-Edit pipeline folder: {problem}") from problem
    if found != QwenImageEditPlusPipeline.__name__:
        raise CheckpointError(
            f"{folder} is not a Qwen-Image-Edit pipeline folder this engine can run: it holds a {found}, and only "
            f"{QwenImageEditPlusPipeline.__name__} is supported (Qwen-Image-Edit-2509, -2511, FireRed-Image-Edit-1.1)."
        )


def as_edit_model(
    pipeline: QwenImageEditPlusPipeline,
    settings: EditorSettings,
    adapters: Adapters | None = None,
    streamed: StreamedTransformer | None = None,
) -> EditModel:
    """The parts of a pipeline behind the engine's interface, and the adapters that are not fused. Tables and
    quantization change its transformer.

    Args:
        adapters: gets those that are not fused.
        streamed: the pipeline's transformer, if its blocks are not loaded yet. Each is made smaller, as configured,
            before the next one is taken.
    """
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    device = torch.device(settings.device)
    slabs = AdapterSlabs(pipeline.transformer, settings.adapters_bytes, device)  # of the layers as they are now
    adapters = Adapters(settings) if adapters is None else adapters
    adapters.library.max_rank = slabs.max_rank
    adapters.replace(settings.loras)
    blocks = pipeline.transformer.transformer_blocks if streamed is None else streamed.blocks
    read = None if streamed is None else streamed.modulation
    modulation = choose_modulation(pipeline.transformer, settings, _quantized(blocks, settings), read)
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    transformer = PackedTransformer(
        pipeline.transformer,
        modulation,
        choose_attention(settings.attention, device),
        slabs,
        compiled=settings.compile,
        gelu_epilogue=has_gelu_epilogue(settings),
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
        library=adapters.library,
        device=device,
        dtype=getattr(torch, settings.dtype),
        latents_cache_bytes=settings.latents_cache_bytes,
        prompts_cache_bytes=settings.prompts_cache_bytes,
    )


def has_gelu_epilogue(settings: EditorSettings) -> bool:
    """Whether matrix products apply GELU. Not in float32, in which pictures are compared with diffusers': cuBLAS
    documents no error of its GELU."""
    is_cuda = torch.device(settings.device).type == "cuda"
    return is_cuda and settings.dtype != "float32" and settings.quantization == "none"


def _quantized(blocks: Iterable[nn.Module], settings: EditorSettings) -> Iterator[nn.Module]:
    quantize_block = choose_quantizer(settings.quantization, torch.device(settings.device))
    num_layers = 0
    for block in blocks:
        num_layers += quantize_block(block)
        yield block
    logger.info("%d linear layers quantized (%s)", num_layers, settings.quantization)


@torch.no_grad()  # Not inference_mode, which would mark the weights that are loaded here.
def choose_modulation(
    transformer: QwenImageTransformer2DModel,
    settings: EditorSettings,
    blocks: Iterable[nn.Module] | None = None,
    read: Callable[[str], torch.Tensor] | None = None,
) -> Modulation:
    """AdaLN tables for the timesteps of the usual step counts if configured, otherwise the transformer's own weights.

    Args:
        blocks: the transformer's, as an iterator if it loads them.
        read: as `TableModulation` takes it.

    Raises:
        ConfigError: the scheduler's shift depends on the picture's size, so no timesteps are known in advance.
    """
    if not settings.adaln_tables:
        for _ in blocks or ():
            pass
        return LiveModulation(transformer)
    if settings.scheduler.base_shift != settings.scheduler.max_shift:
        raise ConfigError(
            "editor.adaln_tables needs a scheduler with a fixed shift, base_shift equal to max_shift, as Lightning has."
        )
    device = torch.device(settings.device)
    tables = TableModulation(transformer, tabled_timesteps(settings.scheduler), device, blocks=blocks, read=read)
    logger.info("AdaLN tables of %d bytes for %d parameters kept off the device", tables.table_bytes, tables.num_freed)
    return tables
