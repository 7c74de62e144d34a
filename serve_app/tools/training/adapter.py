"""Low-rank adapters of the transformer, as factors separate from its weights."""

from collections.abc import Mapping

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.recipe import AdapterRecipe

Factors = dict[str, nn.Parameter]
"""`MODULE.down` (rank, in) and `MODULE.up` (out, rank)."""

MODULATION = ("_mod.",)
TEXT = ("txt_", ".add_", ".to_add_out")
"""Parts of the names of layers."""


def new_adapter(model: QwenImageTransformer2DModel, recipe: AdapterRecipe) -> Factors:
    """New factors for the linear layers of every block; `up` is zero, so they have no effect yet."""
    generator = torch.Generator().manual_seed(recipe.seed)
    left_out = (*(() if recipe.modulation else MODULATION), *(() if recipe.text else TEXT))
    factors: Factors = {}
    for name, linear in model.transformer_blocks.named_modules(prefix="transformer_blocks"):
        if isinstance(linear, nn.Linear) and not any(part in name for part in left_out):
            down = torch.randn(recipe.rank, linear.in_features, generator=generator) / linear.in_features**0.5
            factors[f"{name}.down"] = nn.Parameter(down.to(model.device))
            factors[f"{name}.up"] = nn.Parameter(torch.zeros(linear.out_features, recipe.rank, device=model.device))
    return factors


def fused(weights: Weights, factors: Mapping[str, Tensor], recipe: AdapterRecipe) -> dict[str, Tensor]:
    """The weights with the adapter added."""
    # `down` has unit gain and `up` starts at zero, so that one learning rate suits any alpha.
    names = [name.removesuffix(".down") for name in factors if name.endswith(".down")]
    added = {
        f"{name}.weight": torch.addmm(
            weights[f"{name}.weight"], factors[f"{name}.up"], factors[f"{name}.down"], alpha=recipe.scale
        )
        for name in names
    }
    return {**weights, **added}


def leaves(weights: Weights) -> dict[str, Tensor]:
    """Frozen weights as leaves with gradients: the function compiled for the base then also fits the adapters."""
    return {name: each.detach().requires_grad_() for name, each in weights.items()}
