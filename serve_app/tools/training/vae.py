"""The first stage: a VAE for pictures of the toy world, of the real VAE's class."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.tiny.world import POSES, Picture, is_held_out, psnr, random_scene, render
from serve_app.tools.training.data import INPUT_POSES, shard_pictures
from serve_app.tools.training.loop import Fit, Loss, Score, run_fit
from serve_app.tools.training.recipe import DataRecipe, VaeRecipe
from serve_app.tools.training.still import decode, encode


def new_vae(recipe: VaeRecipe) -> AutoencoderKLQwenImage:
    """An untrained VAE. Parameters that only affect a second frame are zero."""
    torch.manual_seed(recipe.fit.seed)
    vae = AutoencoderKLQwenImage(base_dim=recipe.base_dim, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if parameter.dim() == 5:
                parameter[:, :, :-1] = 0
            if "time_conv" in name:
                parameter.zero_()
    return vae


def train_vae(
    vae: AutoencoderKLQwenImage, recipe: VaeRecipe, data: DataRecipe, folder: Path, max_seconds: float = float("inf")
) -> bool:
    """Train on the first shards, or resume; then set the latents' mean and deviation. Returns whether it is done."""
    shards = [shard_pictures(data, shard, folder) for shard in range(recipe.num_shards)]
    pictures = np.concatenate([shard.reshape(-1, *shard.shape[-3:]) for shard in shards])
    parameters = {name: each for name, each in vae.named_parameters() if "time_conv" not in name}
    fit = Fit("vae", parameters, recipe.fit, folder)
    done = run_fit(fit, vae_loss(vae, recipe, pictures), ceiling_of(vae), max_seconds)
    normalise(vae, pictures[:: max(1, len(pictures) // 1024)])
    return done


def vae_loss(vae: AutoencoderKLQwenImage, recipe: VaeRecipe, pictures: Picture) -> Loss:
    """The reconstruction loss from latents with noise, which makes similar latents decode to similar pictures."""

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = np.sort(rng.choice(len(pictures), recipe.fit.batch, replace=False))
        target = as_tensor(pictures[chosen], vae.device)
        mean, _ = encode(vae, target)
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), np.float32)).to(vae.device)
        error = decode(vae, mean + recipe.noise * noise) - target
        return error.square().mean() + recipe.absolute * error.abs().mean() + recipe.latent * mean.square().mean()

    return loss_of


def ceiling_of(vae: AutoencoderKLQwenImage) -> Score:
    """A score of the VAE alone: the PSNR of views of held-out scenes after encoding and decoding."""

    def score() -> Mapping[str, float]:
        return {name: _psnr_of(vae, pictures) for name, pictures in _held_out_views().items()}

    return score


_NUM_SCENES = 48


@cache
def _held_out_views() -> Mapping[str, Picture]:
    """Pictures from poses that an input may have, and from any. They are shared: nobody may change them."""
    rng = np.random.default_rng(5)
    drawn = (random_scene(rng) for _ in range(_NUM_SCENES * 12))
    scenes = [scene for scene in drawn if is_held_out(scene)][:_NUM_SCENES]
    return {
        "input_db": np.stack([render(scene, POSES[rng.choice(INPUT_POSES)]) for scene in scenes]),
        "any_db": np.stack([render(scene, POSES[rng.integers(len(POSES))]) for scene in scenes]),
    }


@torch.no_grad()
def _psnr_of(vae: AutoencoderKLQwenImage, pictures: Picture) -> float:
    reconstructed = as_pictures(decode(vae, encode(vae, as_tensor(pictures, vae.device))[0]))
    return float(np.mean([psnr(own, truth) for own, truth in zip(reconstructed, pictures, strict=True)]))


@torch.no_grad()
def normalise(vae: AutoencoderKLQwenImage, pictures: Picture) -> None:
    """Set `latents_mean` and `latents_std` of the configuration from the pictures' latents."""
    latents = torch.cat([encode(vae, as_tensor(part, vae.device))[0] for part in np.array_split(pictures, 16)])
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3)).tolist(), latents_std=latents.std(dim=(0, 2, 3)).tolist()
    )


def as_tensor(pictures: Picture, device: torch.device) -> Tensor:
    """Pictures (n, H, W, 3) uint8 → (n, 3, H, W) from -1 to 1, channels last in memory."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pictures(decoded: Tensor) -> Picture:
    """The inverse of `as_tensor`, clamped and rounded as the pipeline does."""
    levels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    pictures: Picture = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pictures
