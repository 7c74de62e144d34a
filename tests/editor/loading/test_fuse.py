"""Fusing a weight: one rounding, no more work than one product and one pass, and a check that notices what is wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from serve_app.editor.loading.fuse import Update, check_fused, fuse
from serve_app.editor.loading.lora import Factors
from serve_app.errors import LoraAuditError

CPU, META = torch.device("cpu"), torch.device("meta")
WIDTH = 3072
LIGHTNING_RANK, ANGLES_RANK = 64, 16


def sixteenths(*shape: int) -> torch.Tensor:
    """Random numbers of so few digits that every sum of their products is exact in float32, in any order."""
    return torch.randint(-8, 9, shape).bfloat16() / 16


def updates_of(num_out: int, num_in: int, new: Callable[..., torch.Tensor]) -> list[Update]:
    """Both adapters: one with an alpha, one with a weight."""
    lightning = Factors(new(LIGHTNING_RANK, num_in), new(num_out, LIGHTNING_RANK), alpha=8.0)
    angles = Factors(new(ANGLES_RANK, num_in), new(num_out, ANGLES_RANK), alpha=None)
    return [Update(lightning, 1.0), Update(angles, 0.875)]


def delta(update: Update) -> torch.Tensor:
    return update.strength * (update.factors.up.double() @ update.factors.down.double())


def test_the_sum_is_rounded_once() -> None:
    torch.manual_seed(1)
    base = torch.randint(-128, 129, (700, 2048)).bfloat16() / 64
    updates = updates_of(700, 2048, sixteenths)
    once = base.double() + sum(delta(update) for update in updates)
    assert torch.equal(once, once.float().double()), "the numbers have too many digits for an exact comparison"
    twice = base
    for update in updates:
        twice = (twice.double() + delta(update)).bfloat16()
    assert torch.equal(fuse(base, updates, CPU, torch.bfloat16), once.bfloat16())
    assert not torch.equal(twice, once.bfloat16())


def test_real_numbers_are_rounded_as_float32_sums_are() -> None:
    """At full width. Float64 rounds another way only where a sum lies almost exactly between two numbers."""
    torch.manual_seed(2)
    base = torch.randn(WIDTH, WIDTH).bfloat16() * 0.02
    updates = updates_of(WIDTH, WIDTH, lambda *shape: torch.randn(shape).bfloat16() * 0.02)
    exact = base.double() + sum(delta(update) for update in updates)
    found = fuse(base, updates, CPU, torch.bfloat16)
    assert (found != exact.bfloat16()).double().mean() < 1e-3
    check_fused("weight", found, base, updates)


def test_weights_of_another_dtype_are_not_rounded_before() -> None:
    torch.manual_seed(3)
    base = torch.randint(-(2**14), 2**14, (32, 64)).float() / 2**13
    updates = updates_of(32, 64, sixteenths)
    exact = base.double() + sum(delta(update) for update in updates)
    assert torch.equal(fuse(base, updates, CPU, torch.bfloat16), exact.float().bfloat16())
    assert torch.equal(fuse(base, updates, CPU, torch.float32), exact.float())


class CountedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that operations read and write; a view moves none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        out: object = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.empty.memory_format:
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
            self.num_bytes += sum(tensor.nbytes for tensor in tensors)
        return out


def test_a_block_of_full_width_takes_one_product_and_one_pass() -> None:
    """Of its 36 D² weights, 24 D² are adapted by both files and 12 D², modulation, by one."""
    with META:
        (block,) = QwenImageTransformer2DModel(num_layers=1, zero_cond_t=True).transformer_blocks
    linears = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    num_weights = sum(module.weight.numel() for module in linears.values())
    # The counter knows addmm, not that it can be done in place.
    in_place = {torch.ops.aten.addmm_: lambda own, up, down, **_: 2 * up[0] * up[1] * down[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as flops, CountedBytes() as moved:
        for name, module in linears.items():
            num_out, num_in = module.weight.shape
            updates = updates_of(num_out, num_in, lambda *shape: torch.empty(shape, device="meta"))
            fuse(
                torch.empty(module.weight.shape, dtype=torch.bfloat16, device="meta"),
                updates[1:] if "_mod." in name else updates,
                META,
                torch.bfloat16,
            )
    assert num_weights == 36 * WIDTH**2
    assert flops.get_total_flops() == 2 * WIDTH**2 * (24 * LIGHTNING_RANK + 36 * ANGLES_RANK)
    # A weight is read in 16 bits and written in 32, updated in place, and rounded, where the result counts twice: 6, 8
    # and 8 bytes. The factors take the rest.
    assert 22 * num_weights < moved.num_bytes < 24 * num_weights


def without_alpha(base: torch.Tensor, updates: list[Update]) -> torch.Tensor:
    lightning, angles = updates
    factors = Factors(lightning.factors.down, lightning.factors.up, alpha=None)
    return fuse(base, [Update(factors, 1.0), angles], CPU, torch.bfloat16)


def without_an_adapter(base: torch.Tensor, updates: list[Update]) -> torch.Tensor:
    return fuse(base, updates[:1], CPU, torch.bfloat16)


def with_rows_of_another_tile(base: torch.Tensor, updates: list[Update]) -> torch.Tensor:
    return fuse(base, updates, CPU, torch.bfloat16).roll(1, dims=0)


def not_a_number(base: torch.Tensor, updates: list[Update]) -> torch.Tensor:
    return fuse(base, updates, CPU, torch.bfloat16) * torch.nan


@pytest.mark.parametrize("spoil", [without_alpha, without_an_adapter, with_rows_of_another_tile, not_a_number])
def test_a_weight_that_is_not_what_the_files_say_is_noticed(
    spoil: Callable[[torch.Tensor, list[Update]], torch.Tensor],
) -> None:
    """Also with updates of a hundredth of the weight, which are near its rounding errors."""
    torch.manual_seed(4)
    base = torch.randn(256, 512).bfloat16()
    updates = updates_of(256, 512, lambda *shape: torch.randn(shape).bfloat16() * 0.05)
    check_fused("weight", fuse(base, updates, CPU, torch.bfloat16), base, updates)
    with pytest.raises(LoraAuditError, match="weight was fused wrongly on cpu"):
        check_fused("weight", spoil(base, updates), base, updates)
