"""Training batches: prompts, target tokens and reference tokens of random samples, by kind."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.edits.camera import CameraPose, camera_prompt
from serve_app.tiny.world import POSES, Picture
from serve_app.tools.training.data import Family, families, shard_pictures, world_hash
from serve_app.tools.training.phrases import KEEPING, view_words
from serve_app.tools.training.recipe import DataRecipe, Mix
from serve_app.tools.training.still import decode, encode
from serve_app.tools.training.vae import as_pictures, as_tensor

GROUPS = (("style",), ("view_wish", "camera_wish", "wish_camera"), ("wish", "view", "camera", "keep"))
"""Kinds that may share a batch: they have equal numbers of pictures and prompts of similar length."""


@dataclass(frozen=True)
class Batch:
    """Prompts and tokens: targets (n, 16, 64), references (n, 16 * pictures, 64), with about unit variance.

    Attributes:
        places: the indices of the targets among all families' pictures, (n,); empty if they are not among these.
    """

    prompts: list[str]
    targets: Tensor
    references: Tensor
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def num_pictures(self) -> int:
        return self.references.shape[1] // self.targets.shape[1]


@dataclass(frozen=True)
class _Sample:
    """A prompt with the rows of its target and inputs among a family's pictures."""

    family: int
    prompt: str
    target: int
    inputs: tuple[int, ...]


class Samples:
    """Draws random batches from encoded pictures.

    Args:
        tokens: the tokens of all families' pictures, (families, rows, 16, 64).
        targets: those that the model shall draw, of the same shape, if they are others.
    """

    def __init__(self, recipe: DataRecipe, tokens: Tensor, targets: Tensor | None = None) -> None:
        self._recipe, self._tokens, self._targets = recipe, tokens, tokens if targets is None else targets
        self._families = [family for shard in range(recipe.num_shards) for family in families(recipe, shard)]
        wishes = [(place, k) for place, family in enumerate(self._families) for k in range(len(family.wishes))]
        self._styles = [(place, k) for place, k in wishes if self._families[place].wishes[k].reference]
        self._plain = [(place, k) for place, k in wishes if not self._families[place].wishes[k].reference]
        self._combined = [(place, k) for place, k in self._plain if k < recipe.num_combined]
        self._kinds: dict[str, Callable[[np.random.Generator], _Sample]] = {
            "wish": self._wish,
            "style": self._style,
            "view": lambda rng: self._view(rng, view_words),
            "camera": lambda rng: self._view(rng, lambda pose, _: pose.tokens),
            "view_wish": lambda rng: self._moved_wish(rng, lambda pose, wish: f"{view_words(pose, rng)} , {wish}"),
            "camera_wish": lambda rng: self._moved_wish(rng, camera_prompt),
            "wish_camera": self._wish_then_camera,
            "keep": self._keep,
        }

    @property
    def tokens(self) -> Tensor:
        """The tokens of all families' pictures, float16 (n, 16, 64)."""
        return self._tokens.flatten(0, 1)

    def draw(self, mix: Mix, size: int, rng: np.random.Generator) -> Batch:
        """Draw a batch of kinds with the frequencies of `mix`."""
        names, shares = [name for name, _ in mix], np.array([share for _, share in mix])
        first = rng.choice(names, p=shares / shares.sum())
        (group,) = (group for group in GROUPS if first in group)
        shares = np.where([name in group for name in names], shares, 0)
        kinds = rng.choice(names, size, p=shares / shares.sum())
        return self._batch([self._kinds[kind](rng) for kind in kinds])

    def _batch(self, samples: list[_Sample]) -> Batch:
        owners = torch.tensor([sample.family for sample in samples])
        targets = torch.tensor([sample.target for sample in samples])
        inputs = torch.tensor([sample.inputs for sample in samples])
        return Batch(
            prompts=[sample.prompt for sample in samples],
            targets=self._targets[owners, targets].float(),
            references=self._tokens[owners[:, None], inputs].flatten(1, 2).float(),
            places=owners * self._tokens.shape[1] + targets,
        )

    def _pick(self, places: list[tuple[int, int]], rng: np.random.Generator) -> tuple[int, int]:
        return places[int(rng.integers(len(places)))]

    def _wish(self, rng: np.random.Generator) -> _Sample:
        place, k = self._pick(self._plain, rng)
        prompt = self._families[place].wishes[k].prompt
        return _Sample(place, prompt, self._wish_row(k), (k % self._recipe.num_inputs,))

    def _style(self, rng: np.random.Generator) -> _Sample:
        place, k = self._pick(self._styles, rng)
        prompt, row = self._families[place].wishes[k].prompt, self._wish_row(k)
        return _Sample(place, prompt, row, (k % self._recipe.num_inputs, row + 1))

    def _view(self, rng: np.random.Generator, words: Callable[[CameraPose, np.random.Generator], str]) -> _Sample:
        place = int(rng.integers(len(self._families)))
        family = self._families[place]
        rows = self._recipe.num_inputs + self._recipe.num_others
        # Input poses are a third of all: views from the others are harder and are drawn more often.
        first = self._recipe.num_inputs if rng.random() < 0.8 else 0
        target = int(rng.integers(first, rows))
        pose = POSES[int((*family.inputs, *family.others)[target])]
        return _Sample(place, words(pose, rng), target, (self._input(family, rng),))

    def _moved_wish(self, rng: np.random.Generator, words: Callable[[CameraPose, str], str]) -> _Sample:
        place, k = self._pick(self._combined, rng)
        family = self._families[place]
        row = self._wish_row(len(family.wishes)) + k
        prompt = words(POSES[int(family.combined[k])], family.wishes[k].prompt)
        return _Sample(place, prompt, row, (self._input(family, rng),))

    def _wish_then_camera(self, rng: np.random.Generator) -> _Sample:
        """Camera words at the wrong place in the prompt: they must have no effect."""
        place, k = self._pick(self._plain, rng)
        prompt = f"{self._families[place].wishes[k].prompt} {POSES[int(rng.integers(len(POSES)))].tokens}"
        return _Sample(place, prompt, self._wish_row(k), (k % self._recipe.num_inputs,))

    def _keep(self, rng: np.random.Generator) -> _Sample:
        place = int(rng.integers(len(self._families)))
        row = self._input(self._families[place], rng)
        return _Sample(place, str(rng.choice(KEEPING)), row, (row,))

    def _input(self, family: Family, rng: np.random.Generator) -> int:
        """A random row that shows the scene itself from an input pose."""
        rows = [*range(self._recipe.num_inputs)]
        rows += [self._wish_row(k) + 1 for k, wish in enumerate(family.wishes) if wish.reference is None]
        return int(rows[int(rng.integers(len(rows)))])

    def _wish_row(self, k: int) -> int:
        """The row of wish k's target; picture 2 follows it."""
        return self._recipe.num_inputs + self._recipe.num_others + 2 * k


