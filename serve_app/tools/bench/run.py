"""Runs the benchmark: reads the configuration, loads or makes weights, measures, prints and writes the results. Or
computes rooflines, which needs neither weights nor a GPU."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from serve_app.config import RANDOM_FILE, AppSettings, WeightsSource
from serve_app.editor.loading.load import load_pipeline
from serve_app.errors import CheckpointError, ConfigError
from serve_app.tools.bench.cards import CARDS
from serve_app.tools.bench.engine import Bench, Result, run_sections, stages
from serve_app.tools.bench.paper_report import WIDTH, print_paper
from serve_app.tools.bench.random_weights import random_pipeline
from serve_app.tools.bench.report import plot_step_cost, print_table, write_json
from serve_app.weights.architectures import find_edit_model

EDIT_2511 = WeightsSource(path="Qwen/Qwen-Image-Edit-2511")


@dataclass(frozen=True)
class BenchOptions:
    """The command's options. `config`: the tiny file if None. `card`: a key of `CARDS`."""

    config: Path | None
    random_weights: bool
    rounds: int
    json: Path | None
    plot: Path | None
    paper: bool = False
    card: str = "h200"


def run_bench(options: BenchOptions) -> None:
    """Measure, print the table, and write the files named in the options.

    Raises:
        StartupError: the configuration or its weights cannot be used on this machine.
    """
    if options.paper:
        compute(options)
        return
    path = options.config or RANDOM_FILE
    settings = read_settings(path)
    make = random_pipeline if options.random_weights else load_pipeline
    pipeline = make(settings.editor)
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        rows, facts = run_sections(
            settings, pipeline, options.rounds, lambda name: bar.update(task, advance=1, description=name)
        )
    result = Result(path.name, options.rounds, rows, facts)
    print_table(result, Console())
    if options.json is not None:
        write_json(result, options.json)
    if options.plot is not None:
        plot_step_cost(result).save(options.plot)


def compute(options: BenchOptions) -> None:
    """Print the computed rooflines of the configured architecture, or of Qwen-Image-Edit-2511. Where the file is given
    and its device is there, the stages are measured, too, with random weights.

    Raises:
        StartupError: as `run_bench`, or the architecture is unknown.
    """
    settings = None if options.config is None else read_settings(options.config)
    base = EDIT_2511 if settings is None else settings.editor.base
    model = find_edit_model(base)
    if model is None:
        raise CheckpointError(f"{base.path} is not an architecture that can be counted without its files.")
    measured_s = None
    if settings is not None and torch.cuda.is_available():
        measured_s = measured_stages(settings, options.rounds)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    print_paper(model, CARDS[options.card], console, measured_s)


def measured_stages(settings: AppSettings, rounds: int) -> dict[str, float]:
    """Medians of the stages of an edit on this machine in seconds, by the names of the computed rows."""
    bench = Bench(settings, random_pipeline(settings.editor), rounds, lambda: None)
    stages(bench)
    step = f"step, bf16, {'compiled' if settings.editor.compile else 'eager'}"
    return {step if row.name == "step" else row.name: row.median_s for row in bench.rows}


def read_settings(path: Path) -> AppSettings:
    """The application's settings in a Serve file; errors as `read_application`."""
    return read_application(path)[1]


def read_application(path: Path) -> tuple[dict[str, Any], AppSettings]:
    """The application as a Serve file has it, and its settings. The rest of the file is not checked, which would need
    Ray.

    Raises:
        ConfigError: the file holds no valid settings of this application.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as text:  # by whose name YAML's errors say where they are
            application = yaml.safe_load(text)["applications"][0]
        return application, AppSettings.model_validate(application["args"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise ConfigError(f"{path} is not a Serve config of this application: {problem}") from problem
