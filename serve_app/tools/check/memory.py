"""The rows of the memory plan, computed from the models' configurations.

The working sets of an edit (VAE, transformer, text encoder) follow one another on one thread. Still, the plan adds the
VAE's to the transformer's: the allocator caches the blocks of one, which do not fit the other. The text encoder and the
transformer share a row, which holds the larger one. The plan covers a running replica at the configured areas:
loading, and an output that a client requests larger, may need more for a while.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from serve_app.config import AppSettings, EditorSettings, RewriterSettings, VaeKind
from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.modulation import MAX_EXTRA_ROWS, ZERO, is_modulation
from serve_app.editor.model.schedule import tabled_timesteps
from serve_app.editor.model.vae import StillVae
from serve_app.edits.sizes import LATENT_PX, TOKEN_PX, Size, fit_area
from serve_app.rewriter.instructions import INSTRUCTIONS
from serve_app.tools.check.plan import Row
from serve_app.tools.live_bytes import peak_bytes
from serve_app.weights.architectures import EditArchitecture, find_edit_model, find_rewriter
from serve_app.weights.gpu_memory import CONTEXT_BYTES

# Bytes per weight. int4: half a byte, and for each group of 128 a scale and a zero point of two bytes each.
_QUANTIZED_BYTES = {"fp8": 1.0, "int4": 0.5 + 4 / 128}
# A block's memory peaks after the image MLP's activation. What lives then, in tensors of (tokens, D):
_ALIVE_IN_BLOCK = {
    "the streams before the block": 1,
    "attention's output": 1,
    "the streams after attention": 1,
    "the MLP's input": 1,
    "the MLP's hidden layer of 4 D, before and after the activation": 8,
}
# The text encoder's memory peaks in the last layer's MLP. What lives then, in tensors of the MLP's width (activated
# gate, up and their product) and of the hidden one (embeddings, residual, the norm's input and output; the rotary
# angles take less than another).
_ENCODER_MLP_WIDTHS, _ENCODER_WIDTHS = 3, 5
# The same for a layer of the rewriter: stream and its norm (2), query, attention's output and projection (3), and of
# the MLP's width: gate, activated gate, up and their product (4).
_REWRITER_WIDTHS, _REWRITER_MLP_WIDTHS = 5, 4
_TEMPLATE_TOKENS = 64 + 5  # of the prompt's template, before and after the prompt
_CONDITION_TOKEN_PX = 28  # Qwen2.5-VL merges 2x2 patches of 14 px, to a whole number of which a side is rounded,
REWRITER_TOKEN_PX = 32  # Qwen3-VL 2x2 patches of 16 px.


def editor_rows(settings: AppSettings) -> tuple[Row, ...]:
    """The rows of an editor."""
    editor, sizes = settings.editor, settings.sizes
    model = find_edit_model(editor.base)
    names = [
        f"transformer weights ({_weights_kind(editor)})",
        "AdaLN tables",
        f"text encoder weights{' (on the CPU)' if editor.text_encoder_device == 'cpu' else ''}",
        "VAE weights",
        f"VAE working set ({'a tile' if editor.vae_tiling else f'{sizes.output_area_px / 1e6:.2f} Mpx'}, {editor.vae})",
        f"activations ({_pack_tokens(settings)} tokens)",
    ]
    numbers = [None] * len(names) if model is None else list(_edit_model_bytes(model, settings))
    rows = [Row(name, number) for name, number in zip(names, numbers, strict=True)]
    if not editor.adaln_tables:
        del rows[1]
    if model is not None and editor.scheduling == "shortest":
        paused = editor.max_paused_edits * draft_bytes(model.transformer, settings)
        rows.append(Row(f"paused edits ({editor.max_paused_edits})", paused))
    if editor.unfused_loras:
        rows.append(Row("adapters that are not fused", editor.adapters_bytes))
    caches = Row("caches", editor.latents_cache_bytes + editor.prompts_cache_bytes)
    return (*rows, caches, Row("CUDA context and slack", CONTEXT_BYTES))


def rewriter_rows(settings: AppSettings) -> tuple[Row, ...]:
    """The rows of a rewriter with a full batch, or with the largest prompt alone."""
    rewriter = settings.rewriter
    if rewriter is None or rewriter.source is None:
        return ()
    model = find_rewriter(rewriter.source)
    tokens = _rewriter_tokens(rewriter, settings)
    names = (f"rewriter weights ({rewriter.dtype})", f"KV cache ({tokens} tokens)", "activations")
    numbers = [None] * len(names) if model is None else list(_rewriter_bytes(model, rewriter, tokens))
    rows = [Row(name, number) for name, number in zip(names, numbers, strict=True)]
    return (*rows, Row("CUDA context and slack", CONTEXT_BYTES))


def _weights_kind(editor: EditorSettings) -> str:
    kind = editor.dtype if editor.quantization == "none" else f"{editor.quantization}, rest {editor.dtype}"
    return f"{kind}, no modulation" if editor.adaln_tables else kind


def _edit_model_bytes(model: EditArchitecture, settings: AppSettings) -> Iterator[float]:
    editor = settings.editor
    yield transformer_bytes(model.transformer, editor)
    yield table_bytes(model.transformer, editor)
    yield 0 if editor.text_encoder_device == "cpu" else weight_bytes(model.text_encoder, _dtype(editor))
    yield weight_bytes(model.vae, _dtype(editor))
    yield vae_working_bytes(model.vae, settings)
    step = step_bytes(model.transformer, _pack_tokens(settings), _dtype(editor))
    yield max(step, 0 if editor.text_encoder_device == "cpu" else _prompts_bytes(model.text_encoder, settings))


def weight_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    return dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())


def transformer_bytes(model: QwenImageTransformer2DModel, editor: EditorSettings) -> float:
    """The weights on the device: without modulation where tables replace it, quantized layers at their reduced size."""
    whole = _dtype(editor).itemsize
    small = _QUANTIZED_BYTES.get(editor.quantization, whole)
    quantized = {f"{name}.weight" for name, module in model.named_modules() if is_quantizable(module, name)}
    num_bytes: float = sum(
        parameter.numel() * (small if name in quantized else whole)
        for name, parameter in model.named_parameters()
        if not (editor.adaln_tables and is_modulation(name))
    )
    return num_bytes


def table_bytes(model: QwenImageTransformer2DModel, editor: EditorSettings) -> int:
    """AdaLN tables: a row for each timestep known in advance, one for t = 0, and the extra rows for other timesteps."""
    if not editor.adaln_tables:
        return 0
    num_rows = len({ZERO, *tabled_timesteps(editor.scheduler)}) + MAX_EXTRA_ROWS
    row_bytes: int = len(model.transformer_blocks) * 2 * 6 * model.inner_dim * _dtype(editor).itemsize
    return num_rows * row_bytes


def vae_working_bytes(vae: AutoencoderKLQwenImage, settings: AppSettings) -> int:
    """Peak bytes of feature maps over encoding at `vae_area_px` and decoding at `output_area_px`, with tiling those of
    one tile. Found by running both on the meta device."""
    editor, sizes = settings.editor, settings.sizes
    made, seen = fit_area(sizes.output_area_px, 1.0), fit_area(sizes.vae_area_px, 1.0)
    if editor.vae_tiling:
        made = seen = Size(vae.tile_sample_min_width, vae.tile_sample_min_height)
    return _peak_of_vae(vae, editor.vae, _dtype(editor), made, seen)


@lru_cache(maxsize=16)
def _peak_of_vae(vae: AutoencoderKLQwenImage, kind: VaeKind, dtype: torch.dtype, made: Size, seen: Size) -> int:
    vae = nn.Module.to(deepcopy(vae), dtype=dtype)  # the method of diffusers emits a needless warning
    picture = torch.empty(1, 3, seen.height, seen.width, device="meta", dtype=dtype)
    shape = (1, vae.config.z_dim, made.height // LATENT_PX, made.width // LATENT_PX)
    latents = torch.empty(shape, device="meta", dtype=dtype)
    encode, decode = (lambda: vae.encode(picture[:, :, None])), (lambda: vae.decode(latents[:, :, None]))
    if kind == "still":
        still, picture = StillVae(vae), picture.to(memory_format=torch.channels_last)
        still.to(memory_format=torch.channels_last)  # as Vae does
        encode, decode = (lambda: still.encode(picture)), (lambda: still.decode(latents))
    outside = picture.numel() * torch.float32.itemsize  # the picture before encoding and after decoding
    return max(peak_bytes(encode), peak_bytes(decode)) + outside


def step_bytes(model: QwenImageTransformer2DModel, num_tokens: int, dtype: torch.dtype) -> int:
    """Peak bytes of what a step of so many tokens, those of prompts included, holds beside the weights. With adapters,
    whose parts are added before GELU; without, a step needs less where matrix products apply it."""
    num_bytes: int = sum(_ALIVE_IN_BLOCK.values()) * model.inner_dim * dtype.itemsize * num_tokens
    return num_bytes


def text_encoder_bytes(
    model: Qwen2_5_VLForConditionalGeneration, num_tokens: int, num_patches: int, dtype: torch.dtype
) -> int:
    """Peak bytes of encoding prompts of so many tokens altogether, whose pictures have so many patches."""
    text, vision = model.config.text_config, model.config.vision_config
    token = _ENCODER_MLP_WIDTHS * text.intermediate_size + _ENCODER_WIDTHS * text.hidden_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patch = pixels + vision.hidden_size + vision.out_hidden_size // vision.spatial_merge_size**2
    num_bytes: int = (num_tokens * token + num_patches * patch) * dtype.itemsize
    return num_bytes


def _prompts_bytes(model: Qwen2_5_VLForConditionalGeneration, settings: AppSettings) -> int:
    """Of encoding the largest batch, all prompts padded to the longest: those of the edits that fit into a pack, or of
    one guided edit."""
    sizes, limits = settings.sizes, settings.limits
    num_prompts = max(2, settings.editor.max_pack_tokens * TOKEN_PX**2 // sizes.vae_area_px)
    length = _prompt_tokens(settings) + _TEMPLATE_TOKENS
    num_patches = (
        limits.max_pictures_per_edit * _condition_tokens(settings) * model.config.vision_config.spatial_merge_size**2
    )
    mask = length**2  # a bool for each pair of tokens, which padding needs
    return num_prompts * (text_encoder_bytes(model, length, num_patches, _dtype(settings.editor)) + mask)


def _pack_tokens(settings: AppSettings) -> int:
    """Tokens of the largest pack: the budget, or the largest edit alone. That edit has the most references
    allowed, all pictures at full area, and runs twice for guidance."""
    sizes, limits = settings.sizes, settings.limits
    pictures = (sizes.output_area_px + limits.max_pictures_per_edit * sizes.vae_area_px) // TOKEN_PX**2
    return max(settings.editor.max_pack_tokens, 2 * pictures) + 2 * _prompt_tokens(settings)


def draft_bytes(model: QwenImageTransformer2DModel, settings: AppSettings) -> int:
    """What an edit keeps between two steps, if it has the most pictures and the longest prompt, guided: both prompts'
    embeddings, the references' tokens, and its latents and their velocity in float32."""
    sizes, limits, itemsize = settings.sizes, settings.limits, _dtype(settings.editor).itemsize
    text = 2 * _prompt_tokens(settings) * model.config.joint_attention_dim
    references = limits.max_pictures_per_edit * sizes.vae_area_px // TOKEN_PX**2 * model.config.in_channels
    latents = sizes.output_area_px // TOKEN_PX**2 * model.config.in_channels
    return int((text + references) * itemsize + 2 * latents * 4)


