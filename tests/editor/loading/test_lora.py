"""The audit of LoRA files, on the real transformer's configuration without its weights, and fusing on the tiny one."""

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from serve_app.config import AppSettings, EditorSettings, LoraSettings, WeightsSource
from serve_app.editor.loading.load import load_pipeline
from serve_app.editor.loading.lora import Adapter, audit, audit_file, describe
from serve_app.errors import LoraAuditError
from serve_app.weights.locate import locate

Tensors = dict[str, torch.Tensor]
SETTINGS = LoraSettings(name="under-test", source=WeightsSource(path="."), file="file.safetensors")
RANK = 64
ALPHA = 8.0


@pytest.fixture(scope="module")
def transformer() -> QwenImageTransformer2DModel:
    """The transformer of Qwen-Image-Edit-2511: the class's defaults, and zero_cond_t. No memory is taken."""
    with torch.device("meta"):
        return QwenImageTransformer2DModel(zero_cond_t=True)


def block_linears(transformer: nn.Module, *, modulation: bool) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("transformer_blocks.")
        and (modulation or "_mod." not in name)
    }


def lightning_like(transformer: nn.Module, prefix: str, *, flat: bool = False) -> Tensors:
    tensors: Tensors = {}
    for name, linear in block_linears(transformer, modulation=False).items():
        module = prefix + (name.replace(".", "_") if flat else name)
        tensors[f"{module}.lora_down.weight"] = torch.empty(RANK, linear.in_features, device="meta")
        tensors[f"{module}.lora_up.weight"] = torch.empty(linear.out_features, RANK, device="meta")
        tensors[f"{module}.alpha"] = torch.tensor(ALPHA)
    return tensors


def angles_like(transformer: nn.Module, prefix: str) -> Tensors:
    tensors: Tensors = {}
    for name, linear in block_linears(transformer, modulation=True).items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.empty(16, linear.in_features, device="meta")
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.empty(linear.out_features, 16, device="meta")
    return tensors


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", "base_model.model.", "lora_unet_"])
def test_a_lightning_file_finds_its_720_modules(transformer: QwenImageTransformer2DModel, prefix: str) -> None:
    tensors = lightning_like(transformer, prefix, flat=prefix == "lora_unet_")
    adapter = audit(tensors, transformer, SETTINGS.model_copy(update={"expected_modules": 720}))
    assert len(adapter) == 720
    assert {factors.scale for factors in adapter.values()} == {ALPHA / RANK}
    assert describe(adapter, SETTINGS) == "LoRA under-test: 720 modules, rank 64, alpha/rank 0.125, fused at weight 1.0"


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model."])
def test_an_angles_file_finds_its_840_modules(transformer: QwenImageTransformer2DModel, prefix: str) -> None:
    adapter = audit(angles_like(transformer, prefix), transformer, SETTINGS)
    assert len(adapter) == 840
    assert {factors.scale for factors in adapter.values()} == {1.0}


def test_the_header_of_the_shipped_angles_file_gives_a_scale_of_one(transformer: QwenImageTransformer2DModel) -> None:
    """It has no alpha tensors: rank and alpha are in diffusers' metadata."""
    header = {"lora_adapter_metadata": '{"transformer.r": 16, "transformer.lora_alpha": 16}'}
    settings = SETTINGS.model_copy(update={"expected_modules": 840})
    adapter = audit(angles_like(transformer, "transformer."), transformer, settings, header)
    assert {(factors.rank, factors.scale) for factors in adapter.values()} == {(16, 1.0)}


@pytest.mark.parametrize("is_right", [True, False])
def test_a_file_with_another_digest_is_refused(tiny_settings: AppSettings, is_right: bool, tmp_path: Path) -> None:
    (lora, *_) = tiny_settings.editor.loras
    data = (locate(lora.source) / lora.file).read_bytes()
    path = tmp_path / lora.file
    path.write_bytes(data)
    digest = hashlib.sha256(data if is_right else data[:-1]).hexdigest()
    transformer = load_pipeline(tiny_settings.editor.model_copy(update={"loras": ()})).transformer
    settings = lora.model_copy(update={"sha256": digest})
    if is_right:
        assert audit_file(path, transformer, settings)
    else:
        with pytest.raises(LoraAuditError, match=f"editor.loras says {digest}"):
            audit_file(path, transformer, settings)


def one_module_more(tensors: Tensors) -> str:
    tensors["transformer_blocks.60.attn.to_q.lora_down.weight"] = torch.empty(RANK, 3072, device="meta")
    return "transformer_blocks.60.attn.to_q.lora_down.weight: no module"


def an_unknown_kind_of_tensor(tensors: Tensors) -> str:
    tensors["transformer_blocks.0.attn.to_q.dora_scale"] = torch.empty(3072, device="meta")
    return "transformer_blocks.0.attn.to_q.dora_scale: no module"


