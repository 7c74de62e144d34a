"""Loading the real model, counted: what exists at once on the host and on the card.

The card is the meta device, whose tensors have sizes and no content. All else is as in the service: the same code reads
files with the real headers, which have holes instead of weights.
"""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.config import AppSettings, EditorSettings, LoraSettings, WeightsSource
from serve_app.editor.loading import fuse, load, transformer
from serve_app.editor.loading.quantize import is_quantizable
from serve_app.tools.check.host import PROCESS_BYTES, host_rows
from serve_app.tools.check.memory import transformer_bytes, weight_bytes
from serve_app.weights.architectures import EditArchitecture
from tests.editor.loading.sparse import save_real_loras, save_real_model

GB = 1e9
BLOCK_BYTES = 2 * 36 * 3072**2
aten = torch.ops.aten
# They give a tensor to memory that is there already.
_NO_ALLOCATION = (aten.set_.source_Storage, aten.lift_fresh.default, aten.detach.default)


# torch leaves its dispatch modes untyped.
class LivingStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages by device, without those that are pages of a mapped file.

    Attributes:
        peaks: by device type.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = {"cpu": 0, "meta": 0}
        self.peaks = dict(self.live)
        self.making_skeletons = False
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._files: list[range] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            # From the card to the host. Memory that nobody writes to is not taken.
            out: object = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        else:
            out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, is_new=not func.is_view and func not in _NO_ALLOCATION)
        return out

    def _count(self, tensor: torch.Tensor, is_new: bool) -> None:
        storage, device = tensor.untyped_storage(), tensor.device.type
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or (not is_new and (device == "meta" or self._is_mapped(storage.data_ptr()))):
            return
        if device == "meta" and self._is_skeleton():
            return

        def drop(_: object) -> None:
            self.live[device] -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, drop)
        self.live[device] += size
        self.peaks[device] = max(self.peaks[device], self.live[device])

    def _is_skeleton(self) -> bool:
        """Whether the tensor belongs to a module that has no weights yet; it would not be on a card."""
        return self.making_skeletons or torch.get_default_device().type == "meta"

    def _is_mapped(self, address: int) -> bool:
        if not any(address in file for file in self._files):
            lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
            spans = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
            self._files = [range(int(start, 16), int(end, 16)) for start, end in spans]
        return any(address in file for file in self._files)


@dataclass(frozen=True)
class RealModel:
    architecture: EditArchitecture
    source: WeightsSource
    loras: tuple[LoraSettings, ...]

    def settings(self, **editor: object) -> EditorSettings:
        """Of an editor in 16 bits on the meta device."""
        settings = EditorSettings.model_validate({"base": self.source, "loras": self.loras, **editor})
        return settings.model_copy(update={"device": "meta"})


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> RealModel:
    folder = tmp_path_factory.mktemp("real")
    architecture = save_real_model(folder / "edit")
    loras = save_real_loras(folder / "loras", architecture.transformer)
    return RealModel(architecture, WeightsSource(path=str(folder / "edit")), loras)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # A dispatch mode sees one thread only.
    monkeypatch.setattr(fuse, "_TILE_NUMBERS", 2**26)  # The largest weight at once: fewer operations, more memory.
    # Reading a hole ahead fills the page cache with zeros, 40 GB of them.
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)
    # It compares numbers, of which there are none; its own tensors are a few rows.
    monkeypatch.setattr(transformer, "check_fused", lambda *_: None)
    # As torchao does, without its scales.
    monkeypatch.setattr(load, "choose_quantizer", lambda kind, device: _to_fp8 if kind == "fp8" else lambda block: 0)


def _to_fp8(block: nn.Module) -> int:
    layers = [each for name, each in block.named_modules() if is_quantizable(each, f"transformer_blocks.{name}")]
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return len(layers)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[LivingStorages]:
    storages = LivingStorages()
    make: Callable[[Path], QwenImageTransformer2DModel] = transformer.empty_model

    def make_uncounted(folder: Path) -> QwenImageTransformer2DModel:
        storages.making_skeletons = True
        try:
            return make(folder)
        finally:
            storages.making_skeletons = False

    monkeypatch.setattr(transformer, "empty_model", make_uncounted)
    with storages:
        yield storages


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "options",
    [{}, {"adaln_tables": True, "quantization": "fp8", "text_encoder_device": "cpu"}],
    ids=["16 bits", "tables, fp8, text encoder on the CPU"],
)
def test_the_peaks_of_loading_are_those_of_the_plan(
    options: dict[str, object], real: RealModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = real.settings(**options)
    with counted(monkeypatch) as storages:
        pipeline, streamed = load._open_pipeline(settings)
        model = load.as_edit_model(pipeline, settings, streamed=streamed)
        kept = dict(storages.live)
    del model

    # On the card: what stays, and a block. Tables and the VAE's copies are small beside it.
    weights = transformer_bytes(real.architecture.transformer, settings)
    encoder = weight_bytes(real.architecture.text_encoder, torch.bfloat16)
    stays = weights + (encoder if settings.text_encoder_device == "same" else 0)
    assert stays < kept["meta"] < stays + 1.5 * GB
    assert storages.peaks["meta"] < kept["meta"] + BLOCK_BYTES

    # On the host: as planned. A text encoder that runs there is read where it is mapped.
    planned = {row.name: row.num_bytes or 0 for row in host_rows(AppSettings(editor=settings))}
    assert planned.pop("process (estimated)") == PROCESS_BYTES
    assert planned.pop("text encoder weights", encoder) == encoder
    while_loading = planned.pop("while loading")
    assert kept["cpu"] < 0.05 * GB
    assert storages.peaks["cpu"] < kept["cpu"] + while_loading
