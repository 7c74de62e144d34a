"""Query, key and value of a block's two streams, by three linear layers each or by one."""

from collections.abc import Callable
from typing import Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from torch import nn

Angles = tuple[torch.Tensor, torch.Tensor]
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Stream = Literal["text", "image"]
AddAdapters = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]

# The names that diffusers gives the layers: query, key, value, and all three in one.
_LAYERS = {"text": ("add_q_proj", "add_k_proj", "add_v_proj"), "image": ("to_q", "to_k", "to_v")}
_FUSED = {"text": "to_added_qkv", "image": "to_qkv"}
_NORMS = {"text": ("norm_added_q", "norm_added_k"), "image": ("norm_q", "norm_k")}


@torch.no_grad()
def fuse_projections(block: QwenImageTransformerBlock) -> None:
    """Replace the three layers of each stream by one, in place and after LoRA fusion, so that fp8 quantizes their input
    once. The weight's scales are those of the three, since each output row has its own."""
    attn = block.attn
    for stream, names in _LAYERS.items():
        layers = [getattr(attn, name) for name in names]
        weight = torch.cat([layer.weight for layer in layers])
        fused = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        fused.weight = nn.Parameter(weight, requires_grad=False)
        fused.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
        setattr(attn, _FUSED[stream], fused)
        for name in names:
            delattr(attn, name)


def project(attn: Attention, x: torch.Tensor, stream: Stream, add: AddAdapters) -> Heads:
    """Query, key and value of shape (tokens, heads, head_dim), query and key normalised.

    Args:
        add: adds the adapters' part to the output of a layer, by the layer's name.
    """
    if hasattr(attn, _FUSED[stream]):
        parts = getattr(attn, _FUSED[stream])(x).chunk(3, dim=-1)
    else:
        parts = [getattr(attn, name)(x) for name in _LAYERS[stream]]
    parts = [add(f"attn.{name}", x, part) for name, part in zip(_LAYERS[stream], parts, strict=True)]
    query, key, value = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
    norm_query, norm_key = (getattr(attn, name) for name in _NORMS[stream])
    return norm_query(query), norm_key(key), value


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Rotary embedding: adjacent pairs are rotated by their token's angles, in float32."""
    cosine, sine = (part[:, None] for part in angles)
    swapped = x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    # Without a stack of even and odd numbers, which compiled code would write to memory and copy.
    return (x * cosine).add_(swapped * sine).to(x.dtype)