Style = Callable[[Picture], Picture]
"""Pictures (..., H, W, 3) in a style of their own."""


def encoded(vae: AutoencoderKLQwenImage, recipe: DataRecipe, folder: Path, style: Style | None = None) -> Tensor:
    """All families' tokens, float16 (families, rows, 16, 64), cached by encoder, toy world and style."""
    key = hashlib.sha256(vae.quant_conv.weight.detach().cpu().numpy().tobytes() + world_hash().encode())
    name = "latents" if style is None else style.__name__
    path = folder / f"{name}-{recipe.key}-{recipe.num_shards}-{key.hexdigest()[:8]}.safetensors"
    if not path.exists():
        tokens = []
        for shard in range(recipe.num_shards):
            pictures = shard_pictures(recipe, shard, folder)
            flat = to_tokens(vae, (style(pictures) if style else pictures).reshape(-1, *pictures.shape[2:]))
            tokens.append(flat.half().view(*pictures.shape[:2], *flat.shape[1:]))
        partial = path.with_suffix(".part")
        save_file({"tokens": torch.cat(tokens)}, partial)
        partial.rename(path)
    return load_file(path)["tokens"]


@torch.no_grad()
def to_tokens(vae: AutoencoderKLQwenImage, pictures: Picture) -> Tensor:
    """Pictures (n, H, W, 3) → normalised tokens (n, H/16 * W/16, 64), on the CPU."""
    mean, std = _statistics(vae)
    parts = np.array_split(pictures, max(1, len(pictures) // 128))
    latents = torch.cat([((encode(vae, as_tensor(part, vae.device))[0] - mean) / std).cpu() for part in parts])
    count, channels, height, width = latents.shape
    patches = latents.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, height * width // 4, 4 * channels)


@torch.no_grad()
def to_pictures(vae: AutoencoderKLQwenImage, tokens: Tensor) -> Picture:
    """The inverse of `to_tokens`, for square pictures."""
    return np.concatenate(
        [as_pictures(decode(vae, part.to(vae.device))) for part in torch.split(to_latents(vae, tokens), 128)]
    )


def to_latents(vae: AutoencoderKLQwenImage, tokens: Tensor) -> Tensor:
    """Tokens (n, H/16 * W/16, 64) of square pictures → the encoder's latents (n, C, H/8, W/8), on the CPU."""
    count, side, channels = len(tokens), math.isqrt(tokens.shape[1]), tokens.shape[2] // 4
    patches = tokens.reshape(count, side, side, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    mean, std = (part.cpu().to(tokens.dtype) for part in _statistics(vae))
    latents: Tensor = patches.reshape(count, channels, 2 * side, 2 * side) * std + mean
    return latents


def _statistics(vae: AutoencoderKLQwenImage) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, device=vae.device) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
