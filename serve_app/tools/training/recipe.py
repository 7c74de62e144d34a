"""The hyperparameters of the training: sizes, seeds, steps, learning rates."""

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DataRecipe:
    """The number of scenes, and the pictures of each."""

    seed: int = 7
    num_shards: int = 28
    families_per_shard: int = 128
    num_inputs: int = 4
    num_others: int = 8
    num_wishes: int = 4
    num_combined: int = 2

    @property
    def num_rows(self) -> int:
        """The number of pictures of a family."""
        return self.num_inputs + self.num_others + 2 * self.num_wishes + self.num_combined

    @property
    def key(self) -> str:
        """A hash of everything that a shard's content depends on, but its number."""
        shape = (self.seed, self.families_per_shard, self.num_inputs, self.num_others, self.num_wishes)
        return hashlib.sha256(repr((*shape, self.num_combined)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class FitRecipe:
    """The optimisation of a stage.

    Attributes:
        rate: AdamW's learning rate, after a linear warm-up of `num_warm_up` steps.
        hold: the fraction of the steps after which the rate falls linearly to zero.
        average: the decay of the weights' moving average.
        decay: weight decay.
        max_norm: the norm to which gradients are clipped.
        muon_rate: as `rate`, for the matrices that Muon trains; 0: AdamW trains them, too.
    """

    seed: int
    num_steps: int
    batch: int
    rate: float
    hold: float = 0.5
    num_warm_up: int = 100
    average: float = 0.998
    decay: float = 0.0
    max_norm: float = 1.0
    muon_rate: float = 0.0
    score_every_s: float = 180.0

    def share_at(self, step: int) -> float:
        """The learning rates of a step as a fraction of the full ones."""
        held = int(self.num_steps * self.hold)
        falling = (self.num_steps - step) / max(1, self.num_steps - held)
        return min(1.0, (step + 1) / self.num_warm_up, falling)


@dataclass(frozen=True)
class VaeRecipe:
    """Sizes of the VAE and its training.

    Attributes:
        noise: standard deviation of the noise that is added to latents before they are decoded.
        absolute: weight of the absolute error in the loss.
        latent: weight of the squared latents in the loss.
    """

    base_dim: int = 16
    num_shards: int = 24
    noise: float = 0.05
    absolute: float = 0.1
    latent: float = 1e-4
    fit: FitRecipe = FitRecipe(seed=101, num_steps=4000, batch=16, rate=2.5e-3, hold=0.1)


@dataclass(frozen=True)
class TextRecipe:
    """The random text encoder. `layer_scale` is far below the embeddings' scale of 1, so that words stay distinct."""

    seed: int = 3
    hidden: int = 64
    layer_scale: float = 0.06


@dataclass(frozen=True)
class TransformerRecipe:
    """Sizes of the transformer."""

    num_layers: int = 5
    num_heads: int = 5
    head_dim: int = 32
    axes_dims_rope: tuple[int, int, int] = (8, 12, 12)


Mix = tuple[tuple[str, float], ...]
"""Kinds of samples (see samples.py) and their relative frequencies, which need not add up to one."""


@dataclass(frozen=True)
class FlowRecipe:
    """A stage of flow matching: its training samples and optimisation."""

    mix: Mix
    fit: FitRecipe


BASE = FlowRecipe(
    mix=(("wish", 0.34), ("style", 0.09), ("view", 0.45), ("view_wish", 0.08), ("keep", 0.04)),
    fit=FitRecipe(seed=201, num_steps=6000, batch=64, rate=1.5e-3),
)

REFINE = replace(BASE, fit=FitRecipe(seed=202, num_steps=8000, batch=64, rate=1e-3, hold=0.1, muon_rate=1e-3))
"""The base trained further with Muon, which reaches a lower loss than AdamW in as many steps."""


@dataclass(frozen=True)
class AdapterRecipe:
    """A low-rank adapter, `strength * alpha / rank * up @ down`.

    Attributes:
        modulation: whether it is for the modulation layers, too.
        text: whether it is for the layers of the text's tokens, too.
    """

    seed: int
    rank: int
    alpha: float
    strength: float
    modulation: bool
    text: bool = True

    @property
    def scale(self) -> float:
        """The factor of `up @ down` when the adapter is fused."""
        return self.strength * self.alpha / self.rank


ANGLES = AdapterRecipe(seed=301, rank=32, alpha=32, strength=0.9, modulation=True)
ANGLES_FLOW = FlowRecipe(
    mix=(
        ("camera", 0.64),
        ("camera_wish", 0.15),
        ("wish", 0.08),
        ("style", 0.04),
        ("wish_camera", 0.05),
        ("view", 0.04),
    ),
    fit=FitRecipe(seed=302, num_steps=2500, batch=64, rate=2e-3),
)


@dataclass(frozen=True)
class LightningRecipe:
    """The few-step adapter's training.

    Attributes:
        num_steps: the number of steps of its schedule.
        step_shares: the relative frequency of each step of the schedule in training.
        alone: the fraction of batches that run without the angles adapter.
    """

    adapter: AdapterRecipe
    angles: FlowRecipe
    base: FlowRecipe
    num_steps: int
    step_shares: tuple[float, ...]
    alone: float


_LIGHTNING_FIT = FitRecipe(seed=402, num_steps=2000, batch=64, rate=1.5e-3)
LIGHTNING = LightningRecipe(
    adapter=AdapterRecipe(seed=401, rank=16, alpha=4.0, strength=1.0, modulation=False),
    angles=FlowRecipe(
        mix=(("camera", 0.55), ("camera_wish", 0.12), ("wish", 0.25), ("style", 0.06), ("wish_camera", 0.02)),
        fit=_LIGHTNING_FIT,
    ),
    base=FlowRecipe(mix=(("wish", 0.5), ("style", 0.1), ("view", 0.4)), fit=_LIGHTNING_FIT),
    num_steps=4,
    step_shares=(0.15, 0.15, 0.25, 0.45),
    alone=0.15,
)

_CYANOTYPE_FIT = FitRecipe(
    seed=602, num_steps=300, batch=16, rate=3e-3, num_warm_up=20, average=0.98, score_every_s=600
)
CYANOTYPE = replace(
    LIGHTNING,
    adapter=AdapterRecipe(seed=601, rank=4, alpha=4, strength=1.0, modulation=False, text=False),
    angles=FlowRecipe(
        mix=(("camera", 0.35), ("camera_wish", 0.15), ("wish", 0.35), ("style", 0.05), ("keep", 0.1)),
        fit=_CYANOTYPE_FIT,
    ),
    alone=0.0,
)
"""The style adapter, trained as Lightning is, on the base with both other adapters. Rank and layers are few because the
weights of the toy world are limited to 20 MB."""


@dataclass(frozen=True)
class PolishRecipe:
    """The further training of the decoder, on encoded latents with noise and on latents that the transformer draws.

    Attributes:
        noise, absolute: as in VaeRecipe.
        drawn: the fraction of drawn latents in a batch.
        mix: the kinds of samples that are drawn.
    """

    noise: float = 0.07
    absolute: float = 0.05
    drawn: float = 0.5
    mix: Mix = LIGHTNING.angles.mix
    fit: FitRecipe = FitRecipe(seed=111, num_steps=1200, batch=16, rate=1.2e-3, hold=0.2, num_warm_up=50)


@dataclass(frozen=True)
class RewriterRecipe:
    """The rewriter's size and training."""

    num_layers: int = 3
    fit: FitRecipe = FitRecipe(seed=501, num_steps=1500, batch=24, rate=3e-3, hold=0.3)


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of all stages."""

    data: DataRecipe = DataRecipe()
    vae: VaeRecipe = VaeRecipe()
    polish: PolishRecipe = PolishRecipe()
    text: TextRecipe = TextRecipe()
    transformer: TransformerRecipe = TransformerRecipe()
    base: FlowRecipe = BASE
    refine: FlowRecipe = REFINE
    angles: AdapterRecipe = ANGLES
    angles_flow: FlowRecipe = ANGLES_FLOW
    lightning: LightningRecipe = LIGHTNING
    cyanotype: LightningRecipe = CYANOTYPE
    cyanotype_shards: int = 4
    rewriter: RewriterRecipe = RewriterRecipe()

    @property
    def key(self) -> str:
        """A hash of the recipe, which identifies the resulting weights."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]
