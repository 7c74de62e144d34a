"""Attention over a pack: each token attends to the tokens of its own span."""

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F  # noqa: N812

from serve_app.config import AttentionBackend
from serve_app.editor.model.layout import Layout
from serve_app.errors import ConfigError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout], torch.Tensor]
"""Query, key and value in joint order, shape (tokens, heads, head_dim) → output of the same shape."""

_FA3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")
"""As built from source, and as the package fa3-fwd of PyPI has it."""


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
    attend = _import_fa3()

    def fa3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        longest = max(layout.lengths)
        # By name: the order of the parameters differs between versions.
        out = attend(
            q=query,
            k=key,
            v=value,
            cu_seqlens_q=layout.boundaries,
            cu_seqlens_k=layout.boundaries,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
        )
        tokens: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return tokens

    return fa3


def _import_fa3() -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
    for module in _FA3_MODULES:
        try:
            attend: Callable[..., torch.Tensor] = import_module(module).flash_attn_varlen_func
        except ImportError:
            continue
        return attend
    raise ConfigError(
        f"editor.attention is fa3, but FlashAttention 3 ({' or '.join(_FA3_MODULES)}) is not installed; use varlen."
    )
