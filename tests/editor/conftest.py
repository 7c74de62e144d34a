"""The tiny model twice: as the engine runs it, and in diffusers' own pipeline."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus

from serve_app.config import AppSettings, EditorSettings
from serve_app.editor.loading.load import as_edit_model, load_pipeline
from serve_app.editor.model.edit_model import EditModel
from serve_app.weights.locate import locate


@pytest.fixture(scope="session")
def model(tiny_settings: AppSettings) -> EditModel:
    """The model under test, loaded by the package. Without caches, so that no test reuses what another one encoded."""
    settings = tiny_settings.editor.model_copy(update={"latents_cache_bytes": 0, "prompts_cache_bytes": 0})
    return as_edit_model(load_pipeline(settings), settings)


@pytest.fixture(scope="session")
def stock_pipeline(tiny_settings: AppSettings) -> QwenImageEditPlusPipeline:
    """diffusers' pipeline with the same adapters, loaded and fused by diffusers alone, and the same scheduler."""
    settings = tiny_settings.editor
    pipeline = QwenImageEditPlusPipeline.from_pretrained(locate(settings.base))
    fuse_by_diffusers(pipeline, settings)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings.scheduler.model_dump())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fuse_by_diffusers(pipeline: QwenImageEditPlusPipeline, settings: EditorSettings) -> None:
    for lora in settings.fused_loras:
        pipeline.load_lora_weights(locate(lora.source), weight_name=lora.file, adapter_name=lora.name)
    pipeline.set_adapters([lora.name for lora in settings.fused_loras], [lora.weight for lora in settings.fused_loras])
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()


@pytest.fixture(scope="session")
def small_settings(tiny_settings: AppSettings) -> AppSettings:
    """With references of 128 x 128 pixels: the same operations on a quarter of the tokens."""
    sizes = tiny_settings.sizes.model_copy(update={"vae_area_px": 128 * 128})
    return tiny_settings.model_copy(update={"sizes": sizes})


@pytest.fixture
def small_areas(small_settings: AppSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make diffusers' pipeline, whose areas are constants, use those of the small settings."""
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", small_settings.sizes.vae_area_px)
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "CONDITION_IMAGE_SIZE", small_settings.sizes.condition_area_px)
