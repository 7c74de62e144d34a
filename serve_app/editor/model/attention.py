"""Attention over a pack: each token attends to the tokens of its own span."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F  # noqa: N812

from serve_app.config import AttentionBackend
from serve_app.editor.model.layout import Layout
from serve_app.errors import ConfigError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout], torch.Tensor]
"""Query, key and value in joint order, shape (rows, heads, head_dim) → output of the same shape."""

_CUDNN_MAJORS = (9, 10)
"""Major compute capabilities on which `varlen_attn` of torch 2.14.1 runs cuDNN (torch/nn/attention/varlen.py)."""
_CUDNN_BUCKET = 512
_FA3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")
"""As built from source, and as the package fa3-fwd of PyPI has it."""


@dataclass(frozen=True)
class PackAttention:
    """A way to compute attention over a pack.

    Attributes:
        bucket: the number of rows that `run` takes is a multiple of this. Outputs of rows after the last span are
            unspecified.
    """

    run: Attend
    bucket: int = 1


def choose_attention(backend: AttentionBackend, device: torch.device) -> PackAttention:
    """The attention behind a backend's name.

    Raises:
        ConfigError: the device does not support it, or its library is not installed.
    """
    if backend == "sdpa":
        return PackAttention(_sdpa)
    if device.type != "cuda":
        raise ConfigError(f"editor.attention is {backend}, which needs a CUDA device; use sdpa on {device.type}.")
    if backend == "fa3":
        return PackAttention(_load_fa3())
    return varlen_attention(torch.cuda.get_device_capability(device))


def varlen_attention(capability: tuple[int, int]) -> PackAttention:
    """Torch's own attention over packs on cards of a compute capability.

    cuDNN builds an execution plan, which takes tens of milliseconds and memory for good, for each number of rows,
    longest span and number of spans. In buckets there are few. So a single span goes there, too: SDPA's plans would be
    one for each length of a prompt. `num_splits=1` would rule cuDNN out, but run FlashAttention 2, which is slower on
    these cards.
    """
    if capability[0] in _CUDNN_MAJORS:
        return PackAttention(_varlen, _CUDNN_BUCKET)
    return PackAttention(_varlen_or_sdpa)


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One call of scaled_dot_product_attention per span. Runs on any device."""
    spans = zip(*(x.split(layout.lengths) for x in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in span))[0].transpose(0, 1) for span in spans
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _varlen_or_sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """FlashAttention 2 either way; for a single span SDPA calls it with less work around it."""
    attend = _sdpa if len(layout.lengths) == 1 else _varlen
    return attend(query, key, value, layout)


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
    """One call of torch's own attention for the whole pack."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(query, key, value, layout.boundaries, layout.boundaries, layout.longest, layout.longest)
    assert isinstance(out, torch.Tensor)
    return out


def _load_fa3() -> Attend:
    attend = _import_fa3()

    def fa3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout) -> torch.Tensor:
        # By name: the order of the parameters differs between versions.
        out = attend(
            q=query,
            k=key,
            v=value,
            cu_seqlens_q=layout.boundaries,
            cu_seqlens_k=layout.boundaries,
            max_seqlen_q=layout.longest,
            max_seqlen_k=layout.longest,
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
