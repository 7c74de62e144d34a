"""The loss of the few-step adapter, which is trained on the steps of the short schedule, from its own latents.

The student denoises a batch down to a random step; there, its prediction of the clean picture is compared with the true
picture. The prediction of the last step is the final picture, so this step is trained most often. Other few-step
methods match a teacher's many steps; here the toy world provides the true pictures, which a teacher only estimates.
"""

import numpy as np
from torch import Tensor

from serve_app.tools.training.adapter import Factors, fused, leaves
from serve_app.tools.training.flow import Model, descend, noise_like, schedule
from serve_app.tools.training.loop import Loss
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.recipe import LightningRecipe
from serve_app.tools.training.samples import Samples


def lightning_loss(
    model: Model, samples: Samples, recipe: LightningRecipe, base: Weights, angles: Weights, factors: Factors
) -> Loss:
    """The loss of the student: `factors` on the base weights, or on those with the angles adapter fused."""
    sigmas, shares = schedule(recipe.num_steps), np.array(recipe.step_shares)

    def loss_of(rng: np.random.Generator) -> Tensor:
        alone = rng.random() < recipe.alone
        flow, frozen = (recipe.base, base) if alone else (recipe.angles, angles)
        batch = samples.draw(flow.mix, flow.fit.batch, rng)
        step = int(rng.choice(recipe.num_steps, p=shares / shares.sum()))
        predict, noise = model.condition(batch, training=True), noise_like(batch.targets, rng).to(model.device)
        weights = fused(leaves(frozen), factors, recipe.adapter)
        latents = descend(predict, weights, noise, sigmas[: step + 1])
        level = latents.new_full((len(latents),), sigmas[step])
        clean = latents - sigmas[step] * predict(weights, latents, level)
        return (clean - batch.targets.to(model.device)).square().mean()

    return loss_of
