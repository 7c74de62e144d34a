"""What there is to say of finished weights: recipe, scores on held-out scenes, and sheets of pictures to look at."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from serve_app.tiny.world import POSES, Picture
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.score import (
    Case,
    Judge,
    camera_cases,
    combined_cases,
    contact_sheet,
    misplaced,
    wish_cases,
)
from serve_app.tools.training.workshop import Workshop

ABOUT_NAME = "about.json"
_SHEET_PLACES = (0, 5, 19, 28, 36, 43, 51, 57, 66, 75, 82, 92)


def report(workshop: Workshop, folder: Path, num_scenes: int = 40, poses_each: int = 24) -> None:
    """Write `about.json`, `camera.png` and `wishes.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "recipe": workshop.recipe.key,
        "data_seed": workshop.recipe.data.seed,
        "made_with": {library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
        "num_cases": {"camera": num_scenes * poses_each, "wishes": num_scenes * 12},
        "scores": {name: round(value, 4) for name, value in measure(workshop, num_scenes, poses_each).items()},
    }
    (folder / ABOUT_NAME).write_text(json.dumps(about, indent=2) + "\n")
    weights = workshop.drawing_weights
    Image.fromarray(camera_sheet(workshop.judge, weights)).save(folder / "camera.png")
    Image.fromarray(wish_sheet(workshop.judge, weights)).save(folder / "wishes.png")


def measure(workshop: Workshop, num_scenes: int, poses_each: int) -> dict[str, float]:
    """Scores of 4 steps with both adapters, unless their names say otherwise."""
    judge, both, angles = workshop.judge, workshop.drawing_weights, workshop.angles_weights
    alone = workshop.with_lightning(workshop.base_weights)
    camera, wishes = camera_cases(num_scenes, poses_each), wish_cases(num_scenes * 12, held_out_words=False)
    other_words, patient = wish_cases(num_scenes * 12, held_out_words=True), replace(judge, num_steps=20)
    combined = combined_cases(num_scenes, max(1, poses_each // 4))
    return {
        **judge.camera(camera, both),
        **judge.wishes(wishes, both),
        **_named("held_out_words", judge.wishes(other_words, both)),
        **_named("combined", judge.camera(combined, both)),
        **_named("misplaced", judge.wishes(misplaced(wishes), both)),
        **_named("no_angles", {**judge.camera(camera, alone), **judge.wishes(wishes, alone)}),
        **_named("no_lightning", {**judge.camera(camera, angles), **judge.wishes(wishes, angles)}),
        **_named("no_lightning_20_steps", patient.camera(camera, angles)),
    }


def camera_sheet(judge: Judge, weights: Weights, num_scenes: int = 8) -> Picture:
    """For each scene the input, then drawn views above true ones."""
    rows = []
    for number in range(num_scenes):
        found = camera_cases(1, len(POSES), seed=41 + number)
        by_pose = dict(zip(found.poses, found.cases, strict=True))
        cases = [by_pose[POSES[place]] for place in _SHEET_PLACES]
        given = cases[0].pictures[0]
        rows.append([given, *judge.draw(cases, weights)])
        rows.append([np.full_like(given, 255), *(case.truth for case in cases)])
    return contact_sheet(rows)


def wish_sheet(judge: Judge, weights: Weights, num_each: int = 6) -> Picture:
    """For each kind of wish some rows of picture 1, picture 2 or white, drawn, true."""
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
