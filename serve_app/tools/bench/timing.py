"""Side-by-side timing: contenders run in turns in one process, and their medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of each round of one contender."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, on_run: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Run all contenders once to warm up, then in turns, `rounds` times each; `on_run` is called after each run."""
    for run in contenders.values():
        run()
        on_run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
            on_run()
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def timed(run: Callable[[], object]) -> float:
    """The seconds until `run` has returned and the device has finished its work."""
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
