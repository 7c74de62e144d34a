"""The stages of the training and what they share; each stage resumes from its own file."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from safetensors.torch import load_file
from torch import Tensor

from serve_app.tiny.cyanotype import cyanotype
from serve_app.tools.training.adapter import Factors, fused, leaves, new_adapter
from serve_app.tools.training.flow import Model, draw, flow_loss, new_transformer, noise_like
from serve_app.tools.training.lightning import lightning_loss
from serve_app.tools.training.loop import Fit, Score, run_fit
from serve_app.tools.training.mmdit import Weights, inner_matrices
from serve_app.tools.training.phrases import view_words
from serve_app.tools.training.polish import polish_decoder
from serve_app.tools.training.recipe import AdapterRecipe, FlowRecipe, Recipe
from serve_app.tools.training.rewriter import new_rewriter, new_rewriter_tokenizer, train_rewriter
from serve_app.tools.training.samples import Batch, Samples, encoded
from serve_app.tools.training.score import (
    CameraCases,
    Case,
    Judge,
    as_weights,
    camera_cases,
    in_style,
    wish_cases,
    with_prompts,
)
from serve_app.tools.training.text import Prompts, new_text_encoder, new_tokenizer
from serve_app.tools.training.vae import new_vae, train_vae

STAGES = ("vae", "base", "refine", "angles", "lightning", "polish", "cyanotype", "rewriter")
NUM_SCENES = 24
"""The number of held-out scenes by which a stage is scored while it trains."""


class Training:
    """The stages as methods, and the models and data that they share, which are made on first use.

    A stage trains for about `max_seconds` at most and returns whether it is done.
    """

    def __init__(self, folder: Path, recipe: Recipe, device: str | None = None, fast: bool = True) -> None:
        self.folder, self.recipe, self._fast = folder, recipe, fast
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def vae(self, max_seconds: float) -> bool:
        vae = new_vae(self.recipe.vae).to(self.device)
        done = train_vae(vae, self.recipe.vae, self.recipe.data, self.folder, max_seconds)
        if done:
            vae.save_pretrained(self.folder / "vae")
        return done

    def base(self, max_seconds: float) -> bool:
        return self._fit_base("base", self.recipe.base, max_seconds)

    def refine(self, max_seconds: float) -> bool:
        start = self.result("base")
        with torch.no_grad():
            for name, each in self.model.weights.items():
                each.copy_(start[name])
        return self._fit_base("refine", self.recipe.refine, max_seconds)

    def angles(self, max_seconds: float) -> bool:
        recipe, base = self.recipe.angles, self.base_weights
        factors = new_adapter(self.model.transformer, recipe)
        fit = Fit("angles", dict(factors), self.recipe.angles_flow.fit, self.folder)
        loss_of = flow_loss(
            self.model, self.samples, self.recipe.angles_flow, lambda: fused(leaves(base), factors, recipe)
        )
        return run_fit(fit, loss_of, self._scorer(base, factors, recipe), max_seconds)

    def lightning(self, max_seconds: float) -> bool:
        recipe, angles = self.recipe.lightning, self.angles_weights
        factors = new_adapter(self.model.transformer, recipe.adapter)
        fit = Fit("lightning", dict(factors), recipe.angles.fit, self.folder)
        loss_of = lightning_loss(self.model, self.samples, recipe, self.base_weights, angles, factors)
        return run_fit(fit, loss_of, self._scorer(angles, factors, recipe.adapter), max_seconds)

    def polish(self, max_seconds: float) -> bool:
        recipe, vae = self.recipe, self.trained_vae
        done = polish_decoder(vae, self.samples, self._draw, recipe.polish, recipe.data, self.folder, max_seconds)
        if done:
            vae.save_pretrained(self.folder / "polished")
        return done

    def cyanotype(self, max_seconds: float) -> bool:
        recipe, frozen = self.recipe.cyanotype, self.drawing_weights
        data = replace(self.recipe.data, num_shards=self.recipe.cyanotype_shards)
        tokens, targets = (encoded(self.trained_vae, data, self.folder, style) for style in (None, cyanotype))
        factors = new_adapter(self.model.transformer, recipe.adapter)
        fit = Fit("cyanotype", dict(factors), recipe.angles.fit, self.folder)
        loss_of = lightning_loss(self.model, Samples(data, tokens, targets), recipe, frozen, frozen, factors)

        def score() -> Mapping[str, float]:
            styled = in_style(cyanotype, self._camera, self._wishes)
            return self._scorer(frozen, factors, recipe.adapter, *styled)()

        return run_fit(fit, loss_of, score, max_seconds)

    def rewriter(self, max_seconds: float) -> bool:
        tokenizer = new_rewriter_tokenizer()
        model = new_rewriter(tokenizer, self.recipe.rewriter)
        return train_rewriter(model, tokenizer, self.recipe.rewriter, self.folder, max_seconds)

    def _fit_base(self, stage: str, recipe: FlowRecipe, max_seconds: float) -> bool:
        weights = self.model.weights
        fit = Fit(stage, weights, recipe.fit, self.folder, inner_matrices(weights))
        loss_of = flow_loss(self.model, self.samples, recipe, lambda: weights)
        return run_fit(fit, loss_of, lambda: self._score_base(as_weights(weights)), max_seconds)

    def _draw(self, batch: Batch, rng: np.random.Generator) -> Tensor:
        noise = noise_like(batch.targets, rng)
        return draw(self.model, self.drawing_weights, batch, noise, self.recipe.lightning.num_steps)

    @cached_property
    def trained_vae(self) -> AutoencoderKLQwenImage:
        """The VAE, rounded to float16 as in the export."""
        path = self.vae_path
        vae = AutoencoderKLQwenImage.from_pretrained(path).half().float().to(self.device)
        vae.register_to_config(_name_or_path=path.name)  # else the export would contain the whole path
        return vae

    @property
    def vae_path(self) -> Path:
        """The VAE of the stage `polish` if it is done, else of the stage `vae`."""
        polished = self.folder / "polished"
        return polished if polished.exists() else self.folder / "vae"

    @cached_property
    def samples(self) -> Samples:
        """The source of training batches."""
        return Samples(self.recipe.data, encoded(self.trained_vae, self.recipe.data, self.folder))

    @cached_property
    def model(self) -> Model:
        """The transformer with its prompts."""
        tokenizer = new_tokenizer()
        prompts = Prompts(new_text_encoder(tokenizer, self.recipe.text), tokenizer)
        transformer = new_transformer(self.recipe.transformer, self.recipe.text, self.recipe.base.fit.seed)
        return Model(transformer.to(self.device), prompts, self._fast)

    @cached_property
    def base_weights(self) -> Weights:
        """The base weights, rounded as in the export."""
        return self.result("refine")

    @cached_property
    def angles_weights(self) -> Weights:
        """The base with the angles adapter fused."""
        return fused(self.base_weights, self.result("angles"), self.recipe.angles)

    @cached_property
    def drawing_weights(self) -> Weights:
        """The base with both adapters fused."""
        return self.with_lightning(self.angles_weights)

    def with_lightning(self, weights: Weights) -> Weights:
        """These weights with the few-step adapter fused."""
        return fused(weights, self.result("lightning"), self.recipe.lightning.adapter)

    @cached_property
    def cyanotype_weights(self) -> Weights:
        """The base with all three adapters fused."""
        return fused(self.drawing_weights, self.result("cyanotype"), self.recipe.cyanotype.adapter)

    def result(self, stage: str) -> dict[str, Tensor]:
        """The averaged weights in a stage's file, rounded as in the export."""
        stored = load_file(self.folder / f"{stage}.safetensors", str(self.device))
        average = {name.removeprefix("average/"): each for name, each in stored.items() if name.startswith("average/")}
        return {name: each.half().float() for name, each in average.items()}

    @cached_property
    def judge(self) -> Judge:
        """Scores edits of held-out scenes."""
        return Judge(self.model, self.trained_vae)

    def _scorer(
        self,
        frozen: Weights,
        factors: Factors,
        recipe: AdapterRecipe,
        camera: CameraCases | None = None,
        wishes: Mapping[str, list[Case]] | None = None,
    ) -> Score:
        def score() -> Mapping[str, float]:
            weights = as_weights(fused(frozen, factors, recipe))
            wishes_db = self.judge.wishes(wishes or self._wishes, weights)["wishes_db"]
            return {**self.judge.camera(camera or self._camera, weights), "wishes_db": wishes_db}

        return score

    def _score_base(self, weights: Weights) -> Mapping[str, float]:
        """Scores of the base: views by its own camera words, and by the adapter's, which should have no effect."""
        rng = np.random.default_rng(1)
        own_words = with_prompts(self._camera, [view_words(pose, rng) for pose in self._camera.poses])
        adapter_words = self.judge.camera(self._camera, weights)["azimuth"]
        wishes = self.judge.wishes(self._wishes, weights)
        return {**self.judge.camera(own_words, weights), "sks_azimuth": adapter_words, **wishes}

    @cached_property
    def _camera(self) -> CameraCases:
        return camera_cases(NUM_SCENES, 6)

    @cached_property
    def _wishes(self) -> dict[str, list[Case]]:
        return wish_cases(4 * NUM_SCENES, held_out_words=False)
