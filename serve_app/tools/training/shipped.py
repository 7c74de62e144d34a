"""Training of an adapter on weights that are trained and exported already, instead of on earlier stages' files.

The export has the numbers that a stage reads from those files, so the adapter is the same either way, bit for bit.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from serve_app.tools.training.recipe import Recipe
from serve_app.tools.training.stages import Training

_ROLES = {".lora_A.weight": ".down", ".lora_B.weight": ".up", ".lora_down.weight": ".down", ".lora_up.weight": ".up"}


class TrainingOnExport(Training):
    """As `Training`, but what the stages before `cyanotype` have trained comes from an export.

    Args:
        exported: the folder of these weights.
    """

    def __init__(self, folder: Path, recipe: Recipe, exported: Path, *, fast: bool = True) -> None:
        super().__init__(folder, recipe, fast=fast)
        self._exported = exported

    @property
    def vae_path(self) -> Path:
        return self._exported / "edit" / "vae"

    def result(self, stage: str) -> dict[str, Tensor]:
        if stage == "refine":
            stored = load_file(self._exported / "edit" / "transformer" / "diffusion_pytorch_model.safetensors")
        elif stage in ("angles", "lightning"):
            stored = factors_in(self._exported / stage / f"{stage}.safetensors")
        else:
            return super().result(stage)
        return {name: each.to(self.device).float() for name, each in stored.items()}


def factors_in(path: Path) -> dict[str, Tensor]:
    """The factors in a LoRA file of either format, by the training's names."""
    return {
        name.removeprefix("transformer.").removesuffix(suffix) + role: tensor
        for name, tensor in load_file(path).items()
        for suffix, role in _ROLES.items()
        if name.endswith(suffix)
    }
