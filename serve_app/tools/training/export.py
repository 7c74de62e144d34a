"""Writes the trained weights in float16: a pipeline folder and three LoRA files, in the real weights' formats."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline
from safetensors.torch import save_file
from torch import Tensor

from serve_app.tiny.edit_model import STOCK_SCHEDULER, new_processor
from serve_app.tools.training.recipe import AdapterRecipe
from serve_app.tools.training.rewriter import new_rewriter, new_rewriter_tokenizer, save_rewriter
from serve_app.tools.training.stages import Training


def export(training: Training, folder: Path) -> None:
    """Write `edit/`, `angles/angles.safetensors`, `lightning/lightning.safetensors`, `cyanotype/cyanotype.safetensors`
    and `rewriter/` into the folder."""
    model = training.model
    model.transformer.load_state_dict(training.base_weights)
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**STOCK_SCHEDULER),
        vae=training.trained_vae,
        text_encoder=model.prompts.encoder,
        tokenizer=model.prompts.tokenizer,
        processor=new_processor(model.prompts.tokenizer, max_picture_tokens=1),
        transformer=model.transformer,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder / "edit", safe_serialization=True)
    angles = peft_file(training.result("angles"), training.recipe.angles)
    _save(angles, folder / "angles" / "angles.safetensors")
    lightning = kohya_file(training.result("lightning"), training.recipe.lightning.adapter)
    _save(lightning, folder / "lightning" / "lightning.safetensors")
    export_cyanotype(training, folder)
    tokenizer = new_rewriter_tokenizer()
    rewriter = new_rewriter(tokenizer, training.recipe.rewriter)
    rewriter.load_state_dict(training.result("rewriter"), strict=False)  # strict=False: the vision tower is not trained
    save_rewriter(rewriter, tokenizer, folder / "rewriter")


def export_cyanotype(training: Training, folder: Path) -> None:
    """Write `cyanotype/cyanotype.safetensors` into the folder."""
    cyanotype = peft_file(training.result("cyanotype"), training.recipe.cyanotype.adapter)
    _save(cyanotype, folder / "cyanotype" / "cyanotype.safetensors")


def peft_file(factors: Mapping[str, Tensor], recipe: AdapterRecipe) -> dict[str, Tensor]:
    """The LoRA with PEFT's keys under `transformer.`. This format stores no alpha: it must equal the rank.

    Raises:
        ValueError: the recipe's alpha is not its rank.
    """
    if recipe.alpha != recipe.rank:
        raise ValueError(f"alpha {recipe.alpha} is not the rank {recipe.rank}, and this format stores no alpha.")
    roles = {"down": "lora_A", "up": "lora_B"}
    return {
        f"transformer.{module}.{roles[role]}.weight": factor.half()
        for (module, role), factor in _by_module(factors).items()
    }


def kohya_file(factors: Mapping[str, Tensor], recipe: AdapterRecipe) -> dict[str, Tensor]:
    """The LoRA with kohya's keys and alpha."""
    tensors = {f"{module}.lora_{role}.weight": factor.half() for (module, role), factor in _by_module(factors).items()}
    alphas = {f"{module}.alpha": torch.tensor(recipe.alpha) for module, _ in _by_module(factors)}
    return {**tensors, **alphas}


def _by_module(factors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The factors by module and role (`down` or `up`)."""
    named = ((name.rpartition("."), factor) for name, factor in factors.items())
    return {(module, role): factor for (module, _, role), factor in named}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)
