"""Compare the simulation of `camera-edit plan` with the service: `python -m tests.benchmarks.simulation --output FILE`

The costs of a step are measured by the sections of `camera-edit bench engine`, alone on the machine. Then the service
runs, with the same random tiny weights. In each round, two closed loops calibrate what the engine does not see: one
client gives the time of an edit outside of it, many clients give the factor by which all other processes slow it down.
Three open loops at shares of the highest throughput follow; the simulation gets the same edits at the same times. The
quantiles are of all rounds together, since the machine's own speed changes within minutes. Exit status 1 if a simulated
95th percentile is further from the measured one than `--within`, or a request failed.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from serve_app.editor.loading.load import load_pipeline
from serve_app.tools.bench.engine import Bench, Result, stages, step_cost
from serve_app.tools.bench.report import device_name
from serve_app.tools.connection import Connection
from serve_app.tools.load.arguments import LoadOptions
from serve_app.tools.load.load import Outcome, arrival_times
from serve_app.tools.load.mix import EditKind, edits_of
from serve_app.tools.load.report import Quantiles, figures_of
from serve_app.tools.load.run import send
from serve_app.tools.plan.cell import Load, simulate
from serve_app.tools.plan.costs import Costs, measured_costs
from serve_app.tools.plan.setup import Setup, read_setup
from tests.conftest import RANDOM_FILE
from tests.service.conftest import host_in

MIX = (EditKind(weight=3, size="256x256"), EditKind(weight=1, size="256x256", num_inference_steps=12))
MANY = 16
LOADS = (0.5, 0.7, 0.85)
"""Of the highest throughput."""


@dataclass(frozen=True)
class Model:
    """What the simulation is calibrated to.

    Attributes:
        factor: of the costs at the highest throughput.
        outside_s: of an edit outside the engine.
    """

    setup: Setup
    costs: Costs
    factor: float
    outside_s: float

    def outcomes(self, options: LoadOptions, share: float = 1.0) -> list[Outcome]:
        """The simulated outcomes of a load.

        Args:
            share: of the highest throughput. On two cores, an edit's work outside the engine slows the engine while it
                overlaps with that of another edit: in proportion to the rate.
        """
        end_s = options.warm_up + options.seconds
        rate, times = options.rate, None
        if rate is not None:
            times = takewhile(lambda due_s: due_s < end_s, arrival_times(rate, options.seed))
        load = Load(edits_of(MIX, options.seed), end_s, times, options.clients or 0)
        costs = self.costs.times(1 + (self.factor - 1) * share)
        return simulate(self.setup, costs, 1, load, self.outside_s).outcomes


@dataclass(frozen=True)
class Round:
    """Sends loads to the service, each for `seconds` after `warm_up_s`."""

    url: str
    seconds: float
    warm_up_s: float
    seed: int

    def options(self, rate: float | None, clients: int | None) -> LoadOptions:
        return LoadOptions(
            self.url, "runpod", rate, clients, seconds=self.seconds, warm_up=self.warm_up_s, seed=self.seed
        )

    def send(self, options: LoadOptions) -> list[Outcome]:
        return asyncio.run(send(options, MIX, Connection(self.url)))

    def calibrated(self, setup: Setup, costs: Costs) -> tuple[Model, float]:
        """The model whose simulation has the median of one client and the throughput of many; and that throughput, in
        edits per second."""
        one, many = (self.options(None, clients) for clients in (1, MANY))
        alone, full_per_s = median(latencies(one, self.send(one))), per_second(many, self.send(many))
        without = Model(setup, costs, 1.0, 0.0)
        outside_s = max(0.0, alone - median(latencies(one, without.outcomes(one))))
        low, high = 0.25, 16.0
        for _ in range(12):  # the throughput falls with the factor
            factor = math.sqrt(low * high)
            is_fast = per_second(many, Model(setup, costs, factor, outside_s).outcomes(many)) > full_per_s
            low, high = (factor, high) if is_fast else (low, factor)
        return Model(setup, costs, math.sqrt(low * high), outside_s), full_per_s


def latencies(options: LoadOptions, outcomes: Sequence[Outcome]) -> list[float]:
    """Of the requests after the warm-up, in seconds.

    Raises:
        RuntimeError: a request failed.
    """
    if failed := [each.error for each in outcomes if each.error is not None]:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    return [each.elapsed_s for each in outcomes if each.due_s >= options.warm_up]


def per_second(options: LoadOptions, outcomes: Sequence[Outcome]) -> float:
    return figures_of(outcomes, options.warm_up, options.seconds, None).requests_per_s


def engine_costs(repetitions: int) -> tuple[Costs, Setup]:
    """Measure the engine's costs with the service's weights, on as many threads as the service's editor has."""
    settings, setup = read_setup(RANDOM_FILE)
    torch.set_num_threads(1)
    bench = Bench(settings, load_pipeline(settings.editor), repetitions, lambda: None)
    for section in (stages, step_cost):
        section(bench)
    rows = asdict(Result(RANDOM_FILE.name, repetitions, tuple(bench.rows), bench.facts))
    return measured_costs({"device": device_name(), **rows}), setup


