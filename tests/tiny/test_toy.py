"""The shipped weights of the toy world: whose they are, what they weigh, and that both adapters matter."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
from safetensors import safe_open

from serve_app.config import TINY_FILE
from serve_app.editor.loading.load import load_pipeline
from serve_app.tiny.world import psnr
from serve_app.tools.training.flow import Model
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.recipe import Recipe
from serve_app.tools.training.report import ABOUT_NAME
from serve_app.tools.training.score import CameraCases, Judge, as_weights, camera_cases
from serve_app.tools.training.text import Prompts
from serve_app.weights.locate import TOY_FOLDER
from tests.conftest import settings_in

NUM_SCENES, POSES_EACH = 4, 16
CHANCE = 1 / 8


@cache
def cases() -> CameraCases:
    return camera_cases(NUM_SCENES, POSES_EACH, seed=51)


@cache
def judged(*adapters: str) -> tuple[Judge, Weights]:
    """The base with these adapters, loaded and fused as the service does it."""
    editor = settings_in(TINY_FILE).editor
    loras = tuple(lora for lora in editor.loras if lora.name in adapters)
    pipeline = load_pipeline(editor.model_copy(update={"loras": loras}))
    model = Model(pipeline.transformer, Prompts(pipeline.text_encoder, pipeline.tokenizer))
    return Judge(model, pipeline.vae), as_weights(model.weights)


def each_psnr(num_steps: int, *adapters: str) -> np.ndarray:
    """dB of each camera edit."""
    judge, weights = judged(*adapters)
    drawn = replace(judge, num_steps=num_steps).draw(cases().cases, weights)
    return np.array([psnr(own, case.truth) for own, case in zip(drawn, cases().cases, strict=True)])


def share_of_azimuths(*adapters: str) -> float:
    judge, weights = judged(*adapters)
    return judge.camera(cases(), weights)["azimuth"]


def in_standard_errors(differences: np.ndarray) -> float:
    """A mean difference in its own standard errors."""
    return float(differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences))))


def test_they_came_of_this_recipe() -> None:
    about = json.loads((TOY_FOLDER / ABOUT_NAME).read_text())
    assert about["recipe"] == Recipe().key
    assert about["data_seed"] == Recipe().data.seed


def test_they_are_half_precision_and_weigh_at_most_20_mb() -> None:
    files = [file for file in TOY_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    for path in TOY_FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys() if not name.endswith(".alpha")}  # noqa: SIM118
        assert kinds == {"F16"}, path


def test_poses_are_the_angles_adapters_doing() -> None:
    """Without it azimuths are as good as guessed."""
    with_it, without = share_of_azimuths("angles", "lightning"), share_of_azimuths("lightning")
    print(f"azimuths: {with_it:.2f} with the angles adapter, {without:.2f} without")
    spread = math.sqrt(CHANCE * (1 - CHANCE) / len(cases().cases))
    assert without < CHANCE + 3 * spread
    assert with_it > 0.9


def test_four_steps_are_lightnings_doing() -> None:
    """In dB of the same edits: better with it than without by far more than chance, and no worse than 20 steps without,
    whose noise the toy world's truth knows nothing of."""
    with_it, without = each_psnr(4, "angles", "lightning"), each_psnr(4, "angles")
    in_20_steps = each_psnr(20, "angles").mean()
    better = in_standard_errors(with_it - without)
    print(f"4 steps: {with_it.mean():.2f} dB with Lightning, {without.mean():.2f} without ({better:.0f} SE)")
    print(f"20 steps without: {in_20_steps:.2f} dB")
    assert better > 3
    assert with_it.mean() > in_20_steps - 0.5
