"""Flow matching, for the base transformer and for the angles adapter on the frozen base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from serve_app.tools.training.loop import Loss
from serve_app.tools.training.mmdit import Weights, layout_of, velocity, with_bfloat16_blocks
from serve_app.tools.training.recipe import FlowRecipe, TextRecipe, TransformerRecipe
from serve_app.tools.training.samples import Batch, Samples
from serve_app.tools.training.text import Prompts

SHIFT = 3.0
"""exp(base_shift) of Lightning's scheduler."""

_TEXT_LENGTHS = (24, 36)  # padded lengths of a batch's prompts; few, to limit compilations

Predict = Callable[[Weights, Tensor, Tensor], Tensor]
"""Predicts the velocity from weights, noisy tokens (n, 16, 64) and noise levels (n,)."""


def shifted(u: Tensor) -> Tensor:
    """Noise levels at fractions u of the schedule, by the time shift."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def schedule(num_steps: int) -> list[float]:
    """The noise levels of `num_steps` steps, down to zero."""
    return [*shifted(torch.linspace(1, 1 / num_steps, num_steps)).tolist(), 0.0]


def new_transformer(recipe: TransformerRecipe, text: TextRecipe, seed: int) -> QwenImageTransformer2DModel:
    """An untrained transformer: in each block shift and scale are 0 and the gate is 1; its output is 0."""
    torch.manual_seed(seed)
    model = QwenImageTransformer2DModel(
        num_layers=recipe.num_layers,
        attention_head_dim=recipe.head_dim,
        num_attention_heads=recipe.num_heads,
        joint_attention_dim=text.hidden,
        axes_dims_rope=recipe.axes_dims_rope,
        zero_cond_t=True,
    )
    with torch.no_grad():
        for linear in (model.proj_out, model.norm_out.linear):
            linear.weight.zero_()
            linear.bias.zero_()
        for block in model.transformer_blocks:
            for linear in (block.img_mod[1], block.txt_mod[1]):
                linear.weight.zero_()
                linear.bias.zero_().view(2, 3, -1)[:, 2] = 1  # shift, scale and gate, twice
    return model


@dataclass(frozen=True)
class Model:
    """The transformer as a function of weights, with the embeddings of its prompts.

    Attributes:
        fast: for training batches, compile the function and run the blocks' linear layers in bfloat16: 2.5 times as
            fast on two cores with AMX, after a minute of compilation for each shape.
    """

    transformer: QwenImageTransformer2DModel
    prompts: Prompts
    fast: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the transformer."""
        device: torch.device = self.transformer.device
        return device

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The transformer's own weights, by name."""
        return dict(self.transformer.named_parameters())

    def condition(self, batch: Batch, training: bool = False) -> Predict:
        """The model's prediction as a function, for this batch's prompts and references."""
        embeds = self.prompts.batch(batch.prompts, batch.num_pictures, _TEXT_LENGTHS)
        text, mask = (part.to(self.device) for part in embeds)
        layout = layout_of(self.transformer, text.shape[1], batch.num_pictures)
        references = batch.references.to(self.device)
        if training and self.fast:
            run = _compiled()
            return lambda weights, latents, sigma: run(
                with_bfloat16_blocks(weights), layout, latents, references, text, mask, sigma
            )
        return lambda weights, latents, sigma: velocity(weights, layout, latents, references, text, mask, sigma)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(velocity, dynamic=False)


@torch.no_grad()
def descend(predict: Predict, weights: Weights, latents: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Run Euler steps from the first noise level to the last."""
    for sigma, following in pairwise(sigmas):
        latents = latents + (following - sigma) * predict(weights, latents, latents.new_full((len(latents),), sigma))
    return latents


def draw(model: Model, weights: Weights, batch: Batch, noise: Tensor, num_steps: int) -> Tensor:
    """Denoise target tokens along the schedule, as the engine does; returns them on the CPU."""
    return descend(model.condition(batch), weights, noise.to(model.device), schedule(num_steps)).cpu()


def flow_loss(model: Model, samples: Samples, recipe: FlowRecipe, weights: Callable[[], Weights]) -> Loss:
    """The flow-matching loss at noise levels distributed as in Lightning's schedule.

    Args:
        weights: returns the current weights.
    """

    def loss_of(rng: np.random.Generator) -> Tensor:
        batch = samples.draw(recipe.mix, recipe.fit.batch, rng)
        targets, noise = batch.targets.to(model.device), noise_like(batch.targets, rng).to(model.device)
        # Stratified over the batch, which reduces the variance of the loss.
        spread = (np.arange(recipe.fit.batch) + rng.random(recipe.fit.batch)) / recipe.fit.batch
        sigma = shifted(torch.from_numpy(spread.astype(np.float32))).to(model.device)
        mixed = torch.lerp(targets, noise, sigma[:, None, None])
        error = model.condition(batch, training=True)(weights(), mixed, sigma) - (noise - targets)
        return error.square().mean()

    return loss_of


def noise_like(tokens: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal noise from numpy's generator: the same on every device."""
    return torch.from_numpy(rng.standard_normal(tuple(tokens.shape), np.float32))
