"""Quantizes the transformer's linear layers by torchao, after LoRA fusion.

A LoRA on a quantized base leaves a grid in the picture, so the adapters are fused first. Modulation, embedders,
proj_out and the image MLP's last layer keep 16 bits, because their rounding errors are visible.
"""

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from serve_app.config import Quantization
from serve_app.editor.model.modulation import is_modulation
from serve_app.errors import ConfigError

_FP8_CAPABILITY = (8, 9)
_INT4_GROUP = 128


def quantize(transformer: QwenImageTransformer2DModel, kind: Quantization, device: torch.device) -> int:
    """Quantize in place and return the number of quantized layers. They are moved to `device` one at a time, so the
    unquantized transformer need not fit there.

    Raises:
        ConfigError: the device does not support it, or torchao is not installed.
    """
    if kind == "none":
        return 0
    _check_device(device, kind)
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int4WeightOnlyConfig, PerRow
    except ImportError as problem:
        raise ConfigError(
            f"editor.quantization is {kind}, which needs torchao: pip install 'qwen-camera-edit[quantize]'."
        ) from problem

    if kind == "fp8":
        return apply(transformer, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), device)
    # The packing of torch's own kernel.
    int4 = Int4WeightOnlyConfig(group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d")
    return apply(transformer, int4, device)


def apply(transformer: QwenImageTransformer2DModel, config: object, device: torch.device) -> int:
    """Quantize the quantizable layers by a torchao configuration; returns their number."""
    from torchao.quantization import quantize_

    num_layers = sum(is_quantizable(module, name) for name, module in transformer.named_modules())
    quantize_(transformer, config, filter_fn=is_quantizable, device=device)
    return num_layers


def is_quantizable(module: nn.Module, name: str) -> bool:
    """Whether the transformer's module of this name may be quantized."""
    return (
        isinstance(module, nn.Linear)
        and name.startswith("transformer_blocks.")
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
