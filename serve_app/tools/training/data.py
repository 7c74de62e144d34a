"""Renders the training pictures in shards: scenes from many poses, and the results of wishes.

A family is one scene with a few wishes. Its pictures show the scene from some input poses and from some of all 96
poses, and the result of each wish at one of the input poses, for some wishes at another pose too. A shard holds whole
families and depends only on the recipe's seed and its own number.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.tiny.wishes import Wish, random_wish
from serve_app.tiny.world import POSES, Picture, Scene, is_held_out, random_scene, render
from serve_app.tools.training.recipe import DataRecipe

INPUT_POSES = tuple(
    index for index, pose in enumerate(POSES) if pose.elevation in (30, 60) and pose.distance in (1.0, 1.8)
)
"""Indices in POSES that an input picture may have: from these, the whole scene is visible."""

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """One scene and its pictures. All poses are indices in POSES.

    Attributes:
        inputs: the input poses, all different.
        others: further poses, among all 96.
        wishes: the result of wish k is shown at `inputs[k % len(inputs)]`.
        reference_places: the pose of picture 2, for wishes that have one.
        combined: for the first wishes, another pose at which the result is shown.
    """

    scene: Scene
    inputs: Places
    others: Places
    wishes: tuple[Wish, ...]
    reference_places: Places
    combined: Places

    def shown(self) -> Iterator[tuple[Scene, int]]:
        """Scene and pose of every picture, in the order of the rows."""
        for place in (*self.inputs, *self.others):
            yield self.scene, int(place)
        for number, wish in enumerate(self.wishes):
            yield wish.target, int(self.inputs[number % len(self.inputs)])
            # A row for picture 2 even where there is none, so that all families have the same rows.
            yield wish.reference or self.scene, int(self.reference_places[number])
        for wish, place in zip(self.wishes, self.combined, strict=False):
            yield wish.target, int(place)


def families(recipe: DataRecipe, shard: int) -> list[Family]:
    """The families of one shard; none of their scenes is held out."""
    rng = np.random.default_rng((recipe.seed, shard))
    kept: list[Family] = []
    while len(kept) < recipe.families_per_shard:
        scene = random_scene(rng)
        if not is_held_out(scene):
            kept.append(_family(scene, recipe, rng))
    return kept


def _family(scene: Scene, recipe: DataRecipe, rng: np.random.Generator) -> Family:
    return Family(
        scene=scene,
        inputs=rng.choice(INPUT_POSES, recipe.num_inputs, replace=False),
        others=rng.choice(len(POSES), recipe.num_others, replace=False),
        wishes=tuple(random_wish(scene, rng) for _ in range(recipe.num_wishes)),
        reference_places=rng.choice(INPUT_POSES, recipe.num_wishes),
        combined=rng.choice(len(POSES), recipe.num_combined, replace=False),
    )


def shard_pictures(recipe: DataRecipe, shard: int, folder: Path) -> Picture:
    """The shard's pictures, uint8 (families, rows, 64, 64, 3), rendered once and cached in the folder."""
    path = folder / f"pictures-{world_hash()}" / f"{shard:03d}-{recipe.key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = [list(family.shown()) for family in families(recipe, shard)]
        pictures = np.stack([np.stack([render(scene, POSES[place]) for scene, place in rows]) for rows in shown])
        partial = path.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            np.save(file, pictures)
        partial.rename(path)
    loaded: Picture = np.load(path)
    return loaded


@cache
def world_hash() -> str:
    """A hash of sample pictures and prompts: changes of the toy world make cached pictures stale."""
    rng, digest = np.random.default_rng(0), hashlib.sha256()
    for number in range(96):
        scene = random_scene(rng)
        wish = random_wish(scene, rng)
        digest.update(f"{scene} {wish}".encode())
        digest.update(render(scene, POSES[number], antialiasing=1).tobytes())
        digest.update(render(wish.target, POSES[number], antialiasing=1).tobytes())
    return digest.hexdigest()[:12]
