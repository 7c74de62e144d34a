"""Compares the speeds of the planned rewriters and editors. Computed from the models' sizes, not measured.

The rule assumes that every edit asks for a rewrite, has one reference picture at the configured area and the default
number of steps, and that each deployment has a card for itself. A batch of rewrites takes the time of its prompts'
tokens, and of one answer: decoding one token takes the same time for any number of prompts.
"""

from collections.abc import Mapping

from diffusers import QwenImageTransformer2DModel
from transformers import Qwen3VLForConditionalGeneration

from serve_app.config import AppSettings
from serve_app.editor.model.modulation import is_modulation
from serve_app.edits.request import Sampling
from serve_app.edits.sizes import TOKEN_PX
from serve_app.rewriter.instructions import INSTRUCTIONS
from serve_app.tools.check.memory import REWRITER_TOKEN_PX
from serve_app.weights.architectures import find_edit_model, find_rewriter

# Assumptions.
FLOPS = 4e14  # a second, in 16 bits: 40 % of an H100's peak
LAYER_S, COMPILED_LAYER_S = 1.2e-3, 0.3e-3  # of one decoding step, in which Python launches each kernel
NUM_ANSWER_TOKENS = 45
CHARS_PER_TOKEN = 4


def rewriter_warning(settings: AppSettings, num_replicas: Mapping[str, int]) -> str | None:
    """A warning if all rewriters together are slower than all editors; None if not, or if a model is unknown.

    Args:
        num_replicas: at most, by deployment name.
    """
    source = None if settings.rewriter is None else settings.rewriter.source
    rewriter = None if source is None else find_rewriter(source)
    editor = find_edit_model(settings.editor.base)
    if rewriter is None or editor is None:
        return None
    prompts = num_replicas["Rewriter"] * rewrites_per_s(rewriter, settings)
    edits = num_replicas["Editor"] * edits_per_s(editor.transformer, settings)
    if prompts >= edits:
        return None
    return (
        f"warning: the rewriter is slower than the editors: {prompts:.1f} prompts and {edits:.1f} edits per second "
        "(computed, if each edit asks for a rewrite). Set a larger rewriter.max_batch_size, more replicas of the "
        "Rewriter, or rewriter.source to a smaller Qwen3-VL."
    )


def edits_per_s(model: QwenImageTransformer2DModel, settings: AppSettings) -> float:
    """Of one editor: two operations for each weight and token, and attention over all tokens."""
    tokens = (settings.sizes.output_area_px + settings.sizes.vae_area_px) // TOKEN_PX**2
    weights = sum(each.numel() for name, each in model.named_parameters() if not is_modulation(name))
    attention = 4 * tokens**2 * model.inner_dim * len(model.transformer_blocks)
    return float(FLOPS / (Sampling().num_inference_steps * (2 * weights * tokens + attention)))


def rewrites_per_s(model: Qwen3VLForConditionalGeneration, settings: AppSettings) -> float:
    """Of one rewriter whose batches are full."""
    rewriter = settings.rewriter
    if rewriter is None:
        return 0.0
    picture = min(settings.sizes.vae_area_px, rewriter.max_picture_px) // REWRITER_TOKEN_PX**2
    tokens = picture + len(INSTRUCTIONS) // CHARS_PER_TOKEN
    rows = max(1, min(rewriter.max_batch_size, rewriter.max_batch_tokens // (tokens + rewriter.max_new_tokens)))
    layer_s = COMPILED_LAYER_S if rewriter.compile else LAYER_S
    answer_s = NUM_ANSWER_TOKENS * model.config.text_config.num_hidden_layers * layer_s
    prompt_s = 2 * sum(each.numel() for each in model.parameters()) * tokens / FLOPS
    return float(rows / (answer_s + rows * prompt_s))
