"""The benchmark's figures for people and for programs."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from serve_app.tools.bench.engine import Result

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def print_table(result: Result, console: Console) -> None:
    """One block for each section: medians, how many times faster than its first line, and for the device's stages the
    fraction of the floor that they reach."""
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
    """The same figures with date, device and versions."""
    document = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_name(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _LIBRARIES},
        **asdict(result),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def device_name() -> str:
    """The card, or the processor and how many of its threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
