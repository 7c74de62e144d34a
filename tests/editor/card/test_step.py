"""Steps of the real model, two blocks deep, with the settings of every shipped file for CUDA.

Eager code runs, also where the file compiles it: compiled code does the same with fewer buffers. For fp8 and int4,
torchao's subclasses work on fake tensors: weights, scales, the activations' quantization and the matrix product.
Without torchao, those files' layers keep 16 bits.
"""

import inspect

import pytest
import torch

from serve_app.config import AppSettings
from serve_app.editor.loading.quantize import is_quantizable
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.edits.sizes import Size
from serve_app.weights.architectures import EditArchitecture
from tests.editor.card.fake import HAS_TORCHAO, NUM_BLOCKS, FakeCard, FakeEdit, Work, draft, edit_model, wrong_dtypes

SMALL, LARGE = Size(512, 512), Size(1024, 1024)
PACKS = {
    "one reference": [FakeEdit(LARGE, (LARGE,))],
    "three references": [FakeEdit(LARGE, (LARGE,) * 3)],
    "eight of 512 px": [FakeEdit(SMALL, (SMALL,), num_steps=4 + number % 3) for number in range(8)],
    "guidance": [FakeEdit(LARGE, (LARGE,), num_text=(300, 200))],
}
WIDTH_BYTES = 3072 * 2
# Per token: the streams before and after attention (2), its output (1), the image MLP's input (1), and its hidden layer
# before and after the activation (8).
WIDTHS_AT_PEAK = 12


@pytest.fixture(scope="module")
def model(card: FakeCard, architecture: EditArchitecture, settings: AppSettings) -> EditModel:
    return edit_model(card, architecture, settings.editor)


def step(card: FakeCard, model: EditModel, drafts: list[Draft]) -> Work:
    return card.watch(lambda: inspect.unwrap(EditModel.step)(model, drafts))


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS.keys())
def test_a_step_stays_on_the_card_and_within_its_memory(
    pack: list[FakeEdit], card: FakeCard, model: EditModel, settings: AppSettings, planned: float
) -> None:
    drafts = [draft(card, edit, settings.editor) for edit in pack]
    work = step(card, model, drafts)
    num_tokens = sum(edit.num_tokens for edit in pack)
    assert faults(work) == []
    assert work.events == [len(work.launches)]  # it waits once, for all that it has launched
    assert work.peak <= WIDTHS_AT_PEAK * WIDTH_BYTES * num_tokens <= planned * num_tokens
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
