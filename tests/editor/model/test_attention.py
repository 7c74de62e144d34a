"""Attention backends: which library is used, and how."""

import sys
from types import ModuleType

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from serve_app.editor.model.attention import choose_attention
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.errors import ConfigError
from tests.editor.card.fake import CUDA

FA3_MODULES = ("flash_attn_interface", "fa3_fwd_interface")


def without_fa3(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in FA3_MODULES:
        monkeypatch.setitem(sys.modules, module, None)


def layout_of(*shapes: SpanShape) -> Layout:
    host = QwenImageTransformer2DModel(num_layers=0, num_attention_heads=1, zero_cond_t=True)
    return Layouts(host).of(shapes)


@pytest.mark.parametrize("module", FA3_MODULES)
def test_fa3_is_found_by_either_name_and_called_by_keywords(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_fa3(monkeypatch)
    fake = ModuleType(module)
    calls = []

    def flash_attn_varlen_func(**options: object) -> tuple[object, None]:
        calls.append(options)
        return options["q"], None

    fake.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    attention = choose_attention("fa3", CUDA)
    layout = layout_of(SpanShape((4, 4), ((4, 4),), 7), SpanShape((2, 2), ((4, 4),), 3))
    heads = torch.zeros(39 + 23, 24, 128)
    assert attention.run(heads, heads, heads, layout) is heads
    (options,) = calls
    assert (options.pop("max_seqlen_q"), options.pop("max_seqlen_k")) == (39, 39)
    assert options == {
        "q": heads,
        "k": heads,
        "v": heads,
        "cu_seqlens_q": layout.boundaries,
        "cu_seqlens_k": layout.boundaries,
    }


def test_fa3_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fa3(monkeypatch)
    with pytest.raises(ConfigError, match="flash_attn_interface or fa3_fwd_interface"):
        choose_attention("fa3", CUDA)
