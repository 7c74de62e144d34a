"""Loads the transformer block by block: read, fuse the adapters, hand over.

Only one block is on its way at a time. Whoever takes it may make it smaller before the next one is read, so that
neither the host nor the device ever holds the transformer at its full size.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from serve_app.config import LoraSettings
from serve_app.editor.loading.fuse import Update, check_fused, fuse
from serve_app.editor.loading.lora import audit_file, describe
from serve_app.editor.loading.shards import Shards
from serve_app.editor.model.modulation import is_modulation
from serve_app.errors import CheckpointError, LoraAuditError
from serve_app.weights.locate import locate

logger = logging.getLogger(__name__)

_BLOCKS = "transformer_blocks"
_UNSUPPORTED = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")  # of other models of the same class
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class StreamedTransformer:
    """A transformer whose blocks are loaded in turn.

    Attributes:
        model: everything but its blocks is on its device. A block is on the meta device until `blocks` yields it.
        blocks: loads each block when it yields it.
        modulation: reads a modulation weight, as fused, on the CPU and at any time. Raises a CheckpointError if the
            files have changed.
    """

    model: QwenImageTransformer2DModel
    blocks: Iterator[nn.Module]
    modulation: Read


def stream_transformer(
    folder: Path, loras: Iterable[LoraSettings], device: torch.device, dtype: torch.dtype
) -> StreamedTransformer:
    """Open the transformer and load everything but its blocks. All files are audited before any weight is read.

    Args:
        folder: with config.json and the weights.

    Raises:
        CheckpointError: the weights do not fit the configuration.
        LoraAuditError: an adapter does not fit the transformer; while iterating, a weight was fused wrongly.
        OSError, ValueError, SafetensorError: a file is missing or invalid.
    """
    model = empty_model(folder)
    weights = Shards(folder)
    names = model.state_dict()
    weights.require(names)
    updates = _updates(model, loras)

    def read(name: str, device: torch.device = device) -> torch.Tensor:
        base, own = weights[name], updates.get(name)
        if own is None:
            return base.to(device, dtype, copy=True)
        fused = fuse(base, own, device, dtype)
        check_fused(name, fused, base, own)
        return fused

    def read_once(name: str) -> torch.Tensor:
        tensor = read(name)
        unread.discard(name)
        if not is_modulation(name):
            updates.pop(name, None)
        return tensor

    def read_again(name: str) -> torch.Tensor:
        weights.require_unchanged()
        weights.read_ahead([name])
        return read(name, torch.device("cpu"))

    unread = set(updates)
    outer = {name: read_once(name) for name in names if not name.startswith(f"{_BLOCKS}.")}
    model.load_state_dict(outer, strict=False, assign=True)
    return StreamedTransformer(model, _blocks(model, weights, read_once, unread), read_again)


def _blocks(model: QwenImageTransformer2DModel, weights: Shards, read: Read, unread: set[str]) -> Iterator[nn.Module]:
    blocks = list(model.transformer_blocks)
    names = [[f"{_BLOCKS}.{index}.{name}" for name in block.state_dict()] for index, block in enumerate(blocks)]
    for block, own, following in zip(blocks, names, [*names[1:], []], strict=True):
        weights.read_ahead(following)
        block.load_state_dict({name.split(".", 2)[2]: read(name) for name in own}, assign=True)
        yield block
    if unread:
        raise LoraAuditError(f"These weights were adapted but not loaded: {', '.join(sorted(unread))}.")


def empty_model(folder: Path) -> QwenImageTransformer2DModel:
    """The configured transformer with its parameters on the meta device."""
    config = QwenImageTransformer2DModel.load_config(folder)
    if config.get("_class_name") != QwenImageTransformer2DModel.__name__:
        raise CheckpointError(f"{folder} holds a {config.get('_class_name')} as its transformer.")
    switched = [name for name in _UNSUPPORTED if config.get(name)]
    if switched:
        raise CheckpointError(f"{folder} has a transformer with {', '.join(switched)}, which this engine does not run.")
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
