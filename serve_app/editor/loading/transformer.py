"""Loads the transformer block by block: read, fuse the adapters, hand over.

Only one block is on its way at a time. Whoever takes it may make it smaller before the next one is read, so that
neither the host nor the device ever holds the transformer at its full size.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from serve_app.config import LoraSettings
from serve_app.editor.loading.fuse import Update, check_fused, fuse
from serve_app.editor.loading.lora import audit_file, describe
from serve_app.editor.loading.shards import Shards
from serve_app.errors import CheckpointError, LoraAuditError
from serve_app.weights.locate import locate

logger = logging.getLogger(__name__)

_BLOCKS = "transformer_blocks"
Read = Callable[[str], torch.Tensor]


def stream_transformer(
    folder: Path, loras: Iterable[LoraSettings], device: torch.device, dtype: torch.dtype
) -> tuple[QwenImageTransformer2DModel, Iterator[nn.Module]]:
    """The transformer with everything but its blocks on `device`, and an iterator that loads its blocks in turn.

    A block is on the meta device until the iterator yields it. All files are audited before any weight is read.

    Args:
        folder: with config.json and the weights.

    Raises:
        CheckpointError: the weights do not fit the configuration.
        LoraAuditError: an adapter does not fit the transformer; while iterating, a weight was fused wrongly.
        OSError, ValueError, SafetensorError: a file is missing or invalid.
    """
    model = _empty_model(folder)
    weights = Shards(folder)
    names = model.state_dict()
    weights.require(names)
    updates = _updates(model, loras)

    def read(name: str) -> torch.Tensor:
        base, own = weights[name], updates.pop(name, None)
        if own is None:
            return base.to(device, dtype, copy=True)
        fused = fuse(base, own, device, dtype)
        check_fused(name, fused, base, own)
        return fused

    outer = {name: read(name) for name in names if not name.startswith(f"{_BLOCKS}.")}
    model.load_state_dict(outer, strict=False, assign=True)
    return model, _blocks(model, weights, read, updates)


def _blocks(
    model: QwenImageTransformer2DModel, weights: Shards, read: Read, updates: dict[str, list[Update]]
) -> Iterator[nn.Module]:
    blocks = list(model.transformer_blocks)
    names = [[f"{_BLOCKS}.{index}.{name}" for name in block.state_dict()] for index, block in enumerate(blocks)]
    for block, own, following in zip(blocks, names, [*names[1:], []], strict=True):
        weights.read_ahead(following)
        block.load_state_dict({name.split(".", 2)[2]: read(name) for name in own}, assign=True)
        yield block
    if updates:
        raise LoraAuditError(f"These weights were adapted but not loaded: {', '.join(sorted(updates))}.")


def _empty_model(folder: Path) -> QwenImageTransformer2DModel:
    """The configured transformer with its parameters on the meta device."""
    config = QwenImageTransformer2DModel.load_config(folder)
    if config.get("_class_name") != QwenImageTransformer2DModel.__name__:
        raise CheckpointError(f"{folder} holds a {config.get('_class_name')} as its transformer.")
    with torch.device("meta"):
        model: QwenImageTransformer2DModel = QwenImageTransformer2DModel.from_config(config)
    # The rotary table is in no file: neither a parameter nor a buffer, and computed when it is made.
    rotary = model.pos_embed
    model.pos_embed = type(rotary)(rotary.theta, rotary.axes_dim, rotary.scale_rope)
    return model.eval().requires_grad_(False)


def _updates(model: QwenImageTransformer2DModel, loras: Iterable[LoraSettings]) -> dict[str, list[Update]]:
    """The audited adapters' updates by the name of the weight that they change."""
    updates = defaultdict(list)
    for lora in loras:
        adapter = audit_file(locate(lora.source, [lora.file]) / lora.file, model, lora)
        for name, factors in adapter.items():
            updates[f"{name}.weight"].append(Update(factors, lora.weight))
        logger.info("%s", describe(adapter, lora))
    return dict(updates)
