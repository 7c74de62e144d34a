"""Pixels to the transformer's tokens and back.

A token is a 2x2 patch of the VAE's 16-channel latents: 64 numbers for 16x16 pixels.
"""

from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage

from serve_app.config import VaeKind
from serve_app.editor.model.still_vae import StillVae
from serve_app.editor.model.tokens import TOKEN_PX
from serve_app.edits.request import Pixels
from serve_app.edits.sizes import Size

PATCH = 2


class Codec(Protocol):
    """Pictures (1, 3, H, W) from -1 to 1 and latents (1, C, H/8, W/8)."""

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
        # Pixels lie channels last already; the permuted view keeps it so, which the convolutions like.
        picture = torch.from_numpy(np.array(pixels)).to(self._device)[None].permute(0, 3, 1, 2)
        # 2 * (x / 255) - 1 and not x / 127.5 - 1: the same roundings as diffusers' VaeImageProcessor.
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
    """The video model on a single frame."""

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
