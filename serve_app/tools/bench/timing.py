"""Side-by-side timing: what is compared runs in turns in one process, and medians are taken."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing's rounds."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, told: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Run all contenders once to warm up, then in turns, `rounds` times each; `told` is called after each run."""
    for run in contenders.values():
        run()
        told()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
            told()
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def timed(run: Callable[[], object]) -> float:
    """Seconds until the device has done what `run` asked of it."""
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
