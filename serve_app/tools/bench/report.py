"""The benchmark's results as a table, as JSON and as a plot."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from serve_app.tools.bench.engine import Result
from serve_app.tools.bench.names import ONE_BY_ONE, PACKED, STEP_SECTION

WIDTH, HEIGHT, MARGIN = 960, 600, 90
INK, GRID = "#333333", "#dddddd"
COLOURS = {ONE_BY_ONE: "#c04a3a", PACKED: "#2f6db5"}
_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")


def print_table(result: Result, console: Console) -> None:
    """Print a block of rows for each section: median, speed-up over its first row, and for stages on the device the
    fraction of the median that their operations take at the measured rate."""
    table = Table(title=f"camera-edit bench engine, {device_name()}, medians of {result.rounds} rounds in turns")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("speed-up", justify="right")
    table.add_column("of the floor", justify="right")
    for section, rows in groupby(result.rows, key=lambda row: row.section):
        table.add_section()
        table.add_row(f"[bold]{section}[/bold]")
        for row in rows:
            speed_up = "" if row.speed_up is None else f"{row.speed_up:.2f}x"
            fraction = "" if row.floor_fraction is None else f"{row.floor_fraction:.0%}"
            table.add_row(f"  {row.name}", f"{row.median_s * 1000:.1f} ms", speed_up, fraction)
    console.print(table)
    for name, value in result.facts.items():
        console.print(f"{name}: {value:.4g}")


def write_json(result: Result, path: Path) -> None:
    """Write the results with date, device and versions."""
    path.write_text(json.dumps({**circumstances(), **asdict(result)}, indent=1) + "\n", encoding="utf-8")


def circumstances() -> dict[str, object]:
    """Date, device and versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def device_name() -> str:
    """The GPU, or the CPU with the number of threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def step_points(result: Result) -> dict[str, list[tuple[int, float]]]:
    """Picture tokens and milliseconds of each measured step, for packed steps and for steps one by one."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in COLOURS}
    for row in result.rows:
        if found := STEP_SECTION.fullmatch(row.section):
            points[row.name].append((int(found["tokens"]), row.median_s * 1000))
    return points


def plot_step_cost(result: Result) -> Image.Image:
    """Plot step time over picture tokens: a line for packed steps, one for the same edits stepped one by one."""
    points = step_points(result)
    most_tokens = max(tokens for line in points.values() for tokens, _ in line)
    most_ms = max(ms for line in points.values() for _, ms in line)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=16)

    def place(tokens: float, ms: float) -> tuple[float, float]:
        x = MARGIN + tokens / most_tokens * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - ms / most_ms * (HEIGHT - 2 * MARGIN)

    for part in range(5):
        tokens, ms = most_tokens * part / 4, most_ms * part / 4
        draw.line([place(0, ms), place(most_tokens, ms)], GRID)
        draw.text(place(0, ms), f"{ms:.0f} ", INK, font, anchor="rm")
        x, y = place(tokens, 0)
        draw.text((x, y + 12), f"{tokens:.0f}", INK, font, anchor="mt")
    for name, line in points.items():
        places = [place(*point) for point in line]
        draw.line(places, COLOURS[name], width=3)
        for x, y in places:
            draw.ellipse([x - 5, y - 5, x + 5, y + 5], COLOURS[name])
        draw.text((places[-1][0], places[-1][1] - 14), name, COLOURS[name], font, anchor="rb")
    draw.text((WIDTH / 2, HEIGHT - 36), "picture tokens in the step (1, 2, 4, 8, 16 edits)", INK, font, anchor="mm")
    draw.text((MARGIN, MARGIN / 2), "ms per step", INK, font, anchor="lm")
    return picture
