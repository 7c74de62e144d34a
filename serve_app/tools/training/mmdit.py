"""QwenImageTransformer2DModel as a plain function of its weights, for training.

Computes the same as the stock forward pass with `zero_cond_t`. Differences: all references of a batch share one row of
modulation, the last block computes only what the output depends on, and adapters are added to the weights beforehand.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

Weights = Mapping[str, Tensor]
Angles = tuple[Tensor, Tensor]
"""Cosine and sine, (tokens, 1, head_dim / 2) each."""

_EPS = 1e-6


@dataclass(frozen=True)
class Layout:
    """What depends only on the shapes of a batch: sizes, and rotary angles of text tokens, then picture tokens."""

    num_layers: int
    num_heads: int
    num_target: int
    angles: Angles


def layout_of(model: QwenImageTransformer2DModel, num_text: int, num_references: int, side: int = 4) -> Layout:
    """The layout for pictures of side x side tokens."""
    shapes = [[(1, side, side)] * (1 + num_references)]
    image, text = model.pos_embed(shapes, max_txt_seq_len=num_text, device=model.device)
    angles = torch.cat([text, image])[:, None]
    return Layout(
        num_layers=model.config.num_layers,
        num_heads=model.config.num_attention_heads,
        num_target=side * side,
        angles=(angles.real.contiguous(), angles.imag.contiguous()),
    )


def velocity(
    weights: Weights, layout: Layout, latents: Tensor, references: Tensor, text: Tensor, mask: Tensor, sigma: Tensor
) -> Tensor:
    """The predicted velocity, noise minus picture, (n, target tokens, 64).

    Args:
        latents, references: noisy and clean tokens, (n, tokens, 64); text (n, length, hidden).
        mask: False for padding of the text, (n, length).
        sigma: noise levels, (n,), the model's timesteps.
    """
    times = _time_embeds(weights, torch.cat([sigma, sigma.new_zeros(1)]))
    active = F.silu(times)
    image = _linear(weights, "img_in", torch.cat([latents, references], dim=1))
    text = _linear(weights, "txt_in", _rms_norm(text, weights["txt_norm.weight"]))
    attn_mask = F.pad(mask, (0, image.shape[1]), value=True)[:, None, None]
    for number in range(layout.num_layers):
        name = f"transformer_blocks.{number}"
        text, image = _block(weights, name, layout, text, image, active, attn_mask, number == layout.num_layers - 1)
    scale, shift = _linear(weights, "norm_out.linear", active[:-1]).chunk(2, dim=-1)
    target = F.layer_norm(image[:, : layout.num_target], image.shape[-1:], eps=_EPS)
    return _linear(weights, "proj_out", target * (1 + scale[:, None]) + shift[:, None])


def inner_matrices(names: Iterable[str]) -> frozenset[str]:
    """The names of the weight matrices that multiply tokens within the blocks."""
    return frozenset(
        name
        for name in names
        if name.startswith("transformer_blocks")
        and name.endswith(".weight")
        and "norm" not in name
        and "_mod" not in name
    )


def with_bfloat16_blocks(weights: Weights) -> dict[str, Tensor]:
    """The weights with those of the blocks' linear layers in bfloat16."""
    return {
        name: each.bfloat16() if name.startswith("transformer_blocks") and "norm" not in name else each
        for name, each in weights.items()
    }


def _time_embeds(weights: Weights, sigma: Tensor) -> Tensor:
    steps = torch.exp(-math.log(10000) * torch.arange(128, device=sigma.device) / 128)
    angles = 1000 * sigma[:, None] * steps
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
    name = "time_text_embed.timestep_embedder"
    return _linear(weights, f"{name}.linear_2", F.silu(_linear(weights, f"{name}.linear_1", waves)))


def _block(
    weights: Weights,
    name: str,
    layout: Layout,
    text: Tensor,
    image: Tensor,
    times: Tensor,
    attn_mask: Tensor,
    last: bool,
) -> tuple[Tensor, Tensor]:
    num_target = layout.num_target
    text_rows = _linear(weights, f"{name}.txt_mod.1", times[:-1])[:, None].chunk(6, dim=-1)
    image_rows = [
        _per_token(rows, num_target, image.shape[1])
        for rows in _linear(weights, f"{name}.img_mod.1", times).chunk(6, -1)
    ]
    heads = _heads(
        weights, name, layout, _modulate(text, text_rows[0], text_rows[1]), _modulate(image, *image_rows[:2])
    )
    query, key, value = heads
    if last:  # the output depends only on the target tokens
        start = text.shape[1]
        query, image = query[:, :, start : start + num_target], image[:, :num_target]
        image_rows = [rows[:, :num_target] for rows in image_rows]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask).transpose(1, 2).flatten(2)
    if not last:
        text_attended, attended = attended[:, : text.shape[1]], attended[:, text.shape[1] :]
        text = text + text_rows[2] * _linear(weights, f"{name}.attn.to_add_out", text_attended)
        text = text + text_rows[5] * _mlp(weights, f"{name}.txt_mlp", _modulate(text, text_rows[3], text_rows[4]))
    image = image + image_rows[2] * _linear(weights, f"{name}.attn.to_out.0", attended)
    image = image + image_rows[5] * _mlp(weights, f"{name}.img_mlp", _modulate(image, image_rows[3], image_rows[4]))
    return text, image


def _per_token(rows: Tensor, num_target: int, num_image: int) -> Tensor:
    """Rows (n + 1, D), the last of which is for references → (n, num_image, D)."""
    own = rows[:-1, None].expand(-1, num_target, -1)
    return torch.cat([own, rows[None, -1:].expand(len(own), num_image - num_target, -1)], dim=1)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=_EPS), 1 + scale)


def _heads(weights: Weights, name: str, layout: Layout, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of text and pictures, (n, heads, tokens, head_dim)."""

    def project(stream: Tensor, names: tuple[str, ...]) -> tuple[Tensor, ...]:
        weight = torch.cat([weights[f"{name}.attn.{each}.weight"] for each in names])
        bias = torch.cat([weights[f"{name}.attn.{each}.bias"] for each in names])
        heads = F.linear(stream.to(weight.dtype), weight, bias).to(stream.dtype)
        return heads.view(*stream.shape[:2], 3 * layout.num_heads, -1).chunk(3, dim=2)

    text_q, text_k, text_v = project(text, ("add_q_proj", "add_k_proj", "add_v_proj"))
    image_q, image_k, image_v = project(image, ("to_q", "to_k", "to_v"))
    attn = f"{name}.attn"
    query = [
        _rms_norm(text_q, weights[f"{attn}.norm_added_q.weight"]),
        _rms_norm(image_q, weights[f"{attn}.norm_q.weight"]),
    ]
    key = [
        _rms_norm(text_k, weights[f"{attn}.norm_added_k.weight"]),
        _rms_norm(image_k, weights[f"{attn}.norm_k.weight"]),
    ]
    rotated = (_rotate(torch.cat(each, dim=1), layout.angles) for each in (query, key))
    query_heads, key_heads = (each.transpose(1, 2) for each in rotated)
    return query_heads, key_heads, torch.cat([text_v, image_v], dim=1).transpose(1, 2)


def _rotate(x: Tensor, angles: Angles) -> Tensor:
    cosine, sine = angles
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def _mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    inner = F.gelu(_linear(weights, f"{name}.net.0.proj", x), approximate="tanh")
    return _linear(weights, f"{name}.net.2", inner)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS) * weight
