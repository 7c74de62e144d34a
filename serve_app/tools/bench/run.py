"""Runs the benchmark: reads the configuration, loads or makes weights, measures, prints and writes the results."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from serve_app.config import RANDOM_FILE, AppSettings
from serve_app.editor.loading.load import load_pipeline
from serve_app.errors import ConfigError
from serve_app.tools.bench.engine import Result, run_sections
from serve_app.tools.bench.random_weights import random_pipeline
from serve_app.tools.bench.report import plot_step_cost, print_table, write_json


@dataclass(frozen=True)
class BenchOptions:
    """The command's options. `config`: the tiny file if None."""

    config: Path | None
    random_weights: bool
    rounds: int
    json: Path | None
    plot: Path | None


def run_bench(options: BenchOptions) -> None:
    """Measure, print the table, and write the files named in the options.

    Raises:
        StartupError: the configuration or its weights cannot be used on this machine.
    """
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


def read_settings(path: Path) -> AppSettings:
    """The application's settings in a Serve file. The rest of the file is not checked, which would need Ray.

    Raises:
        ConfigError: the file holds no valid settings of this application.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        return AppSettings.model_validate(document["applications"][0]["args"])
    except (yaml.YAMLError, KeyError, IndexError, TypeError, ValueError) as problem:
        raise ConfigError(f"{path} is not a Serve config of this application: {problem}") from problem