def compare(rounds: int, seconds: float, warm_up_s: float, repetitions: int, console: Console) -> dict[str, Any]:
    """Measure and simulate; all figures."""
    costs, setup = engine_costs(repetitions)
    measured: dict[float, list[float]] = {share: [] for share in LOADS}
    simulated: dict[float, list[float]] = {share: [] for share in LOADS}
    calibrations = []
    with tempfile.TemporaryDirectory() as folder:
        host = host_in(Path(folder), jobs={"store": {"kind": "sqlite", "path": f"{folder}/jobs.sqlite3"}})
        try:
            host.start()
            for seed in range(1, rounds + 1):
                one_round = Round(host.service.url, seconds, warm_up_s, seed)
                model, full_per_s = one_round.calibrated(setup, costs)
                calibration = {"edits_per_s": full_per_s, "outside_s": model.outside_s, "factor": model.factor}
                calibrations.append(calibration)
                console.print(", ".join(f"{name} {value:.3g}" for name, value in calibration.items()))
                for share in LOADS:
                    options = one_round.options(share * full_per_s, None)
                    measured[share] += latencies(options, one_round.send(options))
                    simulated[share] += latencies(options, model.outcomes(options, share))
        finally:
            host.stop()
    rows = [row(share, measured[share], simulated[share]) for share in LOADS]
    for each in rows:
        p95 = each["measured"]["p95"]
        console.print(f"load {each['load']:.0%}: p95 {p95:.3f} s, simulated {each['ratio']:.2f} times that")
    mix = [kind.model_dump() for kind in MIX]
    return {"mix": mix, "seconds": rounds * seconds, "costs": asdict(costs), "rounds": calibrations, "loads": rows}


def row(share: float, measured: Sequence[float], simulated: Sequence[float]) -> dict[str, Any]:
    found, expected = Quantiles.of(measured), Quantiles.of(simulated)
    if found is None or expected is None:
        raise RuntimeError("the loads were too short")
    ratio = expected.p95 / found.p95
    times = {"measured": asdict(found), "simulated": asdict(expected)}
    return {"load": share, "num_requests": len(measured), "ratio": ratio, **times}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulation")
    parser.add_argument("--rounds", type=int, default=4, help="each with all loads (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load in a round (default %(default)s)")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before that (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="of the engine's costs (default %(default)s)")
    parser.add_argument("--within", type=float, default=0.15, help="relative error allowed (default %(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    document = compare(options.rounds, options.seconds, options.warm_up, options.repetitions, console)
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(abs(row["ratio"] - 1) > options.within for row in document["loads"]))


if __name__ == "__main__":
    sys.exit(main())
