"""Scores of edits of held-out scenes: the nearest pose, and the peak signal-to-noise ratio of the pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from serve_app.edits.camera import CameraPose, camera_prompt
from serve_app.tiny.wishes import KINDS, random_wish
from serve_app.tiny.world import POSES, Picture, Scene, is_held_out, nearest_pose, psnr, random_scene, render, views
from serve_app.tools.training.data import INPUT_POSES
from serve_app.tools.training.flow import Model, draw, noise_like
from serve_app.tools.training.mmdit import Weights
from serve_app.tools.training.samples import Batch, Style, to_pictures, to_tokens


def held_out_scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """Random held-out scenes, which no training picture shows."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if is_held_out(scene):
            scenes.append(scene)
    return scenes


@lru_cache(maxsize=4096)
def _render(scene: Scene, pose: CameraPose) -> Picture:
    """Each stage and each sheet scores the same scenes. Read-only, as the picture is shared."""
    picture = render(scene, pose)
    picture.flags.writeable = False
    return picture


@lru_cache(maxsize=64)
def _views(scene: Scene) -> Picture:
    """The same for the scene from all poses."""
    pictures = views(scene)
    pictures.flags.writeable = False
    return pictures


@dataclass(frozen=True)
class Case:
    """One edit with the true result."""

    prompt: str
    pictures: tuple[Picture, ...]
    truth: Picture


@dataclass(frozen=True)
class CameraCases:
    """Camera edits of some scenes.

    Attributes:
        owners: the scene of each case.
        poses: the target pose of each case.
        views: for each scene, its pictures from all poses.
    """

    cases: list[Case]
    owners: list[int]
    poses: list[CameraPose]
    views: list[Picture]

    def add(self, scene: Scene, source: Picture, num_poses: int, rng: np.random.Generator, words: str = "") -> None:
        """Add cases that show the scene from random poses, without repetition."""
        every_view = _views(scene)
        for place in rng.choice(len(POSES), num_poses, replace=False):
            self.cases.append(Case(camera_prompt(POSES[place], words), (source,), every_view[place]))
            self.owners.append(len(self.views))
            self.poses.append(POSES[place])
        self.views.append(every_view)


def camera_cases(num_scenes: int, poses_each: int, seed: int = 31) -> CameraCases:
    """Cases from one input pose of each scene to some of the 96 poses, without repetition."""
    rng = np.random.default_rng(seed)
    cases = CameraCases([], [], [], [])
    for scene in held_out_scenes(num_scenes, rng):
        cases.add(scene, _render(scene, POSES[rng.choice(INPUT_POSES)]), poses_each, rng)
    return cases


def combined_cases(num_scenes: int, poses_each: int, seed: int = 34) -> CameraCases:
    """Cases with camera words and a wish in one prompt; `views` show the result of the wish."""
    rng = np.random.default_rng(seed)
    cases = CameraCases([], [], [], [])
    for scene in held_out_scenes(num_scenes, rng):
        wish = random_wish(scene, rng, kind=str(rng.choice(("recolour", "light", "ground"))))
        cases.add(wish.target, _render(scene, POSES[rng.choice(INPUT_POSES)]), poses_each, rng, wish.prompt)
    return cases


def misplaced(by_kind: Mapping[str, list[Case]], seed: int = 35) -> dict[str, list[Case]]:
    """The same wishes followed by camera words, which have no effect there."""
    rng = np.random.default_rng(seed)
    return {
        kind: [replace(case, prompt=f"{case.prompt} {POSES[rng.integers(len(POSES))].tokens}") for case in cases]
        for kind, cases in by_kind.items()
        if kind != "style"
    }


