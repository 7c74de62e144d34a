"""A last stage for the VAE: its decoder learns on while the encoder, whose latents the transformer knows, stays.

What the transformer draws is a little blurred where it is unsure, which no encoded picture is; a decoder that has met
both makes the best of each.
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
"""What the transformer with both adapters makes of a batch: tokens (n, 16, 64) on the CPU."""


def polish_decoder(
    vae: AutoencoderKLQwenImage,
    samples: Samples,
    draw: Draw,
    recipe: PolishRecipe,
    data: DataRecipe,
    folder: Path,
    max_seconds: float = float("inf"),
) -> bool:
    """Train the decoder, or go on."""
    pictures = np.concatenate([shard_pictures(data, shard, folder) for shard in range(data.num_shards)])
    named = {name: each for name, each in vae.named_parameters() if name.startswith(("decoder", "post_quant"))}
    fit = Fit("polish", {name: each for name, each in named.items() if "time_conv" not in name}, recipe.fit, folder)
    loss_of = polish_loss(vae, recipe, pictures.reshape(-1, *pictures.shape[2:]), samples, draw)
    return run_fit(fit, loss_of, ceiling_of(vae), max_seconds)


def polish_loss(
    vae: AutoencoderKLQwenImage, recipe: PolishRecipe, pictures: Picture, samples: Samples, draw: Draw
) -> Loss:
    """Reconstruction of the samples' pictures (n, H, W, 3), from their own tokens and from drawn ones."""
    tokens, num_drawn = samples.tokens, round(recipe.drawn * recipe.fit.batch)

    def loss_of(rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.choice(len(pictures), recipe.fit.batch - num_drawn, replace=False))
        own = to_latents(vae, tokens[chosen].float())
        own += recipe.noise * torch.from_numpy(rng.standard_normal(tuple(own.shape), np.float32))
        asked = samples.draw(recipe.mix, num_drawn, rng)
        latents = torch.cat([own, to_latents(vae, draw(asked, rng))]).to(vae.device)
        wanted = as_tensor(pictures[torch.cat([chosen, asked.places]).numpy()], vae.device)
        error = decode(vae, latents) - wanted
        return error.square().mean() + recipe.absolute * error.abs().mean()

    return loss_of
