"""The report on trained weights: recipe, scores on held-out scenes, and sheets of drawn and true pictures."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from serve_app.tiny.cyanotype import cyanotype
from serve_app.tiny.world import POSES, Picture
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.samples import Style
from serve_app.tools.training.score import (
    CameraCases,
    Case,
    Judge,
    camera_cases,
    combined_cases,
    contact_sheet,
    in_style,
    misplaced,
    wish_cases,
)
from serve_app.tools.training.stages import Training

ABOUT_NAME = "about.json"
_SHEET_PLACES = (0, 5, 19, 28, 36, 43, 51, 57, 66, 75, 82, 92)


def report(training: Training, folder: Path, num_scenes: int = 40, poses_each: int = 24) -> None:
    """Write `about.json`, `camera.png`, `wishes.png` and `cyanotype.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "recipe": training.recipe.key,
        "data_seed": training.recipe.data.seed,
        "made_with": {library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
        "num_cases": {"camera": num_scenes * poses_each, "wishes": num_scenes * 12},
        "scores": {name: round(value, 4) for name, value in measure(training, num_scenes, poses_each).items()},
    }
    (folder / ABOUT_NAME).write_text(json.dumps(about, indent=2) + "\n")
    weights = training.drawing_weights
    Image.fromarray(camera_sheet(training.judge, weights)).save(folder / "camera.png")
    Image.fromarray(wish_sheet(training.judge, weights)).save(folder / "wishes.png")
    write_cyanotype_sheet(training, folder)


def report_cyanotype(training: Training, about: Path, folder: Path, num_scenes: int, poses_each: int = 24) -> None:
    """Write the report of other weights again, with the cyanotype adapter's scores and sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    report = json.loads(about.read_text())
    report["recipe"] = training.recipe.key
    wishes = wish_cases(num_scenes * 12, held_out_words=False)
    scores = measure_cyanotype(training, camera_cases(num_scenes, poses_each), wishes)
    report["scores"].update({name: round(value, 4) for name, value in scores.items()})
    (folder / ABOUT_NAME).write_text(json.dumps(report, indent=2) + "\n")
    write_cyanotype_sheet(training, folder)


def write_cyanotype_sheet(training: Training, folder: Path) -> None:
    sheet = camera_sheet(training.judge, training.cyanotype_weights, num_scenes=4, style=cyanotype)
    Image.fromarray(sheet).save(folder / "cyanotype.png")


def measure(training: Training, num_scenes: int, poses_each: int) -> dict[str, float]:
    """Scores with 4 steps and both adapters, unless their names state otherwise."""
    judge, both, angles = training.judge, training.drawing_weights, training.angles_weights
    alone = training.with_lightning(training.base_weights)
    camera, wishes = camera_cases(num_scenes, poses_each), wish_cases(num_scenes * 12, held_out_words=False)
    other_words, slow_judge = wish_cases(num_scenes * 12, held_out_words=True), replace(judge, num_steps=20)
    combined = combined_cases(num_scenes, max(1, poses_each // 4))
    return {
        **judge.camera(camera, both),
        **judge.wishes(wishes, both),
        **_named("held_out_words", judge.wishes(other_words, both)),
        **_named("combined", judge.camera(combined, both)),
        **_named("misplaced", judge.wishes(misplaced(wishes), both)),
        **_named("no_angles", {**judge.camera(camera, alone), **judge.wishes(wishes, alone)}),
        **_named("no_lightning", {**judge.camera(camera, angles), **judge.wishes(wishes, angles)}),
        **_named("no_lightning_20_steps", slow_judge.camera(camera, angles)),
        **measure_cyanotype(training, camera, wishes),
    }


def measure_cyanotype(
    training: Training, plain_camera: CameraCases, plain_wishes: Mapping[str, list[Case]]
) -> dict[str, float]:
    """Scores against the cases' results in the adapter's style, with all adapters and without it."""
    camera, wishes = in_style(cyanotype, plain_camera, plain_wishes)
    judge, with_it, without = training.judge, training.cyanotype_weights, training.drawing_weights
    return {
        **_named("cyanotype", {**judge.camera(camera, with_it), **judge.wishes(wishes, with_it)}),
        "no_cyanotype_camera_db": judge.camera(camera, without)["camera_db"],
        "no_cyanotype_wishes_db": judge.wishes(wishes, without)["wishes_db"],
    }


def camera_sheet(judge: Judge, weights: Weights, num_scenes: int = 8, style: Style | None = None) -> Picture:
    """For each scene a row of the input and drawn views, above a row of the true views in that style."""
    rows = []
    for number in range(num_scenes):
        every_pose = camera_cases(1, len(POSES), seed=41 + number)
        by_pose = dict(zip(every_pose.poses, every_pose.cases, strict=True))
        cases = [by_pose[POSES[place]] for place in _SHEET_PLACES]
        truths = [case.truth if style is None else style(case.truth) for case in cases]
        source = cases[0].pictures[0]
        rows.append([source, *judge.draw(cases, weights)])
        rows.append([np.full_like(source, 255), *truths])
    return contact_sheet(rows)


def wish_sheet(judge: Judge, weights: Weights, num_each: int = 6) -> Picture:
    """For each kind of wish a row of cases: picture 1, picture 2 or white, the drawn picture, the true one."""
    rows = []
    for cases in wish_cases(num_each * 12, held_out_words=False, seed=42).values():
        drawn = judge.draw(cases[:num_each], weights)
        rows.append([part for case, own in zip(cases, drawn, strict=False) for part in _strip(case, own)])
    longest = max(map(len, rows))
    white = np.full_like(rows[0][0], 255)
    return contact_sheet([[*row, *[white] * (longest - len(row))] for row in rows])


def _strip(case: Case, drawn: Picture) -> list[Picture]:
    second = case.pictures[1] if len(case.pictures) > 1 else np.full_like(drawn, 255)
    return [case.pictures[0], second, drawn, case.truth]


def _named(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}
