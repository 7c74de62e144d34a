"""Quantizes the transformer's linear layers by torchao, block by block, after LoRA fusion.

A LoRA on a quantized base leaves a grid in the picture, so the adapters are fused first. Modulation, embedders,
proj_out and the image MLP's last layer keep 16 bits, because their rounding errors are visible.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from serve_app.config import Quantization
from serve_app.editor.model.modulation import is_modulation
from serve_app.editor.model.projections import fuse_projections
from serve_app.errors import ConfigError

Quantizer = Callable[[nn.Module], int]

_BLOCKS = "transformer_blocks."
_FP8_CAPABILITY = (8, 9)
_INT4_GROUP = 128


def choose_quantizer(kind: Quantization, device: torch.device) -> Quantizer:
    """What quantizes a block in place, on `device`, and returns the number of quantized layers.

    Raises:
        ConfigError: the device does not support it, or torchao is not installed.
    """
    if kind == "none":
        return lambda block: 0
    _check_device(device, kind)
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int4WeightOnlyConfig, PerRow
    except ImportError as problem:
        raise ConfigError(
            f"editor.quantization is {kind}, which needs torchao: pip install 'qwen-camera-edit[quantize]'."
        ) from problem

    # set_inductor_config would change torch's compiler for the whole process.
    if kind == "fp8":
        fp8 = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        return partial(quantize_block, config=fp8)
    # The packing of torch's own kernel.
    int4 = Int4WeightOnlyConfig(
        group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )
    return partial(quantize_block, config=int4)


def quantize_block(block: nn.Module, config: object) -> int:
    """Quantize a block's quantizable layers by a torchao configuration; returns their number."""
    from torchao.quantization import quantize_

    def in_block(module: nn.Module, name: str) -> bool:
        return is_quantizable(module, f"{_BLOCKS}{name}")

    fuse_projections(block)
    quantize_(block, config, filter_fn=in_block)
    return sum(in_block(module, name) for name, module in block.named_modules())


def is_quantizable(module: nn.Module, name: str) -> bool:
    """Whether the transformer's module of this name may be quantized."""
    return (
        isinstance(module, nn.Linear)
        and name.startswith(_BLOCKS)
        and not is_modulation(name)
        and not name.endswith(".img_mlp.net.2")
    )


def _check_device(device: torch.device, kind: Quantization) -> None:
    if device.type != "cuda":
        raise ConfigError(f"editor.quantization is {kind}, which needs a CUDA device; use none on {device.type}.")
    capability = torch.cuda.get_device_capability(device)
    if kind == "fp8" and capability < _FP8_CAPABILITY:
        raise ConfigError(
            f"editor.quantization is fp8, which needs compute capability 8.9; this card has {capability[0]}."
            f"{capability[1]}. Use int4 or none."
        )
