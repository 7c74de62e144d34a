"""The last stage of the VAE: trains its decoder further.

The encoder stays fixed, because the transformer was trained on its latents. The latents that the transformer draws are
slightly blurred where it is uncertain, unlike those of encoded pictures. The decoder is trained on both.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.tiny.world import Picture
from serve_app.tools.training.data import shard_pictures
from serve_app.tools.training.loop import Fit, Loss, run_fit
from serve_app.tools.training.recipe import DataRecipe, PolishRecipe
from serve_app.tools.training.samples import Batch, Samples, to_latents
from serve_app.tools.training.still import decode
from serve_app.tools.training.vae import as_tensor, ceiling_of

Draw = Callable[[Batch, np.random.Generator], Tensor]
"""Draws a batch with the transformer and both adapters: tokens (n, 16, 64) on the CPU."""


def polish_decoder(
    vae: AutoencoderKLQwenImage,
    samples: Samples,
    draw: Draw,
    recipe: PolishRecipe,
    data: DataRecipe,
    folder: Path,
    max_seconds: float = float("inf"),
) -> bool:
    """Train the decoder, or resume; returns whether the stage is done."""
    pictures = np.concatenate([shard_pictures(data, shard, folder) for shard in range(data.num_shards)])
    named = {name: each for name, each in vae.named_parameters() if name.startswith(("decoder", "post_quant"))}
    fit = Fit("polish", {name: each for name, each in named.items() if "time_conv" not in name}, recipe.fit, folder)
    loss_of = polish_loss(vae, recipe, pictures.reshape(-1, *pictures.shape[2:]), samples, draw)
    return run_fit(fit, loss_of, ceiling_of(vae), max_seconds)


def polish_loss(
    vae: AutoencoderKLQwenImage, recipe: PolishRecipe, pictures: Picture, samples: Samples, draw: Draw
) -> Loss:
    """The reconstruction loss of the samples' pictures (n, H, W, 3), from encoded tokens and from drawn ones."""
    tokens, num_drawn = samples.tokens, round(recipe.drawn * recipe.fit.batch)

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.choice(len(pictures), recipe.fit.batch - num_drawn, replace=False))
        encoded = to_latents(vae, tokens[chosen].float())
        encoded += recipe.noise * torch.from_numpy(rng.standard_normal(tuple(encoded.shape), np.float32))
        batch = samples.draw(recipe.mix, num_drawn, rng)
        latents = torch.cat([encoded, to_latents(vae, draw(batch, rng))]).to(vae.device)
        target = as_tensor(pictures[torch.cat([chosen, batch.places]).numpy()], vae.device)
        error = decode(vae, latents) - target
        return error.square().mean() + recipe.absolute * error.abs().mean()

    return loss_of
