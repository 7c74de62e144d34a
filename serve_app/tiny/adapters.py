"""Tiny LoRA files in the two formats of the real ones: kohya keys with alpha, and PEFT keys."""

from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import nn

LIGHTNING_RANK = 8
LIGHTNING_ALPHA = 2.0  # not the rank, as in the real file: a loader that drops alpha fuses at four times the strength
ANGLES_RANK = 4
STYLE_RANK = 2
_DELTA_SCALE = 0.3


def save_lightning(folder: Path, transformer: QwenImageTransformer2DModel) -> None:
    """Keys `MODULE.lora_down.weight`, `.lora_up.weight`, `.alpha`; attention and MLP of every block: 12 a block."""
    torch.manual_seed(11)
    tensors = {}
    for name, linear in _block_linears(transformer):
        if "_mod." in name:
            continue
        down, up = _factors(linear, LIGHTNING_RANK)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up * (LIGHTNING_RANK / LIGHTNING_ALPHA)
        tensors[f"{name}.alpha"] = torch.tensor(LIGHTNING_ALPHA)
    _save(tensors, folder / "lightning.safetensors")


def save_angles(folder: Path, transformer: QwenImageTransformer2DModel) -> None:
    """Keys `transformer.MODULE.lora_A.weight` and `.lora_B.weight`; the modulation layers too: 14 a block."""
    torch.manual_seed(12)
    tensors = {}
    for name, linear in _block_linears(transformer):
        down, up = _factors(linear, ANGLES_RANK)
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    _save(tensors, folder / "angles.safetensors")


def save_cyanotype(folder: Path, transformer: QwenImageTransformer2DModel) -> None:
    """Keys as of the angles; attention and MLP of the pictures' tokens: 6 a block."""
    torch.manual_seed(13)
    tensors = {}
    for name, linear in _block_linears(transformer):
        if not any(part in name for part in ("_mod.", "txt_", ".add_", ".to_add_out")):
            down, up = _factors(linear, STYLE_RANK)
            tensors[f"transformer.{name}.lora_A.weight"] = down
            tensors[f"transformer.{name}.lora_B.weight"] = up
    _save(tensors, folder / "cyanotype.safetensors")


def _block_linears(transformer: QwenImageTransformer2DModel) -> list[tuple[str, nn.Linear]]:
    modules = transformer.transformer_blocks.named_modules(prefix="transformer_blocks")
    return [(name, module) for name, module in modules if isinstance(module, nn.Linear)]


def _factors(linear: nn.Linear, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    down = torch.randn(rank, linear.in_features) / linear.in_features**0.5
    up = torch.randn(linear.out_features, rank) * (_DELTA_SCALE / rank**0.5)
    return down, up


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