def wish_cases(count: int, held_out_words: bool, seed: int = 32) -> dict[str, list[Case]]:
    """`count` cases with a wish each, by kind."""
    rng = np.random.default_rng(seed)
    cases: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    scenes = held_out_scenes(count, rng)
    for scene in scenes:
        wish = random_wish(scene, rng, held_out_words)
        pose = POSES[rng.choice(INPUT_POSES)]
        pictures = [_render(scene, pose)]
        if wish.reference:
            pictures.append(_render(wish.reference, POSES[rng.choice(INPUT_POSES)]))
        cases[wish.kind].append(Case(wish.prompt, tuple(pictures), _render(wish.target, pose)))
    return cases


@dataclass(frozen=True)
class Judge:
    """Draws cases with the model and scores the pictures."""

    model: Model
    vae: AutoencoderKLQwenImage
    num_steps: int = 4
    seed: int = 33

    def draw(self, cases: list[Case], weights: Weights) -> Picture:
        """The model's pictures, uint8 (n, 64, 64, 3). All cases must have equally many input pictures."""
        tokens = [to_tokens(self.vae, np.stack(each)) for each in zip(*(case.pictures for case in cases), strict=True)]
        references = torch.cat(tokens, dim=1)
        targets = tokens[0]
        noise = noise_like(targets, np.random.default_rng(self.seed))
        drawn = []
        for start in range(0, len(cases), 128):
            part = slice(start, start + 128)
            batch = Batch([case.prompt for case in cases[part]], targets[part], references[part])
            drawn.append(draw(self.model, weights, batch, noise[part], self.num_steps))
        return to_pictures(self.vae, torch.cat(drawn))

    def camera(self, cases: CameraCases, weights: Weights) -> dict[str, float]:
        """Fractions of right azimuths, elevations, distances and poses, and the mean PSNR."""
        drawn = self.draw(cases.cases, weights)
        nearest = [nearest_pose(each, cases.views[owner]) for each, owner in zip(drawn, cases.owners, strict=True)]
        pairs = list(zip(nearest, cases.poses, strict=True))
        return {
            "azimuth": float(np.mean([near.azimuth == pose.azimuth for near, pose in pairs])),
            "elevation": float(np.mean([near.elevation == pose.elevation for near, pose in pairs])),
            "distance": float(np.mean([near.distance == pose.distance for near, pose in pairs])),
            "pose": float(np.mean([near == pose for near, pose in pairs])),
            "camera_db": _mean_psnr(drawn, cases.cases),
        }

    def wishes(self, by_kind: Mapping[str, list[Case]], weights: Weights) -> dict[str, float]:
        """The mean PSNR by kind and over all kinds."""
        scores: dict[str, float] = {}
        total = 0.0
        for kind, cases in by_kind.items():
            if cases:
                scores[f"{kind}_db"] = _mean_psnr(self.draw(cases, weights), cases)
                total += scores[f"{kind}_db"] * len(cases)
        return {**scores, "wishes_db": total / sum(map(len, by_kind.values()))}


def _mean_psnr(drawn: Picture, cases: list[Case]) -> float:
    return float(np.mean([psnr(own, case.truth) for own, case in zip(drawn, cases, strict=True)]))


def with_prompts(cases: CameraCases, prompts: list[str]) -> CameraCases:
    """The same cases with other prompts."""
    changed = [replace(case, prompt=prompt) for case, prompt in zip(cases.cases, prompts, strict=True)]
    return replace(cases, cases=changed)


def in_style(
    style: Style, camera: CameraCases, wishes: Mapping[str, list[Case]]
) -> tuple[CameraCases, dict[str, list[Case]]]:
    """The same cases with results in a style."""

    def styled(cases: list[Case]) -> list[Case]:
        return [replace(case, truth=style(case.truth)) for case in cases]

    views = [style(each) for each in camera.views]
    return replace(camera, cases=styled(camera.cases), views=views), {kind: styled(wishes[kind]) for kind in wishes}


def as_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without gradients."""
    return {name: each.detach() for name, each in weights.items()}


def contact_sheet(rows: list[list[Picture]]) -> Picture:
    """Pictures of one size in rows, with a white seam between them."""
    padded = [[np.pad(each, ((0, 2), (0, 2), (0, 0)), constant_values=255) for each in row] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in padded])