def _prompt_tokens(settings: AppSettings) -> int:
    """Of the longest prompt, with its pictures. A prompt has at most one token per character."""
    limits = settings.limits
    return limits.max_pictures_per_edit * _condition_tokens(settings) + limits.max_prompt_chars


def _condition_tokens(settings: AppSettings) -> int:
    """Of a square picture in a prompt: 196 for one of 384 pixels a side, which becomes 392."""
    return round(math.sqrt(settings.sizes.condition_area_px) / _CONDITION_TOKEN_PX) ** 2


def _rewriter_tokens(rewriter: RewriterSettings, settings: AppSettings) -> int:
    pictures = settings.limits.max_pictures_per_edit * rewriter.max_picture_px // REWRITER_TOKEN_PX**2
    alone = pictures + len(INSTRUCTIONS) + settings.limits.max_prompt_chars + rewriter.max_new_tokens
    return max(alone, rewriter.max_batch_tokens if rewriter.max_batch_size > 1 else 0)


def _rewriter_bytes(model: Qwen3VLForConditionalGeneration, rewriter: RewriterSettings, tokens: int) -> Iterator[int]:
    text, itemsize = model.config.text_config, getattr(torch, rewriter.dtype).itemsize
    yield weight_bytes(model, getattr(torch, rewriter.dtype))
    yield tokens * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * itemsize
    width = max(text.hidden_size, text.num_attention_heads * text.head_dim)
    yield tokens * (_REWRITER_WIDTHS * width + _REWRITER_MLP_WIDTHS * text.intermediate_size) * itemsize


def _dtype(editor: EditorSettings) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, editor.dtype)
    return dtype