def one_factor_less(tensors: Tensors) -> str:
    del tensors["transformer_blocks.7.attn.to_k.lora_up.weight"]
    return "transformer_blocks.7.attn.to_k: only alpha and down, the other factor is missing"


def one_module_less(tensors: Tensors) -> str:
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        del tensors[f"transformer_blocks.37.img_mlp.net.2.{part}"]
    return "transformer_blocks.37.img_mlp.net.2: not in the file, though its twins"


def a_wrong_shape(tensors: Tensors) -> str:
    tensors["transformer_blocks.1.attn.to_v.lora_up.weight"] = torch.empty(3584, RANK, device="meta")
    return "transformer_blocks.1.attn.to_v: factors of shapes"


def the_same_module_twice(tensors: Tensors) -> str:
    tensors["transformer.transformer_blocks.0.attn.to_q.alpha"] = torch.tensor(ALPHA)
    return "transformer.transformer_blocks.0.attn.to_q.alpha: no module"


@pytest.mark.parametrize(
    "spoil",
    [
        one_module_more,
        an_unknown_kind_of_tensor,
        one_factor_less,
        one_module_less,
        a_wrong_shape,
        the_same_module_twice,
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_list(
    transformer: QwenImageTransformer2DModel, spoil: object
) -> None:
    tensors = lightning_like(transformer, "")
    expected = spoil(tensors)  # type: ignore[operator]
    with pytest.raises(LoraAuditError) as refusal:
        audit(tensors, transformer, SETTINGS)
    assert expected in str(refusal.value)


def test_another_number_of_modules_than_expected_is_refused(transformer: QwenImageTransformer2DModel) -> None:
    settings = SETTINGS.model_copy(update={"expected_modules": 840})
    with pytest.raises(LoraAuditError, match="720 modules are adapted, expected_modules says 840"):
        audit(lightning_like(transformer, ""), transformer, settings)


def test_alpha_beside_peft_keys_counts(transformer: QwenImageTransformer2DModel) -> None:
    """diffusers silently drops `.lora_B.alpha` and would run the adapter at eight times its strength."""
    tensors = angles_like(transformer, "transformer.")
    for name in block_linears(transformer, modulation=True):
        tensors[f"transformer.{name}.lora_B.alpha"] = torch.tensor(2.0)
    adapter = audit(tensors, transformer, SETTINGS)
    assert {factors.scale for factors in adapter.values()} == {2.0 / 16}


def test_alpha_in_the_header_counts(transformer: QwenImageTransformer2DModel) -> None:
    header = {"lora_adapter_metadata": '{"transformer.r": 16, "transformer.lora_alpha": 4}'}
    adapter = audit(angles_like(transformer, "transformer."), transformer, SETTINGS, header)
    assert {factors.scale for factors in adapter.values()} == {0.25}


def test_a_header_that_asks_for_more_than_lora_is_refused(transformer: QwenImageTransformer2DModel) -> None:
    header = {"lora_adapter_metadata": '{"transformer.r": 16, "transformer.use_rslora": true}'}
    with pytest.raises(LoraAuditError, match="use_rslora"):
        audit(angles_like(transformer, "transformer."), transformer, SETTINGS, header)


def test_a_file_that_is_no_safetensors_is_refused(transformer: QwenImageTransformer2DModel, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"not tensors")
    with pytest.raises(LoraAuditError, match="could not be read as safetensors"):
        audit_file(path, transformer, SETTINGS)


def test_fusing_adds_exactly_what_the_files_say(tiny_settings: AppSettings) -> None:
    settings = tiny_settings.editor
    plain = load_pipeline(settings.model_copy(update={"loras": ()})).transformer
    fused = load_pipeline(settings).transformer
    adapters = [
        (lora.weight, audit_file(locate(lora.source) / lora.file, plain, lora)) for lora in settings.fused_loras
    ]
    assert not hasattr(fused, "peft_config")
    for name, linear in block_linears(plain, modulation=True).items():
        expected = linear.weight + sum(weight * delta(adapter, name) for weight, adapter in adapters)
        torch.testing.assert_close(fused.get_submodule(name).weight, expected, atol=1e-5, rtol=1e-5)


def delta(adapter: Adapter, name: str) -> torch.Tensor:
    if name not in adapter:
        return torch.zeros(())
    factors = adapter[name]
    return factors.scale * (factors.up @ factors.down)


def test_a_stray_tensor_stops_the_start(tiny_settings: AppSettings, tmp_path: Path) -> None:
    lora = tiny_settings.editor.loras[0]
    tensors = load_file(locate(lora.source) / lora.file)
    tensors["transformer_blocks.99.attn.to_q.lora_up.weight"] = torch.zeros(1, 1)
    save_file(tensors, tmp_path / lora.file)
    spoiled = lora.model_copy(update={"source": WeightsSource(path=str(tmp_path))})
    settings: EditorSettings = tiny_settings.editor.model_copy(update={"loras": (spoiled,)})
    with pytest.raises(LoraAuditError, match=r"transformer_blocks\.99"):
        load_pipeline(settings)
