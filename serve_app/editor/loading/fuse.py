"""Fuses LoRA updates into a weight: summed in float32 and rounded once.

Fusing one adapter after the other in 16 bits rounds the weight each time, which adds noise of the size of the update.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from serve_app.editor.loading.lora import Factors
from serve_app.errors import LoraAuditError

_TILE_NUMBERS = 2**20  # This many of a weight are float32 at a time, so that they stay in a CPU's cache.
_NUM_CHECKED_ROWS = 4


@dataclass(frozen=True)
class Update:
    """A module's factors in one adapter, and the weight at which that is fused."""

    factors: Factors
    weight: float

    @property
    def strength(self) -> float:
        return self.weight * self.factors.scale


def fuse(base: torch.Tensor, updates: Sequence[Update], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """`base + sum(strength * up @ down)`, computed in float32 on `device` and rounded to `dtype` once.

    Args:
        base: a Linear's weight, shape (out_features, in_features).
        updates: at least one.

    Returns:
        A new tensor on `device`.
    """
    # Side by side, the factors of all adapters need one product and one pass over the weight.
    up = torch.cat([_float32(update.factors.up, device) * update.strength for update in updates], dim=1)
    down = torch.cat([_float32(update.factors.down, device) for update in updates])
    fused = torch.empty(base.shape, dtype=dtype, device=device)
    source = base.to(device)
    num_rows = max(1, _TILE_NUMBERS // base.shape[1])
    for start in range(0, len(base), num_rows):
        tile = slice(start, start + num_rows)
        fused[tile] = source[tile].to(torch.float32, copy=True).addmm_(up[tile], down)
    return fused


def check_fused(name: str, fused: torch.Tensor, base: torch.Tensor, updates: Sequence[Update]) -> None:
    """Compare some rows of a fused weight with those computed in float64 from the files.

    Raises:
        LoraAuditError: a number is not the rounded one. The device computes wrongly, or less exactly than in float32.
    """
    rows = torch.linspace(0, len(base) - 1, _NUM_CHECKED_ROWS).long()
    expected, terms = base[rows].double(), torch.zeros(())
    for update in updates:
        up, down = update.factors.up[rows].double() * update.strength, update.factors.down.double()
        expected += up @ down
        terms = terms + up.abs() @ down.abs()
    # Half a unit in the last place, and what float32, or TensorFloat-32, loses in the products.
    allowed = 0.505 * torch.finfo(fused.dtype).eps * expected.abs() + 1e-3 * terms
    found = fused[rows.to(fused.device)].cpu().double()
    if not ((found - expected).abs() <= allowed).all():
        raise LoraAuditError(f"{name} was fused wrongly on {fused.device}: it does not hold what the LoRA files say.")


def _float32(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device).to(torch.float32)
