"""The models of weights sources, on the meta device and so without weights, to count their parameters.

A source is recognised by its configuration on disk, or by its repository's name, which is also the usual name of a
folder that holds it. The models of known repositories are made once in a process: whoever gets one must not change it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from serve_app.config import WeightsSource
from serve_app.weights.locate import locate


@dataclass(frozen=True)
class EditArchitecture:
    """The parts of an edit model, on the meta device."""

    transformer: QwenImageTransformer2DModel
    vae: AutoencoderKLQwenImage
    text_encoder: Qwen2_5_VLForConditionalGeneration


def find_edit_model(source: WeightsSource) -> EditArchitecture | None:
    """The edit model that `source` holds; None if unknown."""
    return _find(source, "model_index.json", _read_edit_model, _EDIT_MODELS)


def find_rewriter(source: WeightsSource) -> Qwen3VLForConditionalGeneration | None:
    """The rewriter that `source` holds; None if unknown."""
    return _find(source, "config.json", _read_rewriter, _REWRITERS)


def _find(
    source: WeightsSource, index: str, read: Callable[[Path], Any], known: Mapping[str, Callable[[], Any]]
) -> Any | None:
    folder = locate(source) if source.is_embedded else Path(source.path).expanduser()
    with torch.device("meta"):
        if (folder / index).is_file():
            try:
                return read(folder)
            except (OSError, ValueError):
                return None  # Loading raises an error that says what is wrong with the folder.
        make = known.get(folder.name)
        return None if make is None else make()


def _read_edit_model(folder: Path) -> EditArchitecture:
    transformer = QwenImageTransformer2DModel.load_config(folder, subfolder="transformer")
    vae = AutoencoderKLQwenImage.load_config(folder, subfolder="vae")
    return EditArchitecture(
        QwenImageTransformer2DModel.from_config(transformer),
        AutoencoderKLQwenImage.from_config(vae),
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder / "text_encoder")),
    )


def _read_rewriter(folder: Path) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder))


@cache
def _edit_model(*, zero_cond_t: bool) -> EditArchitecture:
    """Qwen/Qwen-Image-Edit-2511 by its public config.json files; transformer and VAE have the classes' defaults. The
    other models of its pipeline's class have the same sizes."""
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "out_hidden_size": 3584,
        },
    )
    return EditArchitecture(
        QwenImageTransformer2DModel(zero_cond_t=zero_cond_t),
        AutoencoderKLQwenImage(),
        Qwen2_5_VLForConditionalGeneration(config),
    )


@dataclass(frozen=True)
class _Rewriter:
    """A Qwen3-VL-Instruct, by the public config.json of its repository."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    deepstack: tuple[int, int, int]
    tied: bool

    @cache  # noqa: B019  # as long as the process: the few instances live in a table
    def __call__(self) -> Qwen3VLForConditionalGeneration:
        text = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": self.intermediate,
            "vocab_size": 151936,
        }
        vision = {
            "depth": self.vision_depth,
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_intermediate,
            "deepstack_visual_indexes": list(self.deepstack),
            "out_hidden_size": self.hidden,
        }
        config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=self.tied)
        return Qwen3VLForConditionalGeneration(config)


_EDIT_MODELS: dict[str, Callable[[], EditArchitecture]] = {
    "Qwen-Image-Edit-2511": partial(_edit_model, zero_cond_t=True),
    "Qwen-Image-Edit-2509": partial(_edit_model, zero_cond_t=False),
    "FireRed-Image-Edit-1.1": partial(_edit_model, zero_cond_t=False),
}
_REWRITERS: dict[str, Callable[[], Qwen3VLForConditionalGeneration]] = {
    "Qwen3-VL-2B-Instruct": _Rewriter(2048, 28, 16, 6144, 24, 1024, 4096, (5, 11, 17), tied=True),
    "Qwen3-VL-4B-Instruct": _Rewriter(2560, 36, 32, 9728, 24, 1024, 4096, (5, 11, 17), tied=True),
    "Qwen3-VL-8B-Instruct": _Rewriter(4096, 36, 32, 12288, 27, 1152, 4304, (8, 16, 24), tied=False),
}
