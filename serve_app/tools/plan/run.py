"""Runs `camera-edit plan`: computes the fleets, simulates their largest cells, and prints both."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.config import CONFIGS, AppSettings
from serve_app.errors import UsageError
from serve_app.tools.check.speed import rewrites_per_s
from serve_app.tools.load.load import arrival_times
from serve_app.tools.load.mix import Mix, edits_of, read_mix
from serve_app.tools.load.report import quantile
from serve_app.tools.plan.arguments import PlanOptions
from serve_app.tools.plan.cell import Load, Simulated, simulate
from serve_app.tools.plan.costs import Costs, read_costs
from serve_app.tools.plan.fleet import Assumptions, Fleet, cell_capacity, plan_fleet, rewritten
from serve_app.tools.plan.setup import Setup, read_setup
from serve_app.weights.architectures import find_rewriter

DEFAULT_GPUS = (1, 8, 100, 1000)
LOADS = (0.5, 0.7, 0.85)
"""Shares of the editors' capacity at which latencies are simulated."""

UNLOADED = 0.2
"""The first edits of a simulation, which come into an empty cell, do not count."""


@dataclass(frozen=True)
class Latency:
    """Simulated at `load` of the capacity of so many editors in one cell; seconds."""

    editors: int
    load: float
    edits_per_s: float
    p50_s: float
    p95_s: float
    hit_rate: float


@dataclass(frozen=True)
class Growth:
    """A cell that begins with its fewest editors at 70 % of its largest capacity: Serve's autoscaler adds the others.

    Attributes:
        editors: mean number, as paid for.
    """

    p95_s: float
    editors: float


def run_plan(options: PlanOptions) -> None:
    """Print the plan.

    Raises:
        UsageError: an option, the mix or the costs cannot be used.
        ConfigError: the Serve file cannot be used.
        OSError: a file cannot be read.
    """
    settings, setup = read_setup(options.config or CONFIGS / "gpu-8x80gb.yaml")
    mix, costs = read_mix(options.mix), read_costs(options.costs, options.step)
    assumed = assumptions(options, mix, settings)
    fleets = [plan_fleet(gpus, mix, setup, settings, costs, assumed) for gpus in options.gpus or DEFAULT_GPUS]
    cells = sorted({math.ceil(fleet.editors / fleet.cells) for fleet in fleets})
    found = [latency(editors, load, mix, setup, costs, options) for editors in cells for load in LOADS]
    growth = grow(mix, setup, costs, options)
    if options.json:
        document: dict[str, Any] = {"costs": asdict(costs), "assumptions": asdict(assumed)}
        document |= {"fleets": [asdict(fleet) for fleet in fleets], "latencies": [asdict(each) for each in found]}
        document["autoscaling"] = None if growth is None else asdict(growth)
        print(json.dumps(document, indent=1))
    else:
        print_plan(fleets, found, growth, costs, assumed, Console())


def assumptions(options: PlanOptions, mix: Mix, settings: AppSettings) -> Assumptions:
    rewrites = options.rewrites
    if rewrites is None and rewritten(mix):
        source = None if settings.rewriter is None else settings.rewriter.source
        model = None if source is None else find_rewriter(source)
        if model is None:
            raise UsageError("The mix rewrites prompts, and the Serve file has no known rewriter. Set --rewrites.")
        rewrites = rewrites_per_s(model, settings)
    prices = options.gpu_price, options.core_price, options.gib_price
    return Assumptions(options.load, options.cpu, rewrites or 1.0, *prices)


def latency(editors: int, load: float, mix: Mix, setup: Setup, costs: Costs, options: PlanOptions) -> Latency:
    """Simulate edits at random times in a cell of so many editors."""
    rate = load * editors * _capacity(mix, setup, costs)
    found = _simulated(rate, editors, mix, setup, costs, options)
    times = [each.elapsed_s for each in found.outcomes if each.due_s >= UNLOADED * options.edits / rate]
    return Latency(editors, load, rate, quantile(times, 0.5), quantile(times, 0.95), found.hit_rate)


def grow(mix: Mix, setup: Setup, costs: Costs, options: PlanOptions) -> Growth | None:
    """None if the Serve file has a fixed number of editors."""
    if setup.autoscaling is None:
        return None
    scaling = setup.autoscaling
    rate = LOADS[1] * scaling.max_replicas * _capacity(mix, setup, costs)
    # Long enough for the last editor to start.
    num = max(options.edits, math.ceil(3 * rate * (scaling.upscale_delay_s + scaling.start_s)))
    longer = replace(options, edits=num)
    found = _simulated(rate, scaling.min_replicas, mix, setup, costs, longer, scales=True)
    seconds = max(each.ended_s for each in found.outcomes)
    return Growth(quantile([each.elapsed_s for each in found.outcomes], 0.95), found.editor_s / seconds)


def _capacity(mix: Mix, setup: Setup, costs: Costs) -> float:
    """Pictures per second of one editor; rewriters are not simulated."""
    plain = tuple(kind.model_copy(update={"rewrite_prompt": False}) for kind in mix)
    return cell_capacity(1, 0, plain, setup, costs, Assumptions(1, 0, 1, 0, 0, 0))


def _simulated(
    rate: float, editors: int, mix: Mix, setup: Setup, costs: Costs, options: PlanOptions, *, scales: bool = False
) -> Simulated:
    load = Load(edits_of(mix, 0), math.inf, islice(arrival_times(rate, 0), options.edits))
    return simulate(setup, costs, editors, load, options.outside, scales=scales)


def print_plan(
    fleets: Sequence[Fleet],
    latencies: Sequence[Latency],
    growth: Growth | None,
    costs: Costs,
    assumed: Assumptions,
    console: Console,
) -> None:
    console.print(f"Costs of an edit: {costs.source}")
    console.print(
        f"At {assumed.load:.0%} of the capacity; a GPU costs {assumed.gpu_price:g} per hour, a core "
        f"{assumed.core_price:g}, a GiB {assumed.gib_price:g}. Redis: GiB of the largest cell."
    )
    table = _table("GPUs", "cells", "each", "editors", "rewriters", "ingresses", "Redis", "pictures/s", "1,000 cost")
    for fleet in fleets:
        counts = (fleet.gpus, fleet.cells, fleet.cell_gpus, fleet.editors, fleet.rewriters, fleet.ingresses)
        sums = (fleet.redis_gib, fleet.pictures_per_s, fleet.price_per_1000)
        table.add_row(*map(str, counts), *(_short(value) for value in sums))
    console.print(table)
    table = _table("editors", "load", "edits/s", "p50, s", "p95, s", "pictures found encoded")
    for each in latencies:
        times = (each.edits_per_s, each.p50_s, each.p95_s)
        table.add_row(
            str(each.editors), f"{each.load:.0%}", *(_short(value) for value in times), f"{each.hit_rate:.0%}"
        )
    console.print("Simulated, one cell, without rewriting:")
    console.print(table)
    if growth is not None:
        console.print(
            f"Autoscaled from the fewest editors: p95 {_short(growth.p95_s)} s, {growth.editors:.1f} editors on average"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _short(value: float) -> str:
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}"
