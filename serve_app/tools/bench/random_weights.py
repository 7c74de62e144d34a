"""The configured architecture at full size with random weights: as fast as the trained one, without a download."""

from copy import deepcopy
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from diffusers.models.modeling_utils import ModelMixin
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from serve_app.config import RANDOM_PREFIX, EditorSettings, WeightsSource
from serve_app.errors import CheckpointError
from serve_app.tiny.edit_model import special_token_ids
from serve_app.weights.architectures import find_edit_model
from serve_app.weights.locate import locate

M = TypeVar("M", bound=ModelMixin)


def random_pipeline(settings: EditorSettings) -> QwenImageEditPlusPipeline:
    """A pipeline of the configured architecture, made directly on the configured device. Adapters are left out: fused
    ones take no time.

    Raises:
        CheckpointError: the architecture of `settings.base` is unknown.
    """
    architecture = find_edit_model(settings.base)
    if architecture is None:
        raise CheckpointError(f"{settings.base.path} is not an architecture that can be built without its files.")
    processor = _processor(settings.base)
    dtype = getattr(torch, settings.dtype)
    text_config = deepcopy(architecture.text_encoder.config)
    for name, token_id in special_token_ids(processor.tokenizer).items():
        setattr(text_config, name, token_id)
    torch.manual_seed(0)
    with torch.device(settings.device):
        return QwenImageEditPlusPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**settings.scheduler.model_dump()),
            vae=_remake(architecture.vae, dtype),
            text_encoder=type(architecture.text_encoder)._from_config(text_config, dtype=dtype),
            tokenizer=processor.tokenizer,
            processor=processor,
            transformer=_remake(architecture.transformer, dtype),
        )


def _remake(model: M, dtype: torch.dtype) -> M:
    """A model of the same configuration with new weights, created in `dtype`: float32 might not fit."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        made: M = type(model).from_config(model.config)
    finally:
        torch.set_default_dtype(default)
    return made


def _processor(source: WeightsSource) -> Qwen2VLProcessor:
    """The source's processor if its files are local; else one with the tiny tokenizer and the default sizes."""
    folder = Path(source.path).expanduser()
    if source.is_embedded or folder.is_dir():
        return Qwen2VLProcessor.from_pretrained(locate(source) / "processor")
    tokenizer = Qwen2Tokenizer.from_pretrained(locate(WeightsSource(path=f"{RANDOM_PREFIX}edit")) / "tokenizer")
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )
