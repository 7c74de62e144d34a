"""How well the model edits held-out scenes: nearest pose, and signal-to-noise ratio of the pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from serve_app.tools.training.samples import Batch, to_pictures, to_tokens


def held_out_scenes(count: int, rng: np.random.Generator) -> list[Scene]:
    """Scenes of which no training picture was made."""
    found: list[Scene] = []
    while len(found) < count:
        scene = random_scene(rng)
        if is_held_out(scene):
            found.append(scene)
    return found


@dataclass(frozen=True)
class Case:
    """One edit with its right answer."""

    prompt: str
    pictures: tuple[Picture, ...]
    truth: Picture


@dataclass(frozen=True)
class CameraCases:
    """Camera edits of some scenes; case k shows scene `owners[k]`, of which `views` are all views, from `poses[k]`."""

    cases: list[Case]
    owners: list[int]
    poses: list[CameraPose]
    views: list[Picture]

    def add(self, scene: Scene, given: Picture, num_poses: int, rng: np.random.Generator, words: str = "") -> None:
        """Add cases that show the scene from poses drawn without repetition."""
        seen = views(scene)
        for place in rng.choice(len(POSES), num_poses, replace=False):
            self.cases.append(Case(camera_prompt(POSES[place], words), (given,), seen[place]))
            self.owners.append(len(self.views))
            self.poses.append(POSES[place])
        self.views.append(seen)


def camera_cases(num_scenes: int, poses_each: int, seed: int = 31) -> CameraCases:
    """Each scene from one input pose to some of the 96, without repetition."""
    rng = np.random.default_rng(seed)
    found = CameraCases([], [], [], [])
    for scene in held_out_scenes(num_scenes, rng):
        found.add(scene, render(scene, POSES[rng.choice(INPUT_POSES)]), poses_each, rng)
    return found


def combined_cases(num_scenes: int, poses_each: int, seed: int = 34) -> CameraCases:
    """Camera and wish in one prompt; the views to tell the pose by are of what the wish makes of the scene."""
    rng = np.random.default_rng(seed)
    found = CameraCases([], [], [], [])
    for scene in held_out_scenes(num_scenes, rng):
        wish = random_wish(scene, rng, kind=str(rng.choice(("recolour", "light", "ground"))))
        found.add(wish.target, render(scene, POSES[rng.choice(INPUT_POSES)]), poses_each, rng, wish.prompt)
    return found


def misplaced(found: Mapping[str, list[Case]], seed: int = 35) -> dict[str, list[Case]]:
    """The same wishes with camera words behind them, where they mean nothing."""
    rng = np.random.default_rng(seed)
    return {
        kind: [replace(case, prompt=f"{case.prompt} {POSES[rng.integers(len(POSES))].tokens}") for case in cases]
        for kind, cases in found.items()
        if kind != "style"
    }


def wish_cases(count: int, held_out_words: bool, seed: int = 32) -> dict[str, list[Case]]:
    """About `count` wishes, by kind."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    scenes = held_out_scenes(count, rng)
    for scene in scenes:
        wish = random_wish(scene, rng, held_out_words)
        pose = POSES[rng.choice(INPUT_POSES)]
        pictures = [render(scene, pose)]
        if wish.reference:
            pictures.append(render(wish.reference, POSES[rng.choice(INPUT_POSES)]))
        found[wish.kind].append(Case(wish.prompt, tuple(pictures), render(wish.target, pose)))
    return found


@dataclass(frozen=True)
class Judge:
    """Draws and scores cases."""

    model: Model
    vae: AutoencoderKLQwenImage
    num_steps: int = 4
    seed: int = 33

    def draw(self, cases: list[Case], weights: Weights) -> Picture:
        """The model's answers, uint8 (n, 64, 64, 3). All cases have equally many pictures."""
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

    def camera(self, found: CameraCases, weights: Weights) -> dict[str, float]:
        """Shares of right azimuths, elevations, distances and poses, and mean PSNR."""
        drawn = self.draw(found.cases, weights)
        nearest = [nearest_pose(each, found.views[owner]) for each, owner in zip(drawn, found.owners, strict=True)]
        pairs = list(zip(nearest, found.poses, strict=True))
        return {
            "azimuth": float(np.mean([near.azimuth == pose.azimuth for near, pose in pairs])),
            "elevation": float(np.mean([near.elevation == pose.elevation for near, pose in pairs])),
            "distance": float(np.mean([near.distance == pose.distance for near, pose in pairs])),
            "pose": float(np.mean([near == pose for near, pose in pairs])),
            "camera_db": _mean_psnr(drawn, found.cases),
        }

    def wishes(self, found: Mapping[str, list[Case]], weights: Weights) -> dict[str, float]:
        """Mean PSNR by kind, and over all."""
        scores: dict[str, float] = {}
        total = 0.0
        for kind, cases in found.items():
            if cases:
                scores[f"{kind}_db"] = _mean_psnr(self.draw(cases, weights), cases)
                total += scores[f"{kind}_db"] * len(cases)
        return {**scores, "wishes_db": total / sum(map(len, found.values()))}


def _mean_psnr(drawn: Picture, cases: list[Case]) -> float:
    return float(np.mean([psnr(own, case.truth) for own, case in zip(drawn, cases, strict=True)]))


def ordinary(found: CameraCases, words: list[str]) -> CameraCases:
    """The same cases asked for in other words."""
    cases = [Case(each, case.pictures, case.truth) for each, case in zip(words, found.cases, strict=True)]
    return CameraCases(cases, found.owners, found.poses, found.views)


def as_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that no gradient follows."""
    return {name: each.detach() for name, each in weights.items()}


def contact_sheet(rows: list[list[Picture]]) -> Picture:
    """Pictures of one size in rows, with a white seam between them."""
    padded = [[np.pad(each, ((0, 2), (0, 2), (0, 0)), constant_values=255) for each in row] for row in rows]
    return np.concatenate([np.concatenate(row, axis=1) for row in padded])
