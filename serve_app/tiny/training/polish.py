"""A last stage for the VAE: its decoder learns on while the encoder, whose latents the transformer knows, stays."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.tiny.training.data import shard_pictures
from serve_app.tiny.training.loop import Fit, Loss, run_fit
from serve_app.tiny.training.recipe import DataRecipe, PolishRecipe
from serve_app.tiny.training.samples import to_latents
from serve_app.tiny.training.still import decode
from serve_app.tiny.training.vae import as_tensor, ceiling_of
from serve_app.tiny.world import Picture


def polish_decoder(
    vae: AutoencoderKLQwenImage,
    tokens: Tensor,
    recipe: PolishRecipe,
    data: DataRecipe,
    folder: Path,
    max_seconds: float = float("inf"),
) -> bool:
    """Train the decoder, or go on.

    Args:
        tokens: what the encoder made of the training pictures, (families, rows, 16, 64).
    """
    pictures = np.concatenate([shard_pictures(data, shard, folder) for shard in range(data.num_shards)])
    named = {name: each for name, each in vae.named_parameters() if name.startswith(("decoder", "post_quant"))}
    fit = Fit("polish", {name: each for name, each in named.items() if "time_conv" not in name}, recipe.fit, folder)
    loss_of = polish_loss(vae, recipe, pictures.reshape(-1, *pictures.shape[2:]), tokens.flatten(0, 1))
    return run_fit(fit, loss_of, ceiling_of(vae), max_seconds)


def polish_loss(vae: AutoencoderKLQwenImage, recipe: PolishRecipe, pictures: Picture, tokens: Tensor) -> Loss:
    """Reconstruction of pictures (n, H, W, 3) from their tokens (n, 16, 64) with some noise."""
    latents = to_latents(vae, tokens)

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = np.sort(rng.choice(len(pictures), recipe.fit.batch, replace=False))
        given = latents[torch.from_numpy(chosen)].float()
        noise = torch.from_numpy(rng.standard_normal(tuple(given.shape), np.float32))
        error = decode(vae, (given + recipe.noise * noise).to(vae.device)) - as_tensor(pictures[chosen], vae.device)
        return error.square().mean() + recipe.absolute * error.abs().mean()

    return loss_of
