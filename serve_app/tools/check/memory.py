"""The rows of the memory plan, computed from the models' configurations.

The working sets of an edit (VAE, transformer, text encoder) follow one another on one thread. Still, the plan adds the
VAE's to the transformer's: the allocator caches the blocks of one, which do not fit the other. The text encoder's is
smaller than the transformer's and counts as part of it. The plan covers a running replica at the configured areas:
loading, and an output that a client requests larger, may need more for a while.
"""

import math
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from serve_app.config import AppSettings, EditorSettings, RewriterSettings
from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.modulation import MAX_EXTRA_ROWS, ZERO, is_modulation
from serve_app.editor.model.schedule import tabled_timesteps
from serve_app.editor.model.vae import StillVae
from serve_app.edits.sizes import TOKEN_PX, Size, fit_area
from serve_app.rewriter.instructions import INSTRUCTIONS
from serve_app.tools.check.plan import Row
from serve_app.tools.live_bytes import peak_bytes
from serve_app.weights.architectures import EditArchitecture, find_edit_model, find_rewriter
from serve_app.weights.gpu_memory import CONTEXT_BYTES

# Bytes per weight. int4: half a byte, and for each group of 128 a scale and a zero point of two bytes each.
_QUANTIZED_BYTES = {"fp8": 1.0, "int4": 0.5 + 4 / 128}
# A block's memory peaks after the image MLP's activation, in tensors of (tokens, D): the streams before and after
# attention (2), query, key and value (3), attention's output in joint and in stream order (2), the MLP's input (1), and
# its hidden layer of 4 D before and after the activation (8).
_WIDTHS_AT_PEAK = 2 + 3 + 2 + 1 + 8
# The same for a layer of the rewriter: stream and its norm (2), query, attention's output and projection (3), and of
# the MLP's width: gate, activated gate, up and their product (4).
_REWRITER_WIDTHS, _REWRITER_MLP_WIDTHS = 5, 4
_LATENT_PX = 8
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
    yield _WIDTHS_AT_PEAK * model.transformer.inner_dim * _dtype(editor).itemsize * _pack_tokens(settings)


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
    nn.Module.to(vae, dtype=_dtype(editor))  # in place; the method of diffusers emits a needless warning
    made, seen = fit_area(sizes.output_area_px, 1.0), fit_area(sizes.vae_area_px, 1.0)
    if editor.vae_tiling:
        made = seen = Size(vae.tile_sample_min_width, vae.tile_sample_min_height)
    picture = torch.empty(1, 3, seen.height, seen.width, device="meta", dtype=_dtype(editor))
    shape = (1, vae.config.z_dim, made.height // _LATENT_PX, made.width // _LATENT_PX)
    latents = torch.empty(shape, device="meta", dtype=_dtype(editor))
    if editor.vae == "still":
        still = StillVae(vae)
        return max(peak_bytes(lambda: still.encode(picture)), peak_bytes(lambda: still.decode(latents)))
    return max(peak_bytes(lambda: vae.encode(picture[:, :, None])), peak_bytes(lambda: vae.decode(latents[:, :, None])))


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
    side = round(math.sqrt(settings.sizes.condition_area_px) / _CONDITION_TOKEN_PX)
    return limits.max_pictures_per_edit * side**2 + limits.max_prompt_chars


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
