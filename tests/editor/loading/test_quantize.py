"""Which layers are quantized, and that settings that the device does not support are refused."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.loading.quantize import choose_quantizer, is_quantizable
from serve_app.editor.model.attention import choose_attention
from serve_app.errors import ConfigError


def test_eleven_of_fourteen_layers_of_each_block_are_quantized() -> None:
    """All attention projections and three of four MLP layers; not modulation, nor the image MLP's last layer."""
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(zero_cond_t=True)
    names = [name for name, module in transformer.named_modules() if is_quantizable(module, name)]
    kinds = {name.split(".", 2)[2] for name in names}
    assert len(names) == 60 * len(kinds)
    assert kinds == {
        *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"attn.{name}" for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
        "img_mlp.net.0.proj",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    }


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_quantization_on_a_cpu_is_refused(kind: str, tiny_settings: AppSettings) -> None:
    settings = tiny_settings.editor.model_copy(update={"quantization": kind})
    with pytest.raises(ConfigError, match=f"editor.quantization is {kind}, which needs a CUDA device"):
        as_edit_model(load_pipeline(settings), settings)


def test_no_quantization_changes_nothing() -> None:
    assert choose_quantizer("none", torch.device("cpu"))(nn.Linear(2, 2)) == 0


@pytest.mark.parametrize("backend", ["varlen", "fa3"])
def test_cuda_attention_on_a_cpu_is_refused(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"editor.attention is {backend}, which needs a CUDA device"):
        choose_attention(backend, torch.device("cpu"))  # type: ignore[arg-type]
