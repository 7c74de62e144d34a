"""Pixels to the transformer's tokens and back.

A token is a 2x2 patch of the VAE's 16-channel latents: 64 numbers for 16x16 pixels.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as stock
from torch import nn

from serve_app.config import VaeKind
from serve_app.edits.request import Pixels
from serve_app.edits.sizes import TOKEN_PX, Size

PATCH = 2


class Codec(Protocol):
    """Between pictures (1, 3, H, W) from -1 to 1 and latents (1, C, H/8, W/8)."""

    def encode(self, picture: torch.Tensor) -> torch.Tensor: ...
    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


class Vae:
    """The checkpoint's VAE between uint8 pictures and normalised, packed tokens.

    Args:
        kind: `still` runs its convolutions in two dimensions, `stock` as diffusers does.
    """

    def __init__(self, vae: AutoencoderKLQwenImage, kind: VaeKind = "still") -> None:
        self._device, self._dtype = vae.device, vae.dtype
        self._codec: Codec = _StockCodec(vae)
        if kind == "still":
            self._codec = StillVae(vae).to(memory_format=torch.channels_last)
        shape = (1, vae.config.z_dim, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape).to(self._device, self._dtype)
        self._std = torch.tensor(vae.config.latents_std).view(shape).to(self._device, self._dtype)

    def encode(self, pixels: Pixels) -> torch.Tensor:
        """Pixels (H, W, 3) uint8 with sides in multiples of 16 → tokens (H/16 * W/16, 64) in the VAE's dtype."""
        # The permuted view stays in channels-last memory format, in which the convolutions are faster.
        picture = torch.from_numpy(np.array(pixels)).to(self._device)[None].permute(0, 3, 1, 2)
        # 2 * (x / 255) - 1, not x / 127.5 - 1: it rounds as diffusers' VaeImageProcessor does.
        latents = self._codec.encode((picture.float() / 255.0 * 2.0 - 1.0).to(self._dtype))
        return pack((latents - self._mean) / self._std)

    def decode(self, tokens: torch.Tensor, size: Size) -> Pixels:
        """Tokens (H/16 * W/16, 64) of a picture of `size` → pixels (H, W, 3) uint8."""
        latents = unpack(tokens.to(self._dtype), size) * self._std + self._mean
        picture = self._codec.decode(latents)[0]
        levels = (picture.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        decoded: Pixels = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        return decoded


class _StockCodec:
    """The stock video model on a single frame."""

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        self._vae = vae

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self._vae.encode(picture[:, :, None]).latent_dist.mode()[:, :, 0]
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = self._vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
        return picture


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, C, h, w) → tokens (h/2 * w/2, 4C), row by row, channels outermost within a token."""
    _, channels, height, width = latents.shape
    patches = latents.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(1, 3, 0, 2, 4)
    return patches.reshape(-1, channels * PATCH * PATCH)


def unpack(tokens: torch.Tensor, size: Size) -> torch.Tensor:
    """The inverse of `pack` for a picture of `size` pixels."""
    rows, columns = size.height // TOKEN_PX, size.width // TOKEN_PX
    channels = tokens.shape[1] // (PATCH * PATCH)
    patches = tokens.view(rows, columns, channels, PATCH, PATCH).permute(2, 0, 3, 1, 4)
    return patches.reshape(1, channels, rows * PATCH, columns * PATCH)


class StillVae(nn.Module):
    """A copy of `vae` for single pictures, with 2-D convolutions; in the dtype and on the device of `vae`.

    The stock VAE is a video model: causal in time, each of its 3-D convolutions pads two empty frames in front. For a
    single frame only the last temporal slice of a kernel meets anything but zeros, and the temporal resampling of the
    first frame is skipped. So a 2-D convolution with that slice gives the same numbers for a third of the work.
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
    """QwenImageRMS_norm over channels: unit length, times the square root of their number, times gamma."""

    def __init__(self, norm: stock.QwenImageRMS_norm) -> None:
        super().__init__()
        gamma = norm.gamma.detach().reshape(1, -1, 1, 1) * norm.scale
        self.register_buffer("gamma", gamma.contiguous())
        self.gamma: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In float32, as the stock norm does.
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
    """Single-head attention over all positions of the picture."""

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
    stock.QwenImageResample: lambda block: block.resample,  # the first frame is resampled in space only
    nn.Identity: lambda identity: identity,
}


def _still(module: nn.Module) -> nn.Module:
    return _STILL[type(module)](module)
