"""Check that nothing grows: `python -m tests.service.soak [--requests 10000] [--clients 8] [--leak]`

Sends requests to the tiny app, a tenth of them broken, and watches memory, open files and threads of all its
processes. Exit status 1: a whole request failed, a memory that grows by a MiB and more per 1,000 requests after the
warm-up, or files or threads that grow. `--leak` runs an app that leaks 8 KiB per request, and must exit with 1.
"""

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from serve_app.tools.load.load import closed_loop
from serve_app.tools.load.mix import EditKind
from tests.service.conftest import Service, host_in
from tests.service.load import Record, processes, send_load

WARM_UP = 0.3
"""The part of the requests after which memory is expected to be level."""

SMALL_CACHES = {"latents_cache_bytes": 2**20, "prompts_cache_bytes": 4 * 2**20}
"""Full before the end of the warm-up: all pictures are unlike."""

MAX_SLOPE_MIB = 1.0
MAX_GROWTH = 8
"""Open files and threads that may come and go with the connections of the clients."""

PICTURE = "a picture"
GOOD = EditKind(weight=9, size="64x64", num_inference_steps=1)
BROKEN = (
    {"num_inference_steps": 0},
    {"image": "@@@"},
    {"image": "aGVsbG8="},
    {"azimut": 1},
    {"image": None},
)
MIX = (GOOD, *(EditKind(weight=1 / len(BROKEN), size="64x64", fields=fields) for fields in BROKEN))


@dataclass(frozen=True)
class Sample:
    requests: int
    rss_mib: float
    files: int
    threads: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--leak", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), options.leak) as (service, pid):
        answers, samples = soak(service, pid, options.requests, options.clients)
    return report(answers, samples)


@contextmanager
def started(folder: Path, leak: bool) -> Iterator[tuple[Service, int]]:
    """Run the tiny app; yields the service and the pid of `serve run`."""
    build = "tests.service.leaky:build" if leak else "serve_app.app:build"
    jobs = {"store": {"kind": "sqlite", "path": str(folder / "jobs")}}
    host = host_in(folder, build=build, jobs=jobs, editor=SMALL_CACHES)
    try:
        host.start()
        yield host.service, host.process.pid
    finally:
        host.stop()


def soak(
    service: Service, pid: int, num_requests: int, num_clients: int
) -> tuple[Counter[str], dict[str, list[Sample]]]:
    """Answers by kind, and samples by process."""
    samples: dict[str, list[Sample]] = {}
    every = max(1, num_requests // 50)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("requests", total=num_requests)

        def goes_on(number: int) -> bool:
            if number % every == 0:
                for name, sample in sample_processes(pid, number).items():
                    samples.setdefault(name, []).append(sample)
            bar.update(task, completed=number)
            return number < num_requests

        loop = partial(closed_loop, num_clients=num_clients, goes_on=goes_on)
        outcomes = asyncio.run(send_load(service, loop, MIX, Record()))
    return Counter(outcome.error or PICTURE for outcome in outcomes), samples


def sample_processes(pid: int, number: int) -> dict[str, Sample]:
    found = {}
    for name, process in processes(pid).items():
        try:
            found[name] = Sample(number, process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
        except psutil.Error:
            continue
    return found


def report(answers: Counter[str], samples: dict[str, list[Sample]]) -> int:
    table = Table("process", "RSS at the end, MiB", "MiB per 1,000 requests", "files", "threads")
    problems = [f"{answers[kind]} requests: {kind}" for kind in answers if kind not in (PICTURE, "HTTP 400")]
    problems += [f"no request: {kind}" for kind in (PICTURE, "HTTP 400") if not answers[kind]]
    last = max(sample.requests for each in samples.values() for sample in each)
    for name, all_samples in sorted(samples.items()):
        level = [sample for sample in all_samples if sample.requests >= WARM_UP * last]
        if len(level) < 5:
            continue  # A short-lived process of Ray's.
        slope = 1000 * slope_of(level)
        files, threads = (growth(level, kind) for kind in ("files", "threads"))
        table.add_row(name, f"{level[-1].rss_mib:.0f}", f"{slope:+.2f}", f"{files:+.0f}", f"{threads:+.0f}")
        if slope >= MAX_SLOPE_MIB:
            problems.append(f"{name} grows by {slope:.2f} MiB per 1,000 requests")
        if max(files, threads) > MAX_GROWTH:
            problems.append(f"{name} has {files:+.0f} files and {threads:+.0f} threads")
    console = Console(width=120)
    console.print(table)
    console.print(f"answers: {dict(sorted(answers.items()))}")
    for problem in problems:
        console.print(f"PROBLEM: {problem}")
    return 1 if problems else 0


def slope_of(samples: list[Sample]) -> float:
    """MiB per request, by least squares."""
    x, y = ([getattr(sample, name) for sample in samples] for name in ("requests", "rss_mib"))
    return float(np.polyfit(x, y, 1)[0])


def growth(samples: list[Sample], kind: str) -> float:
    """From the first third's median to the last third's."""
    values = [getattr(sample, kind) for sample in samples]
    third = max(1, len(values) // 3)
    return float(np.median(values[-third:]) - np.median(values[:third]))


if __name__ == "__main__":
    sys.exit(main())
