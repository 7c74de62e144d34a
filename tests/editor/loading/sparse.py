"""The real model's files without their content: right headers, then a hole of the right size, which takes no disk."""

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from serve_app.config import LoraSettings, WeightsSource
from serve_app.weights.architectures import EditArchitecture, find_edit_model
from serve_app.weights.locate import locate

NUM_TRANSFORMER_SHARDS, NUM_TEXT_ENCODER_SHARDS = 5, 4
_TRANSFORMER = "transformer_blocks."
Shapes = Mapping[str, tuple[int, ...]]


def save_real_model(folder: Path) -> EditArchitecture:
    """Qwen-Image-Edit-2511 as a pipeline folder, in bfloat16. Tokenizer and processor are the tiny ones."""
    model = find_edit_model(WeightsSource(path="Qwen/Qwen-Image-Edit-2511"))
    assert model is not None
    tiny = locate(WeightsSource(path="tiny:edit"))
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.transformer.save_config(folder / "transformer")
    model.vae.save_config(folder / "vae")
    model.text_encoder.config.save_pretrained(folder / "text_encoder")
    _save_shards(folder / "transformer", "diffusion_pytorch_model", shapes(model.transformer), NUM_TRANSFORMER_SHARDS)
    _save_shards(folder / "text_encoder", "model", _old_names(model.text_encoder), NUM_TEXT_ENCODER_SHARDS)
    _save(folder / "vae" / "diffusion_pytorch_model.safetensors", shapes(model.vae))
    return model


def save_real_loras(folder: Path, transformer: nn.Module) -> tuple[LoraSettings, ...]:
    """The shipped adapters by the keys, shapes and metadata of their files. Lightning's alphas are zero here."""
    folder.mkdir()
    lightning: dict[str, tuple[int, ...]] = {}
    angles: dict[str, tuple[int, ...]] = {}
    for name, module in transformer.named_modules():
        if not isinstance(module, nn.Linear) or not name.startswith(_TRANSFORMER):
            continue
        angles[f"transformer.{name}.lora_A.weight"] = (16, module.in_features)
        angles[f"transformer.{name}.lora_B.weight"] = (module.out_features, 16)
        if "_mod." not in name:
            lightning[f"{name}.lora_down.weight"] = (64, module.in_features)
            lightning[f"{name}.lora_up.weight"] = (module.out_features, 64)
            lightning[f"{name}.alpha"] = ()
    # Alphas are read. Side by side they share two pages, where each of them would have the system read ahead.
    _save(folder / "lightning.safetensors", dict(sorted(lightning.items(), key=lambda each: len(each[1]))))
    config = {"transformer.r": 16, "transformer.lora_alpha": 16}
    _save(folder / "angles.safetensors", angles, {"lora_adapter_metadata": json.dumps(config)})
    source = WeightsSource(path=str(folder))
    return (
        LoraSettings(name="lightning", source=source, file="lightning.safetensors", expected_modules=720),
        LoraSettings(name="angles", source=source, file="angles.safetensors", weight=0.9, expected_modules=840),
    )


def shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _old_names(text_encoder: nn.Module) -> Shapes:
    """As in the real files, which are older than transformers' present layout."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): shape
        for name, shape in shapes(text_encoder).items()
    }


def _save_shards(folder: Path, stem: str, tensors: Shapes, number: int) -> None:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(number):
        file = f"{stem}-{shard + 1:05}-of-{number:05}.safetensors"
        own = names[shard * len(names) // number : (shard + 1) * len(names) // number]
        _save(folder / file, {name: tensors[name] for name in own})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _save(path: Path, tensors: Shapes, metadata: Mapping[str, str] | None = None) -> None:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
