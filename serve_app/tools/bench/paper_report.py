"""Prints the computed rooflines, and beside them what was measured."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from serve_app.tools.bench.cards import Card, Figure
from serve_app.tools.bench.names import TEXT_ENCODER, VAE_DECODE, VAE_ENCODE
from serve_app.tools.bench.paper import (
    ASSUMPTIONS,
    TEXT_TOKENS,
    Cost,
    LeverRow,
    count_step,
    other_stages,
    shipped_row,
    step_rows,
)
from serve_app.weights.architectures import EditArchitecture

WIDTH = 124


def print_paper(
    model: EditArchitecture, card: Card, console: Console, measured_s: Mapping[str, float] | None = None
) -> None:
    """Print the rates, the assumptions, and for 1 and 3 references the stages and the effect of each lever.

    Args:
        measured_s: medians of stages with one reference by their row's name, if they were measured on this machine.
    """
    print_head(card, console)
    for num_references in TEXT_TOKENS:
        step = count_step(model.transformer, num_references)
        what = f"1 megapixel, {num_references} reference{'s' if num_references > 1 else ''}"
        rows = {precision: step_rows(step, card, fp8=precision == "fp8") for precision in ("bf16", "fp8")}
        stages = stage_costs(other_stages(model, card, num_references), rows)
        console.print(stage_table(what, stages, measured_s if num_references == 1 else None))
        for precision, levers in rows.items():
            console.print(lever_table(f"one step, {precision}, {what}", levers))


def print_head(card: Card, console: Console) -> None:
    console.print(f"[bold]{card.name}: COMPUTED from counted operations and the rates below, not measured.[/bold]")
    figures = {"bf16 matrix products": card.bf16, "fp8 matrix products": card.fp8}
    figures |= {f"attention, {backend}": figure for backend, figure in card.attention.items()}
    for name, figure in figures.items():
        console.print(f"  {name}: {_rate(figure)} TFLOP/s ({figure.source})")
    console.print(f"  memory: {_rate(card.bandwidth)} TB/s ({card.bandwidth.source})")
    console.print("Times are in ms. The floor is all arithmetic at the rates of matrix products. Assumed:")
    for line in ASSUMPTIONS:
        console.print(f"  - {line}")


def stage_costs(others: Mapping[str, Cost], rows: Mapping[str, list[LeverRow]]) -> dict[str, Cost]:
    """The stages of an edit in order, with the step in both precisions: bf16 eager and compiled, fp8 compiled."""
    compiled = {f"step, {precision}, compiled": shipped_row(rows[precision]).cost for precision in ("bf16", "fp8")}
    steps = {"step, bf16, eager": rows["bf16"][0].cost, **compiled}
    return {name: others[name] for name in (VAE_ENCODE, TEXT_ENCODER)} | steps | {VAE_DECODE: others[VAE_DECODE]}


def stage_table(what: str, stages: Mapping[str, Cost], measured_s: Mapping[str, float] | None) -> Table:
    table = _table(f"Stages, {what} (computed; compiled steps as gpu-1x80gb.yaml sets them, all else eager)", "stage")
    if measured_s is not None:
        table.add_column("measured", justify="right")
    for name, cost in stages.items():
        measured = [] if measured_s is None else [_ms(measured_s[name]) if name in measured_s else ""]
        table.add_row(name, *_cells(cost, cost.elementwise_bytes), *measured)
    return table


def lever_table(what: str, rows: list[LeverRow]) -> Table:
    table = _table(f"{what[0].upper()}{what[1:]} (computed; each row adds a lever)", "with", "GB/block")
    table.add_column("saves", justify="right")
    for number, row in enumerate(rows):
        table.add_row(row.name, *_cells(row.cost, row.block_bytes), _ms(row.saved_s) if number else "")
    return table


def _table(title: str, first: str, bytes_column: str = "GB") -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in ("floor", "matmuls", "attention", "elementwise", bytes_column, "kernels", "computed", "x floor"):
        table.add_column(column, justify="right")
    return table


def _cells(cost: Cost, elementwise_bytes: float) -> tuple[str, ...]:
    times = (cost.floor_s, cost.matmul_s, cost.attention_s, cost.elementwise_s)
    return (
        *map(_ms, times),
        f"{elementwise_bytes / 1e9:.2f}",
        f"{cost.num_kernels:.0f}",
        _ms(cost.computed_s),
        f"{cost.over_floor:.2f}",
    )


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000, 1) + 0.0:.1f}"  # not -0.0


def _rate(figure: Figure) -> str:
    return f"{figure.value / 1e12:.4g}"
