"""Check that nothing grows: `python -m tests.service.soak [--requests 10000] [--clients 8] [--leak]`

Sends requests to the tiny app, a tenth of them broken, and watches memory, open files and threads of all its
processes. Exit status 1: an answer of 500, a memory that grows by a MiB and more per 1,000 requests after the warm-up,
or files or threads that grow. `--leak` runs an app that leaks 8 KiB per request, and must exit with 1.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.service.conftest import Service, host_in
from tests.service.load import EDIT, post, processes, run_clients

WARM_UP = 0.3
"""The part of the requests after which memory is expected to be level."""

MAX_SLOPE_MIB = 1.0
MAX_GROWTH = 8
"""Open files and threads that may come and go with the connections of the clients."""

BROKEN = (
    {**EDIT, "num_inference_steps": 0},
    {**EDIT, "image": "@@@"},
    {**EDIT, "image": "aGVsbG8="},
    {**EDIT, "azimut": 1},
    {"prompt": "x"},
)


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
        statuses, samples = soak(service, pid, options.requests, options.clients)
    return report(statuses, samples)


@contextmanager
def started(folder: Path, leak: bool) -> Iterator[tuple[Service, int]]:
    """Run the tiny app; yields the service and the pid of `serve run`."""
    build = "tests.service.leaky:build" if leak else "serve_app.app:build"
    jobs = {"store": {"kind": "sqlite", "path": str(folder / "jobs")}}
    host = host_in(folder, build=build, jobs=jobs)
    try:
        host.start()
        yield host.service, host.process.pid
    finally:
        host.stop()


def soak(
    service: Service, pid: int, num_requests: int, num_clients: int
) -> tuple[Counter[int], dict[str, list[Sample]]]:
    statuses: Counter[int] = Counter()
    samples: dict[str, list[Sample]] = {}
    every = max(1, num_requests // 50)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("requests", total=num_requests)

        def work(number: int) -> None:
            fields = BROKEN[number // 10 % len(BROKEN)] if number % 10 == 0 else {**EDIT, "seed": number % 97}
            path = "/runsync" if number % 2 else "/v2/any/runsync"
            result, _ = post(service, path, {"input": fields})
            statuses[result.http_status] += 1
            if number % every == 0:
                for name, sample in sample_processes(pid, number).items():
                    samples.setdefault(name, []).append(sample)
            bar.advance(task)

        run_clients(num_clients, lambda number: number < num_requests, work)
    return statuses, samples


def sample_processes(pid: int, number: int) -> dict[str, Sample]:
    found = {}
    for name, process in processes(pid).items():
        try:
            found[name] = Sample(number, process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
        except psutil.Error:
            continue
    return found


def report(statuses: Counter[int], samples: dict[str, list[Sample]]) -> int:
    table = Table("process", "RSS at the end, MiB", "MiB per 1,000 requests", "files", "threads")
    problems = [f"{statuses[code]} answers of {code}" for code in statuses if code >= 500 or code == 0]
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
    console.print(f"answers by status: {dict(sorted(statuses.items()))}")
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
