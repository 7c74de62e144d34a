"""Faults planted in the code, which the other tests here must find. A recompilation per pack is in test_graphs.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.model import edit_model as edit_model_module
from serve_app.editor.model import packed
from serve_app.editor.model.edit_model import EditModel
from serve_app.editor.model.layout import Layout, Layouts, SpanShape
from serve_app.editor.model.modulation import LiveModulation, StepRows
from serve_app.edits.sizes import Size
from serve_app.tools.check.memory import step_bytes
from serve_app.weights.architectures import EditArchitecture
from tests.editor.card.conftest import FILES, cuda_settings
from tests.editor.card.fake import FakeCard, FakeEdit, Work, draft, edit_model
from tests.editor.card.test_step import faults, step, wrong_dtypes

SETTINGS = cuda_settings(FILES[0]).editor
SIDE = Size(1024, 1024)
EDIT = FakeEdit(SIDE, (SIDE,))

Build = Callable[[], EditModel]


@pytest.fixture
def card() -> FakeCard:
    return FakeCard()


@pytest.fixture
def build(card: FakeCard, architecture: EditArchitecture) -> Build:
    return lambda: edit_model(card, architecture, SETTINGS)


def step_of_two(card: FakeCard, model: EditModel) -> Work:
    return step(card, model, [draft(card, EDIT, SETTINGS), draft(card, EDIT, SETTINGS)])


def test_an_index_of_the_layout_on_the_cpu(card: FakeCard, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Layouts._make

    def with_an_index_on_the_cpu(self: Layouts, shapes: tuple[SpanShape, ...]) -> Layout:
        made = make(self, shapes)
        return replace(made, targets=torch.arange(len(made.targets)))

    monkeypatch.setattr(Layouts, "_make", with_an_index_on_the_cpu)
    assert any("both devices" in fault for fault in faults(step_of_two(card, build())))


def test_a_number_read_back_in_the_step(card: FakeCard, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = edit_model_module._guide

    def with_item(predictions: list[torch.Tensor], guidance: float) -> torch.Tensor:
        return guide(predictions, guidance * float(predictions[0].isfinite().all().item()))

    monkeypatch.setattr(edit_model_module, "_guide", with_item)
    assert any("waits for the card" in fault for fault in faults(step_of_two(card, build())))


def test_a_second_upload_in_the_step(card: FakeCard, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = LiveModulation.rows

    def with_an_upload(self: LiveModulation, timesteps: Sequence[float]) -> StepRows:
        torch.tensor(timesteps, device=self._model.device)
        return rows(self, timesteps)

    monkeypatch.setattr(LiveModulation, "rows", with_an_upload)
    assert any("uploads beyond" in fault for fault in faults(step_of_two(card, build())))


def test_a_result_computed_on_the_cpu(card: FakeCard, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    norm_out = packed._norm_out
    monkeypatch.setattr(packed, "_norm_out", lambda *args: norm_out(*args).cpu().to("cuda"))
    assert any("downloads" in fault for fault in faults(step_of_two(card, build())))


def test_a_weight_left_in_float32(tiny_settings: AppSettings) -> None:
    """On the CPU, by the real loading code. The fault is that of a loader that keeps some modules in float32."""
    settings = tiny_settings.editor.model_copy(update={"dtype": "bfloat16"})
    pipeline = load_pipeline(settings)
    assert wrong_dtypes(as_edit_model(pipeline, settings), torch.bfloat16) == []
    pipeline.transformer.norm_out.linear.float()
    wrong = wrong_dtypes(as_edit_model(pipeline, settings), torch.bfloat16)
    assert wrong == ["transformer.norm_out.linear.weight", "transformer.norm_out.linear.bias"]


def test_an_activation_of_twice_its_size(
    card: FakeCard, build: Build, architecture: EditArchitecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    limit = step_bytes(architecture.transformer, 2 * EDIT.num_tokens, torch.bfloat16)
    assert step_of_two(card, model).peak <= limit
    for block in model._transformer._model.transformer_blocks:
        last = block.img_mlp.net[2]
        monkeypatch.setattr(last, "forward", lambda x, last=last.forward: last(x.float().to(x.dtype)))
    assert step_of_two(card, model).peak > limit
