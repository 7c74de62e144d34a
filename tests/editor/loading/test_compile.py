"""Compiled blocks: the same pictures, and one compilation for packs of every composition."""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from serve_app.config import AppSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline, warm_up_side_px
from serve_app.editor.model.edit_model import Draft, EditModel
from serve_app.edits.images import prepare
from serve_app.edits.request import EditRequest, Pixels, Sampling
from serve_app.edits.sizes import OutputSize, Size
from tests.pictures import difference, photograph

NUM_GRAPHS = 2  # before and after attention, whatever the block and the pack


def begin(model: EditModel, settings: AppSettings, number: int) -> Draft:
    """Edits that differ in size, references, prompt length, steps and guidance."""
    size = Size(64 + 32 * number, 96)
    names = ("astronaut", "coffee", "chelsea")[: 1 + number % 3]
    sampling = Sampling(seed=number, num_inference_steps=2 + number % 2, true_cfg_scale=2.0 if number == 2 else 1.0)
    job = EditRequest(request_id="id", prompt="a wish " * (1 + number), sampling=sampling, size=OutputSize(size, size))
    return model.begin([model.prepare(job, tuple(prepare(photograph(name), settings.sizes) for name in names))])[0]


def draw(model: EditModel, settings: AppSettings, numbers: list[int]) -> list[Pixels]:
    return model.draw([begin(model, settings, number) for number in numbers])


@pytest.mark.timeout(600)
def test_compiled_blocks_serve_every_pack_without_another_compilation(
    model: EditModel, tiny_settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch._dynamo.reset()
    counters.clear()
    settings = tiny_settings.editor.model_copy(update={"compile": True})
    compiled = as_edit_model(load_pipeline(settings), settings)
    packs = [[0], [1, 3], [2], [0, 1, 2, 3]]
    for pack in packs:
        pairs = zip(draw(compiled, tiny_settings, pack), draw(model, tiny_settings, pack), strict=True)
        assert [levels for levels in (difference(*pair) for pair in pairs) if levels > 1] == []
    assert counters["stats"]["unique_graphs"] == NUM_GRAPHS


def test_the_warm_up_fills_a_step_on_a_gpu(tiny_settings: AppSettings) -> None:
    settings = tiny_settings.editor.model_copy(update={"max_pack_tokens": 9216})
    assert warm_up_side_px(settings) == 64
    side = Size(*[warm_up_side_px(settings.model_copy(update={"device": "cuda"}))] * 2)
    assert 0.85 * 9216 <= 2 * side.num_tokens <= 9216
