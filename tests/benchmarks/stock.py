"""Compare the service with a plain server on the same weights: `python -m tests.benchmarks.stock --output FILE`

Both servers run by turns, each alone on the machine: `tests.benchmarks.stock_server`, whose torch uses all cores, and
`serve run configs/random-cpu.yaml`, with an editor of one thread for each of two cores. The load is that of
`camera-edit bench serve`, unlike edits of 256 x 256 pixels in 4 steps, from 16 clients and then from one. The figures
are medians of the rounds. Exit status 1 if a target is missed or a request failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import requests
import yaml
from rich.console import Console

from serve_app.tools.bench.report import circumstances
from serve_app.tools.connection import Connection
from serve_app.tools.load.arguments import LoadOptions
from serve_app.tools.load.mix import EditKind
from serve_app.tools.load.report import Figures, Quantiles
from serve_app.tools.load.run import measure
from tests.conftest import ROOT
from tests.processes import free_port
from tests.service.conftest import host_in
from tests.waiting import until

MIX = (EditKind(size="256x256"),)
MANY = 16
NUM_EDITORS = 2
TARGETS = {"throughput": (4.0, 1), "p95": (0.3, -1), "p50 of one client": (0.5, -1)}
"""What the service is to be of the plain server: at least (1) or at most (-1)."""


@dataclass(frozen=True)
class Turn:
    """One server's figures in one round, by number of clients."""

    server: str
    by_clients: dict[int, Figures]


@contextmanager
def stock_server() -> Iterator[str]:
    """The plain server in its own process; yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.stock_server", "--port", str(port)], cwd=ROOT)
    try:
        until(lambda: is_up(url) or process.poll() is not None, timeout_s=180)
        if process.poll() is not None:
            raise RuntimeError(f"the plain server ended with status {process.returncode} before it answered")
        yield url
    finally:
        process.terminate()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def service() -> Iterator[str]:
    """The service in processes of its own; yields its URL."""
    with tempfile.TemporaryDirectory() as folder:
        host = host_in(Path(folder), jobs={"store": {"kind": "sqlite", "path": f"{folder}/jobs.sqlite3"}})
        config = yaml.safe_load(host.file.read_text())
        (editor,) = (each for each in config["applications"][0]["deployments"] if each["name"] == "Editor")
        editor["num_replicas"] = NUM_EDITORS
        editor["ray_actor_options"]["num_cpus"] /= NUM_EDITORS
        host.file.write_text(yaml.safe_dump(config))
        try:
            host.start()
            yield host.service.url
        finally:
            host.stop()


SERVERS: dict[str, Callable[[], Any]] = {"stock": stock_server, "service": service}


def turns(rounds: int, seconds: float, warm_up_s: float, report: Callable[[str], None]) -> list[Turn]:
    """Measure the servers by turns; the order changes with each round."""
    found = []
    for number in range(rounds):
        for name in list(SERVERS)[:: 1 if number % 2 == 0 else -1]:
            with SERVERS[name]() as url:
                found.append(
                    Turn(name, {clients: load(url, clients, seconds, warm_up_s, number) for clients in (MANY, 1)})
                )
            report(f"round {number + 1}: {name} is measured")
    return found


def load(url: str, clients: int, seconds: float, warm_up_s: float, seed: int) -> Figures:
    """The figures of so many seconds, or of twice as many until some edit begins and ends within them: a slow machine
    may take longer for one."""
    options = LoadOptions(url, "openai", None, clients, seconds=seconds, warm_up=warm_up_s, seed=seed)
    while True:
        figures = measure(options, MIX, Connection(url))
        if figures.errors or (figures.latency_s is not None and figures.requests_per_s):
            return figures
        options = replace(options, seconds=2 * options.seconds)


def ratios(found: list[Turn]) -> dict[str, float]:
    """Medians of the service's figures as multiples of the plain server's."""

    def of(server: str, figure: Callable[[Turn], float]) -> float:
        return median(figure(turn) for turn in found if turn.server == server)

    figures: dict[str, Callable[[Turn], float]] = {
        "p95": lambda turn: latency(turn, MANY).p95,
        "throughput": lambda turn: turn.by_clients[MANY].requests_per_s,
        "p50 of one client": lambda turn: latency(turn, 1).p50,
    }
    return {name: of("service", figure) / of("stock", figure) for name, figure in figures.items()}


def latency(turn: Turn, clients: int) -> Quantiles:
    figures = turn.by_clients[clients]
    if figures.latency_s is None or not figures.requests_per_s:
        raise RuntimeError(f"{turn.server} answered no edit of {clients} clients: {figures.errors}")
    return figures.latency_s


def missed(found: list[Turn], measured: dict[str, float]) -> list[str]:
    """The targets that are missed, and the errors of requests."""
    errors = [
        f"{turn.server}, {clients} clients: {figures.errors}"
        for turn in found
        for clients, figures in turn.by_clients.items()
        if figures.errors
    ]
    misses = [
        f"{name}: {measured[name]:.2f} times, {target:g} wanted"
        for name, (target, sign) in TARGETS.items()
        if sign * (measured[name] - target) < 0
    ]
    return errors + misses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stock", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="to measure each load for (default %(default)s)")
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before that (default %(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    found = turns(options.rounds, options.seconds, options.warm_up, console.print)
    measured = ratios(found)
    mix, seconds = [kind.model_dump() for kind in MIX], options.seconds
    document = {**circumstances(), "mix": mix, "seconds": seconds, "ratios": measured}
    document["turns"] = [asdict(turn) for turn in found]
    console.print_json(json.dumps({"ratios": measured}))
    if options.output is not None:
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    problems = missed(found, measured)
    for problem in problems:
        console.print(f"MISSED: {problem}", style="red")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
