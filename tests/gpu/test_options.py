"""The CUDA options of the editor against diffusers' own pipeline in bfloat16, on the tiny weights."""

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from torch._dynamo.utils import counters

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.model.edit_model import EditModel
from serve_app.edits.request import Pixels
from serve_app.tools.bench.contenders import BenchEdit, begin, draw_packed, plain_edit, stock_pipeline, unlike_edits

EQUAL_DB = 45.0
FP8_DB = 30.0


@pytest.fixture(scope="module")
def settings(tiny_settings: AppSettings) -> EditorSettings:
    return tiny_settings.editor.model_copy(update={"device": "cuda", "dtype": "bfloat16"})


@pytest.fixture(scope="module")
def edit(tiny_settings: AppSettings) -> BenchEdit:
    return plain_edit(tiny_settings.sizes)


@pytest.fixture(scope="module")
def stock_picture(settings: EditorSettings, tiny_settings: AppSettings, edit: BenchEdit) -> Pixels:
    """diffusers' own picture, with prompt embeddings that have their M-RoPE positions."""
    pipeline = load_pipeline(settings)
    model = as_edit_model(pipeline, settings)
    (draft,) = begin(model, [edit])
    return draw_reference(pipeline, settings, tiny_settings, edit, draft.prompts[0].embeds)


def draw_reference(
    pipeline: QwenImageEditPlusPipeline,
    settings: EditorSettings,
    app: AppSettings,
    edit: BenchEdit,
    embeds: torch.Tensor,
) -> Pixels:
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings.scheduler.model_dump())
    with stock_pipeline(pipeline, settings, app.sizes):
        result = pipeline(
            list(edit.originals),
            prompt_embeds=embeds[None],
            prompt_embeds_mask=torch.ones(1, len(embeds), dtype=torch.long, device="cuda"),
            num_inference_steps=edit.request.sampling.num_inference_steps,
            true_cfg_scale=1.0,
            width=edit.request.size.made.width,
            height=edit.request.size.made.height,
            generator=torch.Generator().manual_seed(edit.request.sampling.seed),
        )
    return np.asarray(result.images[0])


def model_with(settings: EditorSettings, **options: object) -> EditModel:
    changed = settings.model_copy(update=options)
    return as_edit_model(load_pipeline(changed), changed)


def psnr_db(one: Pixels, other: Pixels) -> float:
    error = float(np.square(one.astype(float) - other.astype(float)).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


@pytest.mark.parametrize(
    "options",
    [{}, {"vae": "stock"}, {"attention": "varlen"}, {"compile": True}, {"adaln_tables": True}],
    ids=["packed", "stock VAE", "varlen", "compiled", "tables"],
)
def test_each_option_draws_the_reference_picture(
    options: dict[str, object], settings: EditorSettings, edit: BenchEdit, stock_picture: Pixels
) -> None:
    assert psnr_db(draw_packed(model_with(settings, **options), [edit])[0], stock_picture) >= EQUAL_DB


def test_fp8_is_near_the_reference(settings: EditorSettings, edit: BenchEdit, stock_picture: Pixels) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    pytest.importorskip("torchao", reason="fp8 needs the extra 'quantize'")
    assert psnr_db(draw_packed(model_with(settings, quantization="fp8"), [edit])[0], stock_picture) >= FP8_DB


def test_a_packed_edit_equals_the_same_edit_alone(settings: EditorSettings, tiny_settings: AppSettings) -> None:
    model = model_with(settings, attention="varlen")
    edits = unlike_edits(tiny_settings.sizes)
    together = draw_packed(model, edits)
    assert [db for db in alone_db(model, edits, together) if db < EQUAL_DB] == []


def alone_db(model: EditModel, edits: Sequence[BenchEdit], together: Sequence[Pixels]) -> list[float]:
    return [psnr_db(draw_packed(model, [edit])[0], packed) for edit, packed in zip(edits, together, strict=True)]


def test_no_pack_compiles_anything_after_the_first(settings: EditorSettings, tiny_settings: AppSettings) -> None:
    torch._dynamo.reset()
    model = model_with(settings, compile=True, attention="varlen")
    edits = unlike_edits(tiny_settings.sizes)
    draw_packed(model, edits[:1])
    counters.clear()
    for number in (1, 3, 8):
        draw_packed(model, edits[:number])
    assert counters["stats"].get("unique_graphs", 0) == 0


def test_tables_free_the_modulation_weights(settings: EditorSettings) -> None:
    def allocated(**options: object) -> int:
        gc.collect()  # models are in reference cycles
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        model = model_with(settings, **options)
        taken = torch.cuda.memory_allocated() - before
        del model
        return taken

    transformer = load_pipeline(settings).transformer
    modulation = sum(p.nbytes for name, p in transformer.named_parameters() if "_mod." in name)
    saved = allocated() - allocated(adaln_tables=True)
    assert 0 < saved <= modulation
