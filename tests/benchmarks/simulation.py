"""Compare the simulation of `camera-edit plan` with the service: `python -m tests.benchmarks.simulation --output FILE`

The costs of a step are measured by the sections of `camera-edit bench engine`, alone on the machine. Then the service
runs, with the same random tiny weights, and two closed loops calibrate what the engine does not see: one client gives
the time of an edit outside of it, many clients give the factor by which all other processes slow it down. Three open
loops at shares of the highest throughput follow; the simulation gets the same edits at the same times. Exit status 1 if
a simulated 95th percentile is further from the measured one than `--within`, or a request failed.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import torch
from rich.console import Console

from serve_app.editor.loading.load import load_pipeline
from serve_app.tools.bench.engine import Bench, Result, stages, step_cost
from serve_app.tools.bench.report import device_name
from serve_app.tools.connection import Connection
from serve_app.tools.load.arguments import LoadOptions
from serve_app.tools.load.load import arrival_times
from serve_app.tools.load.mix import EditKind, edits_of
from serve_app.tools.load.report import Figures, Quantiles, figures_of
from serve_app.tools.load.run import measure
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
        factor: of the costs, under load.
        outside_s: of an edit outside the engine.
    """

    setup: Setup
    costs: Costs
    factor: float
    outside_s: float

    def figures(self, options: LoadOptions) -> Figures:
        """The simulated figures of a load."""
        end_s = options.warm_up + options.seconds
        rate, times = options.rate, None
        if rate is not None:
            times = takewhile(lambda due_s: due_s < end_s, arrival_times(rate, options.seed))
        load = Load(edits_of(MIX, options.seed), end_s, times, options.clients or 0)
        found = simulate(self.setup, self.costs.times(self.factor), 1, load, self.outside_s)
        return figures_of(found.outcomes, options.warm_up, options.seconds, None)


def engine_costs(rounds: int) -> tuple[Costs, Setup]:
    """Measure the engine's costs with the service's weights, on as many threads as the service's editor has."""
    settings, setup = read_setup(RANDOM_FILE)
    torch.set_num_threads(1)
    bench = Bench(settings, load_pipeline(settings.editor), rounds, lambda: None)
    for section in (stages, step_cost):
        section(bench)
    rows = asdict(Result(RANDOM_FILE.name, rounds, tuple(bench.rows), bench.facts))
    return measured_costs({"device": device_name(), **rows}), setup


def calibrated(setup: Setup, costs: Costs, one: LoadOptions, alone: Figures, many: LoadOptions, full: Figures) -> Model:
    """The model whose simulation has the median of one client and the throughput of many."""
    without = Model(setup, costs, 1.0, 0.0)
    outside_s = max(0.0, times_of(alone).p50 - times_of(without.figures(one)).p50)
    low, high = 0.25, 16.0
    for _ in range(12):  # the throughput falls with the factor
        factor = math.sqrt(low * high)
        is_fast = Model(setup, costs, factor, outside_s).figures(many).requests_per_s > full.requests_per_s
        low, high = (factor, high) if is_fast else (low, factor)
    return Model(setup, costs, math.sqrt(low * high), outside_s)


def times_of(figures: Figures) -> Quantiles:
    if figures.latency_s is None or figures.errors:
        raise RuntimeError(f"a load failed, or its time was too short: {figures}")
    return figures.latency_s


def loads(url: str, seconds: float, warm_up_s: float, rate: float | None, clients: int | None) -> LoadOptions:
    return LoadOptions(url, "runpod", rate, clients, seconds=seconds, warm_up=warm_up_s, seed=1)


def compare(seconds: float, warm_up_s: float, rounds: int, console: Console) -> dict[str, object]:
    """Measure and simulate; all figures."""
    costs, setup = engine_costs(rounds)
    with tempfile.TemporaryDirectory() as folder:
        host = host_in(Path(folder), jobs={"store": {"kind": "sqlite", "path": f"{folder}/jobs.sqlite3"}})
        try:
            host.start()
            url = host.service.url
            one, many = (loads(url, seconds, warm_up_s, None, clients) for clients in (1, MANY))
            alone, full = (measure(each, MIX, Connection(url)) for each in (one, many))
            model = calibrated(setup, costs, one, alone, many, full)
            console.print(
                f"{full.requests_per_s:.2f} edits/s; {model.outside_s:.3f} s outside; factor {model.factor:.2f}"
            )
            rows = []
            for share in LOADS:
                options = loads(url, seconds, warm_up_s, share * full.requests_per_s, None)
                measured, simulated = measure(options, MIX, Connection(url)), model.figures(options)
                ratio = times_of(simulated).p95 / times_of(measured).p95
                console.print(f"load {share:.0%}: p95 {times_of(measured).p95:.3f} s, simulated {ratio:.2f} times that")
                rows.append(
                    {"load": share, "ratio": ratio, "measured": asdict(measured), "simulated": asdict(simulated)}
                )
        finally:
            host.stop()
    calibration = {"costs": asdict(costs), "factor": model.factor, "outside_s": model.outside_s}
    closed = {"one client": asdict(alone), f"{MANY} clients": asdict(full)}
    return {"mix": [kind.model_dump() for kind in MIX], "calibration": calibration, "closed": closed, "loads": rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.simulation")
    parser.add_argument("--seconds", type=float, default=120.0, help="to measure each load for (default %(default)s)")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before that (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the engine's costs (default %(default)s)")
    parser.add_argument("--within", type=float, default=0.15, help="relative error allowed (default %(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    document = compare(options.seconds, options.warm_up, options.rounds, Console(highlight=False, soft_wrap=True))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    rows = document["loads"]
    assert isinstance(rows, list)
    return int(any(abs(row["ratio"] - 1) > options.within for row in rows))


if __name__ == "__main__":
    sys.exit(main())
