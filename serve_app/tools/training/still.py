"""Runs the stock video VAE on batches of single pictures with two-dimensional convolutions, for training.

The VAE is causal in time: for one frame, all but the last temporal slice of a kernel see only zeros, and temporal
resampling is skipped. So these functions use the last slice of the stock modules' parameters, at less than half the
cost; gradients reach the parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as stock
from torch import Tensor, nn


def encode(vae: AutoencoderKLQwenImage, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, H, W) from -1 to 1 → mean and log variance of their latents, (n, C, H/8, W/8) each."""
    mean, log_variance = _run(vae.quant_conv, _run(vae.encoder, pictures)).chunk(2, dim=1)
    return mean, log_variance


def decode(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Latents (n, C, h, w) → pictures (n, 3, 8h, 8w), about -1 to 1, not clamped."""
    return _run(vae.decoder, _run(vae.post_quant_conv, latents))


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return _RUNS[type(module)](module, x)


def _convolution(conv: stock.QwenImageCausalConv3d, x: Tensor) -> Tensor:
    left, _, top, _, _, _ = conv._padding
    weight = conv.weight[:, :, -1].contiguous(memory_format=torch.channels_last)
    out: Tensor = F.conv2d(x, weight, conv.bias, padding=(top, left))
    return out


def _norm(norm: stock.QwenImageRMS_norm, x: Tensor) -> Tensor:
    out: Tensor = _ChannelNorm.apply(x, norm.gamma.reshape(-1))
    return out


class _ChannelNorm(torch.autograd.Function):
    """QwenImageRMS_norm: unit length over channels, times the square root of their number, times gamma.

    The hand-written gradient needs a third of the memory traffic of autograd's, which took half of the training's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12)
        inverse = length.reciprocal_().mul_(x.shape[1] ** 0.5)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, gamma)
        out: Tensor = normal * gamma.reshape(1, -1, 1, 1)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        normal, inverse, gamma = ctx.saved_tensors
        weight, along = gamma.reshape(1, -1, 1, 1), gradient * normal
        mean = F.conv2d(along, weight / normal.shape[1])
        return (gradient * weight).sub_(normal * mean).mul_(inverse), along.sum((0, 2, 3))


def _residual(block: stock.QwenImageResidualBlock, x: Tensor) -> Tensor:
    inner = _run(block.conv1, F.silu(_norm(block.norm1, x)))
    return _run(block.conv_shortcut, x) + _run(block.conv2, F.silu(_norm(block.norm2, inner)))


def _attention(block: stock.QwenImageAttentionBlock, x: Tensor) -> Tensor:
    qkv = block.to_qkv(_norm(block.norm, x)).flatten(2).transpose(1, 2)[:, None]
    attended = F.scaled_dot_product_attention(*qkv.chunk(3, dim=-1))[:, 0]
    out: Tensor = block.proj(attended.transpose(1, 2).reshape_as(x)) + x
    return out


def _middle(block: stock.QwenImageMidBlock, x: Tensor) -> Tensor:
    x = _run(block.resnets[0], x)
    for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
        x = _run(residual, _run(attention, x))
    return x


def _up(block: stock.QwenImageUpBlock, x: Tensor) -> Tensor:
    for part in (*block.resnets, *(block.upsamplers or ())):
        x = _run(part, x)
    return x


def _coder(coder: Any, blocks: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    x = _run(coder.conv_in, x)
    for block in blocks:
        x = _run(block, x)
    return _run(coder.conv_out, F.silu(_norm(coder.norm_out, x)))


_RUNS: dict[type[nn.Module], Callable[..., Tensor]] = {
    stock.QwenImageCausalConv3d: _convolution,
    stock.QwenImageResidualBlock: _residual,
    stock.QwenImageAttentionBlock: _attention,
    stock.QwenImageMidBlock: _middle,
    stock.QwenImageUpBlock: _up,
    stock.QwenImageResample: lambda block, x: block.resample(x),
    stock.QwenImageEncoder3d: lambda coder, x: _coder(coder, (*coder.down_blocks, coder.mid_block), x),
    stock.QwenImageDecoder3d: lambda coder, x: _coder(coder, (coder.mid_block, *coder.up_blocks), x),
    nn.Identity: lambda _, x: x,
}
