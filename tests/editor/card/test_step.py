"""Steps of the real model, two blocks deep, with the settings of every shipped file for CUDA.

Eager code runs, also where the file compiles it: compiled code does the same with fewer buffers. For fp8 and int4,
torchao's subclasses work on fake tensors: weights, scales, the activations' quantization and the matrix product.
Without torchao, those files' layers keep 16 bits.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.config import AppSettings
from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.editor.model.modulation import TableModulation
from serve_app.edits.sizes import Size
from serve_app.tools.check.memory import step_bytes
from serve_app.weights.architectures import EditArchitecture
from tests.editor.card.fake import HAS_TORCHAO, NUM_BLOCKS, FakeCard, FakeEdit, Work, draft, edit_model

SMALL, LARGE = Size(512, 512), Size(1024, 1024)
PACKS = {
    "one reference": [FakeEdit(LARGE, (LARGE,))],
    "three references": [FakeEdit(LARGE, (LARGE,) * 3)],
    "eight of 512 px": [FakeEdit(SMALL, (SMALL,), num_steps=4 + number % 3) for number in range(8)],
    "guidance": [FakeEdit(LARGE, (LARGE,), num_text=(300, 200))],
}


@pytest.fixture(scope="module")
def model(card: FakeCard, architecture: EditArchitecture, settings: AppSettings) -> EditModel:
    return edit_model(card, architecture, settings.editor)


def step(card: FakeCard, model: EditModel, drafts: list[Draft]) -> Work:
    """A step of a pack whose layout is cached, as after its first step."""
    with card.on():
        model._transformer._layouts.of(tuple(span.shape for draft in drafts for span in draft.spans))
    return card.watch(lambda: inspect.unwrap(EditModel.step)(model, drafts))


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS.keys())
def test_a_step_stays_on_the_card_and_within_its_memory(
    pack: list[FakeEdit],
    card: FakeCard,
    model: EditModel,
    architecture: EditArchitecture,
    settings: AppSettings,
) -> None:
    drafts = [draft(card, edit, settings.editor) for edit in pack]
    work = step(card, model, drafts)
    num_tokens = sum(edit.num_tokens for edit in pack)
    assert faults(work) == []
    assert work.events == [len(work.launches)]  # it waits once, for all that it has launched
    assert work.peak <= step_bytes(architecture.transformer, num_tokens, torch.bfloat16)
    for each in drafts:
        assert (each.latents.device.type, each.latents.dtype) == ("cuda", torch.bfloat16)


def test_every_weight_has_the_configured_dtype(model: EditModel, settings: AppSettings) -> None:
    assert wrong_dtypes(model, torch.bfloat16) == []


def test_fp8_quantizes_the_input_of_query_key_and_value_once(
    card: FakeCard, model: EditModel, settings: AppSettings
) -> None:
    if settings.editor.quantization != "fp8":
        return
    modules = model._transformer._model.named_modules()
    # Of the 14 linear layers of a block, two of modulation and the image MLP's last one keep 16 bits; of the other
    # eleven, six are two.
    assert sum(is_quantizable(module, name) for name, module in modules) == 7 * NUM_BLOCKS
    if HAS_TORCHAO:
        work = step(card, model, [draft(card, edit, settings.editor) for edit in PACKS["one reference"]])
        assert sum("scaled_mm" in name for name in work.launches) == 7 * NUM_BLOCKS


def test_matrix_products_apply_gelu_unless_they_are_quantized(
    card: FakeCard, model: EditModel, settings: AppSettings
) -> None:
    work = step(card, model, [draft(card, edit, settings.editor) for edit in PACKS["one reference"]])
    by_products, alone = (
        sum(name.startswith(f"aten.{op}.") for name in work.launches) for op in ("_addmm_activation", "gelu")
    )
    mlps = 2 * NUM_BLOCKS
    assert (by_products, alone) == ((mlps, 0) if settings.editor.quantization == "none" else (0, mlps))


def faults(work: Work) -> list[str]:
    """What a step must not do. It uploads its timesteps, or their rows in the tables: one small tensor."""
    found = {
        "on tensors of both devices": work.mixed,
        "downloads": work.downloads,
        "waits for the card": work.waits,
        "on the CPU": work.on_cpu,
        "uploads beyond the timesteps": work.uploads[1:],
    }
    return [f"{what}: {name}" for what, names in found.items() for name in names]


def wrong_dtypes(model: EditModel, dtype: torch.dtype) -> list[str]:
    """The names of weights, tables and constants of transformer and VAE that have another floating-point type, but for
    those that are quantized. An adapter's or loader's float32 leftover would slow down every step."""
    packed, vae = model._transformer, model.vae
    tensors: dict[str, torch.Tensor] = {
        f"transformer.{name}": each for name, each in packed._model.state_dict().items()
    }
    codec: Any = vae._codec
    weights = (codec if isinstance(codec, nn.Module) else codec._vae).state_dict()
    tensors |= {f"vae.{name}": each for name, each in weights.items()}
    tensors |= {"vae.mean": vae._mean, "vae.std": vae._std}
    if isinstance(packed.modulation, TableModulation):
        for index, table in enumerate(packed.modulation._tables):
            tensors |= {f"tables.{index}.image": table.image, f"tables.{index}.text": table.text}
    return [
        name
        for name, each in tensors.items()
        if each.is_floating_point() and each.dtype != dtype and not _is_quantized(each)
    ]


def _is_quantized(tensor: torch.Tensor) -> bool:
    return type(tensor).__module__.startswith("torchao.")
