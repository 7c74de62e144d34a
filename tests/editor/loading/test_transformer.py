"""Loading block by block: files that do not fit are refused, and nothing is read before its turn."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from serve_app.config import AppSettings, EditorSettings, WeightsSource
from serve_app.editor.loading import load
from serve_app.editor.loading.load import choose_modulation, load_model, load_pipeline
from serve_app.editor.loading.transformer import StreamedTransformer, stream_transformer
from serve_app.errors import CheckpointError
from serve_app.weights.locate import locate

FILE = "diffusion_pytorch_model.safetensors"
Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


@pytest.fixture
def editor(tiny_settings: AppSettings, tmp_path: Path) -> EditorSettings:
    """The tiny editor in a folder of its own."""
    folder = shutil.copytree(locate(tiny_settings.editor.base), tmp_path / "edit")
    return tiny_settings.editor.model_copy(update={"base": WeightsSource(path=str(folder))})


def transformer_folder(editor: EditorSettings) -> Path:
    return Path(editor.base.path) / "transformer"


def split(folder: Path) -> None:
    """Store the weights in two files with an index, as the real ones are."""
    tensors = load_file(folder / FILE)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in shards.items() for name in own}
    (folder / f"{FILE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / FILE).unlink()


def test_several_files_hold_the_same_model_as_one(editor: EditorSettings) -> None:
    whole = load_pipeline(editor).transformer.state_dict()
    split(transformer_folder(editor))
    parts = load_pipeline(editor).transformer.state_dict()
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def one_tensor_less(tensors: Tensors) -> str:
    del tensors["transformer_blocks.3.attn.to_q.bias"]
    return "transformer_blocks.3.attn.to_q.bias is missing"


def one_block_more(tensors: Tensors) -> str:
    tensors["transformer_blocks.4.attn.to_q.bias"] = torch.zeros(128)
    return "transformer_blocks.4.attn.to_q.bias is not part of the model"


def another_shape(tensors: Tensors) -> str:
    tensors["proj_out.bias"] = torch.zeros(1)
    return r"proj_out.bias has the shape \[1\], the model \[64\]"


@pytest.mark.parametrize("spoil", [one_tensor_less, one_block_more, another_shape])
def test_weights_that_do_not_fit_the_configuration_are_refused(
    spoil: Callable[[Tensors], str], editor: EditorSettings
) -> None:
    file = transformer_folder(editor) / FILE
    tensors = load_file(file)
    problem = spoil(tensors)
    file.unlink()  # The tensors are views of it.
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=problem):
        load_pipeline(editor)


def test_a_truncated_file_is_refused(editor: EditorSettings) -> None:
    file = transformer_folder(editor) / FILE
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="is not a Qwen-Image-Edit pipeline folder"):
        load_pipeline(editor)


def test_another_kind_of_transformer_is_refused(editor: EditorSettings) -> None:
    config = transformer_folder(editor) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(CheckpointError, match="holds a FluxTransformer2DModel as its transformer"):
        load_pipeline(editor)


def test_a_block_is_read_when_it_is_asked_for(editor: EditorSettings) -> None:
    streamed = stream_transformer(transformer_folder(editor), editor.fused_loras, CPU, torch.float32)
    model, blocks = streamed.model, streamed.blocks
    outer = {name for name in model.state_dict() if not name.startswith("transformer_blocks.")}
    assert {name for name, each in model.state_dict().items() if not each.is_meta} == outer
    for number, block in enumerate(blocks):
        assert block is model.transformer_blocks[number]
        read = [not any(each.is_meta for each in other.parameters()) for other in model.transformer_blocks]
        assert read == [place <= number for place in range(4)]


def test_the_next_block_is_read_ahead(editor: EditorSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gets the order to read the bytes of the next block's tensors."""
    split(transformer_folder(editor))
    ordered: list[bytes] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, _: ordered.append(os.pread(file, size, start)))
    streamed = stream_transformer(transformer_folder(editor), (), CPU, torch.float32)
    next(streamed.blocks)
    ahead = list(ordered)
    assert len(list(streamed.blocks)) == 3
    tensors = streamed.model.transformer_blocks[1].state_dict().values()
    assert ahead == [tensor.numpy().tobytes() for tensor in tensors]
    assert len(ordered) == 3 * len(ahead)


def test_loaded_weights_are_not_those_of_the_file(editor: EditorSettings) -> None:
    """A file that is replaced in place would change the model, or crash it, if the weights were mapped from it."""
    pipeline = load_pipeline(editor.model_copy(update={"loras": ()}))
    mapped = Path("/proc/self/maps").read_text().splitlines()
    files = [line.split()[0].split("-") for line in mapped if str(transformer_folder(editor)) in line]
    spans = [(int(start, 16), int(end, 16)) for start, end in files]
    places = {name: each.data_ptr() for name, each in pipeline.transformer.named_parameters()}
    assert [name for name, at in places.items() if any(start <= at < end for start, end in spans)] == []


def test_each_block_is_quantized_before_the_next_one_is_read(
    editor: EditorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def announced(*args: object) -> StreamedTransformer:
        streamed = stream_transformer(*args)  # type: ignore[arg-type]
        blocks = (events.append("read") or block for block in streamed.blocks)  # type: ignore[func-returns-value]
        return replace(streamed, blocks=blocks)

    def quantize_block(block: nn.Module) -> int:
        assert not any(each.is_meta for each in block.parameters())
        events.append("quantized")
        return 1

    monkeypatch.setattr(load, "stream_transformer", announced)
    monkeypatch.setattr(load, "choose_quantizer", lambda kind, device: quantize_block)
    load_model(editor)
    assert events == ["read", "quantized"] * 4


@pytest.fixture
def tabled(editor: EditorSettings) -> EditorSettings:
    return editor.model_copy(update={"adaln_tables": True})


def test_tables_made_while_loading_are_those_of_the_whole_model(tabled: EditorSettings) -> None:
    """Rows of further timesteps, too, for which the weights are read and fused again."""
    streamed = stream_transformer(transformer_folder(tabled), tabled.fused_loras, CPU, torch.float32)
    own = choose_modulation(streamed.model, tabled, streamed.blocks, streamed.modulation)
    whole = choose_modulation(load_pipeline(tabled).transformer, tabled)
    timesteps = [1000.0, 500.0, 123.0]
    for index in range(4):
        found, expected = (modulation.rows(timesteps).of_block(index) for modulation in (own, whole))
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.text, expected.text)
    assert all(block.img_mod is None for block in streamed.model.transformer_blocks)


@pytest.mark.parametrize("change", [os.remove, lambda path: os.truncate(path, 100)], ids=["removed", "truncated"])
def test_weights_that_changed_are_not_read_again(tabled: EditorSettings, change: Callable[[Path], None]) -> None:
    streamed = stream_transformer(transformer_folder(tabled), tabled.fused_loras, CPU, torch.float32)
    own = choose_modulation(streamed.model, tabled, streamed.blocks, streamed.modulation)
    known = own.rows([1000.0]).of_block(0).image
    change(transformer_folder(tabled) / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="changed after the model was loaded from it"):
        own.prepare([123.0])
    assert torch.equal(own.rows([1000.0]).of_block(0).image, known)
