"""The figures of a load, as a table and as JSON."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from serve_app.tools.load.load import Outcome


@dataclass(frozen=True)
class Quantiles:
    """Of times in seconds."""

    p50: float
    p95: float
    p99: float
    mean: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Quantiles | None":
        """None without times."""
        if not times:
            return None
        p50, p95, p99 = (quantile(times, share) for share in (0.5, 0.95, 0.99))
        return cls(p50, p95, p99, sum(times) / len(times))


@dataclass(frozen=True)
class Figures:
    """Of the requests that were due after the warm-up.

    Attributes:
        num_warm_up: requests before them, which count in no other figure.
        requests_per_s: successful answers within the measured time, divided by it.
        latency_s: of successful requests; None without any.
        within_slo: successful requests within the SLO, as a fraction of all requests; None without an SLO.
        first_preview_s: of streamed requests that had a preview; None without any.
        errors: number of failed requests by the kind of error.
    """

    num_warm_up: int
    num_requests: int
    requests_per_s: float
    latency_s: Quantiles | None
    within_slo: float | None
    first_preview_s: Quantiles | None
    errors: dict[str, int]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is not below `share` of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def figures_of(outcomes: Sequence[Outcome], warm_up_s: float, seconds: float, slo_s: float | None) -> Figures:
    """The figures of the `seconds` after the warm-up."""
    end_s = warm_up_s + seconds
    measured = [each for each in outcomes if warm_up_s <= each.due_s < end_s]
    good = [each.elapsed_s for each in measured if each.error is None]
    answered = sum(each.error is None and warm_up_s <= each.ended_s < end_s for each in outcomes)
    within = None if slo_s is None or not measured else sum(took_s <= slo_s for took_s in good) / len(measured)
    return Figures(
        num_warm_up=sum(each.due_s < warm_up_s for each in outcomes),
        num_requests=len(measured),
        requests_per_s=answered / seconds,
        latency_s=Quantiles.of(good),
        within_slo=within,
        first_preview_s=Quantiles.of([each.first_preview_s for each in measured if each.first_preview_s is not None]),
        errors=dict(Counter(each.error for each in measured if each.error is not None)),
    )


def print_figures(figures: Figures, slo_s: float | None, console: Console) -> None:
    table = Table("what", "value", box=None, pad_edge=False, show_header=False)
    table.columns[1].justify = "right"
    table.add_row("requests", f"{figures.num_requests} (and {figures.num_warm_up} to warm up)")
    table.add_row("answered per second", f"{figures.requests_per_s:.3g}")
    for what, times in (("latency", figures.latency_s), ("first preview", figures.first_preview_s)):
        if times is not None:
            table.add_row(f"{what}: p50, p95, p99", f"{times.p50:.3f} s, {times.p95:.3f} s, {times.p99:.3f} s")
    if slo_s is not None and figures.within_slo is not None:
        table.add_row(f"within {slo_s:g} s", f"{figures.within_slo:.1%}")
    for error, number in sorted(figures.errors.items()):
        table.add_row(f"failed: {error}", str(number))
    console.print(table)
