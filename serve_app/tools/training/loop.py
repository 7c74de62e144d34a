"""The training loop of all stages: AdamW or Muon, a moving average of the weights, and files to resume from.

Each step draws its random numbers from a generator seeded by the number of the step, so that a resumed run needs no
generator state and equals an uninterrupted one bit for bit.
"""

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serve_app.tools.training.recipe import FitRecipe

SAVE_EVERY_S = 60.0

Loss = Callable[[np.random.Generator], Tensor]
Score = Callable[[], Mapping[str, float]]


@dataclass
class Fit:
    """The training state of a stage: `parameters` are trained, `average` is their moving average.

    Attributes:
        matrices: names of the parameters that Muon trains if the recipe has a `muon_rate`.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    recipe: FitRecipe
    folder: Path
    matrices: frozenset[str] = frozenset()
    step: int = 0
    seconds: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.average = {name: each.detach().clone() for name, each in self.parameters.items()}
        recipe, matrices = self.recipe, self.matrices if self.recipe.muon_rate else frozenset[str]()
        rest = [each for name, each in self.parameters.items() if name not in matrices]
        adamw = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=recipe.decay, fused=True)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, recipe.rate)]
        if matrices:
            # match_rms_adamw: at the same rate, a step is as long as AdamW's.
            muon = torch.optim.Muon(
                [self.parameters[name] for name in sorted(matrices)],
                weight_decay=recipe.decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._optimizers.append((muon, recipe.muon_rate))

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.num_steps

    @property
    def _states(self) -> dict[str, dict[str, Tensor]]:
        """Each parameter's state in its optimizer: empty before its first step."""
        owners = {
            each: optimizer
            for optimizer, _ in self._optimizers
            for group in optimizer.param_groups
            for each in group["params"]
        }
        return {name: owners[each].state[each] for name, each in self.parameters.items()}

    def resume(self) -> None:
        """Load the state from the stage's file, if there is one."""
        if not self.path.exists():
            return
        with safe_open(self.path, "pt") as file:
            about = file.metadata()
        self.step, self.seconds = int(about["step"]), float(about["seconds"])
        stored = load_file(self.path)
        states = self._states
        with torch.no_grad():
            for key, each in stored.items():
                kind, _, name = key.partition("/")
                if kind in ("parameters", "average"):
                    getattr(self, kind)[name].copy_(each)
                else:
                    states[name][kind] = each.to(self.parameters[name].device)

    def save(self) -> None:
        """Write the stage's file atomically, by a rename."""
        state = {f"average/{name}": each for name, each in self.average.items()}
        state |= {f"parameters/{name}": each.detach() for name, each in self.parameters.items()}
        for name, moments in self._states.items():
            state |= {f"{kind}/{name}": each for kind, each in moments.items()}
        partial = self.path.with_suffix(".part")
        whole = {name: each.contiguous() for name, each in state.items()}
        save_file(whole, partial, {"step": str(self.step), "seconds": repr(self.seconds)})
        partial.rename(self.path)

    def advance(self, loss_of: Loss) -> float:
        """One step; returns its loss."""
        loss = loss_of(np.random.default_rng((self.recipe.seed, self.step)))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.max_norm)
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.recipe.share_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        # Early on a long average would still be full of the start.
        weight = max(1 - self.recipe.average, 1 / (self.step + 1))
        torch._foreach_lerp_(list(self.average.values()), [each.detach() for each in self.parameters.values()], weight)
        return float(loss.detach())

    def with_average(self, score: Score) -> Mapping[str, float]:
        """Call `score` while the parameters hold their average."""
        kept = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.adopt(self.average)
        try:
            return score()
        finally:
            self.adopt(kept)

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Copy these values into the parameters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])


def run_fit(fit: Fit, loss_of: Loss, score: Score, max_seconds: float = float("inf")) -> bool:
    """Resume and train to the end, or for about `max_seconds`; after the end the parameters hold their average.

    Writes losses and scores to `NAME.csv`. Returns whether the stage is done.
    """
    fit.folder.mkdir(parents=True, exist_ok=True)
    fit.resume()
    columns = (TextColumn(fit.name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    began = fit.seconds
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(fit.name, total=fit.recipe.num_steps, completed=fit.step, loss="")
        while not fit.done and fit.seconds - began < max_seconds:
            loss = _train_for(fit, loss_of, SAVE_EVERY_S, lambda: progress.advance(task))
            progress.update(task, loss=f"loss {loss:.4f}")
            due = fit.done or fit.seconds % fit.recipe.score_every_s < SAVE_EVERY_S
            _log(fit, {"loss": loss, **(fit.with_average(score) if due else {})})
            fit.save()
    if fit.done:
        fit.adopt(fit.average)
    return fit.done


def _train_for(fit: Fit, loss_of: Loss, seconds: float, on_step: Callable[[], None]) -> float:
    """Train for `seconds` or to the last step, at least one step; returns the mean loss."""
    started, losses = time.monotonic(), list[float]()
    while not losses or (not fit.done and time.monotonic() - started < seconds):
        losses.append(fit.advance(loss_of))
        on_step()
    fit.seconds += time.monotonic() - started
    return float(np.mean(losses))


def _log(fit: Fit, values: Mapping[str, float]) -> None:
    """Append a line of step, seconds and NAME=VALUE fields; not every line has every value."""
    with (fit.folder / f"{fit.name}.csv").open("a", newline="") as file:
        named = [f"{name}={value:.4f}" for name, value in values.items()]
        csv.writer(file).writerow([fit.step, round(fit.seconds), *named])
