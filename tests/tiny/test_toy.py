"""The shipped weights of the toy world: their recipe, their size, and the effect of both adapters."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
from safetensors import safe_open

from serve_app.config import TINY_FILE
from serve_app.editor.loading.load import load_pipeline
from serve_app.tiny.checkpoint import TOY_FOLDER
from serve_app.tiny.cyanotype import cyanotype
from serve_app.tiny.world import Picture, nearest_pose, psnr
from serve_app.tools.training.flow import Model
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.recipe import Recipe
from serve_app.tools.training.report import ABOUT_NAME
from serve_app.tools.training.score import CameraCases, Judge, as_weights, camera_cases
from serve_app.tools.training.text import Prompts
from tests.conftest import settings_in

NUM_SCENES, POSES_EACH = 4, 16
CHANCE = 1 / 8


@cache
def cases() -> CameraCases:
    return camera_cases(NUM_SCENES, POSES_EACH, seed=51)


@cache
def judged(*adapters: str) -> tuple[Judge, Weights]:
    """The base model with these adapters, loaded and fused by the service's code."""
    editor = settings_in(TINY_FILE).editor
    loras = tuple(lora.model_copy(update={"apply": "fused"}) for lora in editor.loras if lora.name in adapters)
    pipeline = load_pipeline(editor.model_copy(update={"loras": loras}))
    model = Model(pipeline.transformer, Prompts(pipeline.text_encoder, pipeline.tokenizer))
    return Judge(model, pipeline.vae), as_weights(model.weights)


def drawn_with(num_steps: int, *adapters: str) -> Picture:
    judge, weights = judged(*adapters)
    return replace(judge, num_steps=num_steps).draw(cases().cases, weights)


def each_psnr(num_steps: int, *adapters: str) -> np.ndarray:
    """PSNR of each camera edit, in dB."""
    drawn = drawn_with(num_steps, *adapters)
    return np.array([psnr(own, case.truth) for own, case in zip(drawn, cases().cases, strict=True)])


def share_of_azimuths(*adapters: str) -> float:
    judge, weights = judged(*adapters)
    return judge.camera(cases(), weights)["azimuth"]


def in_standard_errors(differences: np.ndarray) -> float:
    """The mean difference, in units of its standard error."""
    return float(differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences))))


def test_they_are_trained_with_this_recipe() -> None:
    about = json.loads((TOY_FOLDER / ABOUT_NAME).read_text())
    assert about["recipe"] == Recipe().key
    assert about["data_seed"] == Recipe().data.seed


def test_they_are_half_precision_and_at_most_20_mb() -> None:
    files = [file for file in TOY_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    for path in TOY_FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys() if not name.endswith(".alpha")}  # noqa: SIM118
        assert kinds == {"F16"}, path


def test_the_angles_adapter_sets_the_pose() -> None:
    """Without it azimuths are no better than chance."""
    with_it, without = share_of_azimuths("angles", "lightning"), share_of_azimuths("lightning")
    print(f"azimuths: {with_it:.2f} with the angles adapter, {without:.2f} without")
    spread = math.sqrt(CHANCE * (1 - CHANCE) / len(cases().cases))
    assert without < CHANCE + 3 * spread
    assert with_it > 0.9


def test_lightning_makes_four_steps_enough() -> None:
    """On the same edits: significantly better with it than without, and at most 0.5 dB worse than 20 steps without."""
    with_it, without = each_psnr(4, "angles", "lightning"), each_psnr(4, "angles")
    in_20_steps = each_psnr(20, "angles").mean()
    better = in_standard_errors(with_it - without)
    print(f"4 steps: {with_it.mean():.2f} dB with Lightning, {without.mean():.2f} without ({better:.0f} SE)")
    print(f"20 steps without: {in_20_steps:.2f} dB")
    assert better > 3
    assert with_it.mean() > in_20_steps - 0.5


def test_the_cyanotype_adapter_sets_the_style_and_leaves_the_pose() -> None:
    drawn = drawn_with(4, "angles", "lightning", "cyanotype")
    in_style, plain = (
        np.array([psnr(own, style(case.truth)) for own, case in zip(drawn, cases().cases, strict=True)])
        for style in (cyanotype, lambda picture: picture)
    )
    views = [cyanotype(each) for each in cases().views]
    poses = [nearest_pose(own, views[owner]) for own, owner in zip(drawn, cases().owners, strict=True)]
    right = np.mean([own == pose for own, pose in zip(poses, cases().poses, strict=True)])
    print(f"{in_style.mean():.2f} dB in the style, {plain.mean():.2f} without it; poses: {right:.2f}")
    assert in_style.mean() > 22
    assert in_style.mean() > plain.mean() + 6
    assert right > 0.9
