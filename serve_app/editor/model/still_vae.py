"""The VAE for still pictures: two-dimensional throughout, derived from a loaded AutoencoderKLQwenImage.

The stock VAE is a video model: causal in time, each of its 3-D convolutions pads two empty frames in front. For a
single frame only the last temporal slice of a kernel ever meets anything but zeros, and the temporal resampling of the
first frame is skipped. So a 2-D convolution with that slice gives the same numbers for a third of the work.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as stock
from torch import nn


class StillVae(nn.Module):
    """Encoder and decoder for single pictures, with the weights of `vae`, which it does not change.

    Works on tensors of shape (1, channels, height, width) in the dtype and on the device of `vae`.
    """

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        encoder = _coder(vae.encoder, vae.encoder.down_blocks, middle_first=False)
        decoder = _coder(vae.decoder, vae.decoder.up_blocks, middle_first=True)
        self.encoder = nn.Sequential(encoder, _still(vae.quant_conv))
        self.decoder = nn.Sequential(_still(vae.post_quant_conv), decoder)

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        """Picture (1, 3, H, W) from -1 to 1 → the mean of its latents (1, C, H/8, W/8)."""
        mean: torch.Tensor = self.encoder(picture).chunk(2, dim=1)[0]
        return mean

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (1, C, h, w) → picture (1, 3, 8h, 8w), clamped to -1 to 1."""
        picture: torch.Tensor = self.decoder(latents).clamp(-1.0, 1.0)
        return picture


class _Norm(nn.Module):
    """QwenImageRMS_norm over channels: unit length, times the root of their number, times gamma."""

    def __init__(self, norm: stock.QwenImageRMS_norm) -> None:
        super().__init__()
        gamma = norm.gamma.detach().reshape(1, -1, 1, 1) * norm.scale
        self.register_buffer("gamma", gamma.contiguous())
        self.gamma: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Lengths are taken in float32, as the stock norm does.
        return F.normalize(x.float(), dim=1).to(x.dtype) * self.gamma


class _Residual(nn.Module):
    def __init__(self, block: stock.QwenImageResidualBlock) -> None:
        super().__init__()
        self.path = nn.Sequential(
            _Norm(block.norm1), nn.SiLU(), _still(block.conv1), _Norm(block.norm2), nn.SiLU(), _still(block.conv2)
        )
        self.shortcut = _still(block.conv_shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.path(x) + self.shortcut(x)
        return out


class _Attention(nn.Module):
    """Single-head attention over all places of the picture."""

    def __init__(self, block: stock.QwenImageAttentionBlock) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.proj = _Norm(block.norm), block.to_qkv, block.proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()
        query, key, value = qkv[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(query, key, value)[:, 0]
        out: torch.Tensor = self.proj(seen.transpose(1, 2).reshape_as(x)) + x
        return out


def _coder(
    coder: stock.QwenImageEncoder3d | stock.QwenImageDecoder3d, blocks: nn.ModuleList, *, middle_first: bool
) -> nn.Sequential:
    middle, outer = _still(coder.mid_block), nn.Sequential(*map(_still, blocks))
    inner = (middle, outer) if middle_first else (outer, middle)
    return nn.Sequential(_still(coder.conv_in), *inner, _Norm(coder.norm_out), nn.SiLU(), _still(coder.conv_out))


def _convolution(conv: stock.QwenImageCausalConv3d) -> nn.Conv2d:
    left, _, top, _, _, _ = conv._padding
    still = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[1:],
        padding=(top, left),
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    still.load_state_dict({"weight": conv.weight.detach()[:, :, -1], "bias": conv.bias.detach()})
    return still.requires_grad_(False)


def _middle(block: stock.QwenImageMidBlock) -> nn.Sequential:
    parts = [_still(block.resnets[0])]
    for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
        parts += [_still(attention), _still(residual)]
    return nn.Sequential(*parts)


def _up(block: stock.QwenImageUpBlock) -> nn.Sequential:
    return nn.Sequential(*map(_still, block.resnets), *map(_still, block.upsamplers or []))


_STILL: dict[type[nn.Module], Callable[..., nn.Module]] = {
    stock.QwenImageCausalConv3d: _convolution,
    stock.QwenImageResidualBlock: _Residual,
    stock.QwenImageAttentionBlock: _Attention,
    stock.QwenImageMidBlock: _middle,
    stock.QwenImageUpBlock: _up,
    stock.QwenImageResample: lambda block: block.resample,  # of the first frame, only space is resampled
    nn.Identity: lambda identity: identity,
}


def _still(module: nn.Module) -> nn.Module:
    return _STILL[type(module)](module)
