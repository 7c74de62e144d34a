"""All numbers of the training: sizes, seeds, steps, rates."""

import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DataRecipe:
    """How many scenes, and what is rendered of each."""

    seed: int = 7
    num_shards: int = 28
    families_per_shard: int = 128
    num_inputs: int = 4
    num_others: int = 8
    num_wishes: int = 4
    num_combined: int = 2

    @property
    def num_rows(self) -> int:
        """Pictures of a family."""
        return self.num_inputs + self.num_others + 2 * self.num_wishes + self.num_combined

    @property
    def key(self) -> str:
        """Names a shard's content."""
        shape = (self.seed, self.families_per_shard, self.num_inputs, self.num_others, self.num_wishes)
        return hashlib.sha256(repr((*shape, self.num_combined)).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class FitRecipe:
    """A stage's optimisation.

    Attributes:
        rate: AdamW's learning rate, after `num_warm_up` steps that lead up to it.
        hold: the share of the steps after which the rate begins to fall, to zero at the end: along a straight line.
        average: how slowly the moving average of the weights follows.
        max_norm: gradients are clipped to it.
        muon_rate: as `rate`, for the matrices that Muon trains; none where it is 0.
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
        """The share of the learning rates that a step has."""
        held = int(self.num_steps * self.hold)
        falling = (self.num_steps - step) / max(1, self.num_steps - held)
        return min(1.0, (step + 1) / self.num_warm_up, falling)


@dataclass(frozen=True)
class VaeRecipe:
    """Sizes of the VAE and its training; `noise` is added to the latents that are decoded."""

    base_dim: int = 16
    num_shards: int = 24
    noise: float = 0.05
    absolute: float = 0.1
    latent: float = 1e-4
    fit: FitRecipe = FitRecipe(seed=101, num_steps=4000, batch=16, rate=2.5e-3, hold=0.1)


@dataclass(frozen=True)
class TextRecipe:
    """The random text encoder: `layer_scale` is small beside its embeddings' 1.0, so that words stay distinct."""

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
"""Kinds of samples (see samples.py) and their shares; the shares need not add up to one."""


@dataclass(frozen=True)
class FlowRecipe:
    """A stage of flow matching: what it sees, and how long."""

    mix: Mix
    fit: FitRecipe


BASE = FlowRecipe(
    mix=(("wish", 0.34), ("style", 0.09), ("view", 0.45), ("view_wish", 0.08), ("keep", 0.04)),
    fit=FitRecipe(seed=201, num_steps=6000, batch=64, rate=1.5e-3),
)

REFINE = replace(BASE, fit=FitRecipe(seed=202, num_steps=8000, batch=64, rate=1e-3, hold=0.1, muon_rate=1e-3))
"""The base once more, by Muon, which falls further in as many steps than AdamW does."""


@dataclass(frozen=True)
class AdapterRecipe:
    """A low-rank adapter, `strength * alpha / rank * up @ down`; `modulation` says whether it has those layers too."""

    seed: int
    rank: int
    alpha: float
    strength: float
    modulation: bool

    @property
    def scale(self) -> float:
        """What `up @ down` is multiplied by where the adapter is fused."""
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
        num_steps: the length of the schedule that it learns.
        step_shares: how often each step of the schedule is the one trained.
        alone: the share of batches that run without the angles adapter.
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


@dataclass(frozen=True)
class PolishRecipe:
    """The decoder's further training: on latents with some noise, and on what the transformer draws.

    Attributes:
        drawn: the share of the latter in a batch; `mix` is what is asked of the transformer.
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
    """All of the training."""

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
    rewriter: RewriterRecipe = RewriterRecipe()

    @property
    def key(self) -> str:
        """Names the weights that come of it."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]
