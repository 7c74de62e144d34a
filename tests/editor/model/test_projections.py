"""Fused projections: the same numbers by fewer layers."""

from copy import deepcopy

import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.projections import fuse_projections
from tests.editor.card.test_graphs import PACKS, packed, spans, transformer

__all__ = ["transformer"]  # a fixture


def test_fused_projections_compute_the_same(transformer: QwenImageTransformer2DModel) -> None:
    fused = deepcopy(transformer)
    before = sum(parameter.numel() for parameter in fused.parameters())
    for block in fused.transformer_blocks:
        fuse_projections(block)
    assert sum(parameter.numel() for parameter in fused.parameters()) == before
    with torch.inference_mode():
        shapes = PACKS["3 spans"]
        ours, plain = (packed(model, compiled=False)(spans(shapes)) for model in (fused, transformer))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_fused_projections_are_quantizable(transformer: QwenImageTransformer2DModel) -> None:
    fused = deepcopy(transformer)
    for block in fused.transformer_blocks:
        fuse_projections(block)
    kinds = {name.split(".", 2)[2] for name, module in fused.named_modules() if is_quantizable(module, name)}
    assert {"attn.to_qkv", "attn.to_added_qkv"} <= kinds
    assert len(kinds) == 7  # 11 without
