"""Attention over a pack: each token attends to the tokens of its own span."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812

from serve_app.config import AttentionBackend
from serve_app.editor.model.layout import Layout
from serve_app.errors import ConfigError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout], torch.Tensor]
"""Query, key and value in joint order, shape (tokens, heads, head_dim) → output of the same shape."""


def choose_attention(backend: AttentionBackend, device: torch.device) -> Attend:
    """The function behind a backend's name.

    Raises:
        ConfigError: the device does not support it, or its library is not installed.
    """
    if backend == "sdpa":
        return _sdpa
    if device.type != "cuda":
        raise ConfigError(f"editor.attention is {backend}, which needs a CUDA device; use sdpa on {device.type}.")
    return _varlen if backend == "varlen" else _load_fa3()


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One call of scaled_dot_product_attention per span. Runs on any device."""
    spans = zip(*(x.split(layout.lengths) for x in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in span))[0].transpose(0, 1) for span in spans
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One call of torch's own FlashAttention for the whole pack."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(layout.lengths)
    out = varlen_attn(query, key, value, layout.boundaries, layout.boundaries, longest, longest)
    assert isinstance(out, torch.Tensor)
    return out


def _load_fa3() -> Attend:
    try:
        from flash_attn_interface import flash_attn_varlen_func
    except ImportError as problem:
        raise ConfigError(
            "editor.attention is fa3, but FlashAttention 3 (flash_attn_interface) is not installed; use varlen."
        ) from problem

    def fa3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        longest = max(layout.lengths)
        out = flash_attn_varlen_func(
            query, key, value, layout.boundaries, layout.boundaries, max_seqlen_q=longest, max_seqlen_k=longest
        )
        tokens: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return tokens

    return fa3
