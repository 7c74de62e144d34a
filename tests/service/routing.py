"""Measure what `editor.routing` does: `python -m tests.service.routing [--orbits 20] [--clients 4] [--edits 240]`

Three nodes on this machine with an editor and an ingress each. Clients send orbits of eight views, then as many unlike
edits; with `picture`, and again with `balanced`. Exit status 1: with `picture`, fewer than 0.8 of the orbits' pictures
were found encoded, or an editor drew more than 1.5 times the mean of the unlike edits; or a request failed.
"""

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from ray import serve
from ray.serve.handle import DeploymentHandle
from rich.console import Console

from serve_app.config import Routing
from serve_app.tools.load.load import closed_loop
from serve_app.tools.load.mix import EditKind
from tests.service.cluster import config_in, deploy, three_nodes
from tests.service.conftest import Service
from tests.service.load import Record, errors_of, send_load

NUM_EDITORS = 3
ORBIT = EditKind(size="64x64", fields={"views": "orbit"})
UNLIKE = EditKind(size="64x64")
MIN_HIT_RATE, MAX_SHARE = 0.8, 1.5


@dataclass(frozen=True)
class Counts:
    """Of all editors, since their start.

    Attributes:
        completed: edits by editor.
    """

    hits: int
    misses: int
    completed: tuple[int, ...]

    def __sub__(self, before: "Counts") -> "Counts":
        completed = zip(self.completed, before.completed, strict=True)
        return Counts(self.hits - before.hits, self.misses - before.misses, tuple(a - b for a, b in completed))

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)

    @property
    def largest_share(self) -> float:
        """The busiest editor's edits as a multiple of the mean."""
        return max(self.completed) * len(self.completed) / max(1, sum(self.completed))


@dataclass(frozen=True)
class Measured:
    """What was counted while orbits ran, and while unlike edits did, and the errors of requests."""

    orbits: Counts
    unlike: Counts
    errors: list[str]


async def counts(handle: "DeploymentHandle[Any]") -> Counts:
    """What the editors have counted. One handle has them in the same order each time."""
    stats, caches = [await handle.broadcast(name).results_async(timeout_s=30) for name in ("stats", "cache_stats")]
    latents = [each["latents"] for each in caches]
    completed = tuple(each.completed for each in stats)
    return Counts(sum(each.hits for each in latents), sum(each.misses for each in latents), completed)


async def send(service: Service, kind: EditKind, number: int, num_clients: int, seed: int) -> list[str]:
    """Send so many requests; returns the errors."""
    loop = partial(closed_loop, num_clients=num_clients, goes_on=lambda sent: sent < number)
    return list(errors_of(await send_load(service, loop, (kind,), Record(), seed=seed)).elements())


async def measure(service: Service, num_orbits: int, num_edits: int, num_clients: int) -> Measured:
    """Orbits, then unlike edits from eight times as many clients, which is as many edits at once."""
    handle = serve.get_deployment_handle("Editor", "camera-edit")
    begin = await counts(handle)
    errors = await send(service, ORBIT, num_orbits, num_clients, seed=1)
    between = await counts(handle)
    errors += await send(service, UNLIKE, num_edits, 8 * num_clients, seed=2)
    return Measured(between - begin, await counts(handle) - between, errors)


def run(routing: Routing, options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder, three_nodes(head_works=True):
        service = deploy(config_in(Path(folder), NUM_EDITORS, routing=routing))
        return asyncio.run(measure(service, options.orbits, options.edits, options.clients))


def problems(found: Measured) -> list[str]:
    """What is wrong with a run with `picture`."""
    wrong = [f"a request failed: {error}" for error in found.errors]
    if found.orbits.hit_rate < MIN_HIT_RATE:
        wrong.append(f"{found.orbits.hit_rate:.2f} of the orbits' pictures were encoded, {MIN_HIT_RATE} wanted")
    if found.unlike.largest_share > MAX_SHARE:
        wrong.append(f"an editor drew {found.unlike.largest_share:.2f} times the mean, {MAX_SHARE} allowed")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--orbits", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4, help="with one orbit each at a time")
    parser.add_argument("--edits", type=int, default=240, help="unlike ones")
    parser.add_argument("--routing", choices=("picture", "balanced"), action="append", help="default: both")
    options = parser.parse_args()
    console, wrong = Console(width=120), []
    for name in options.routing or ("picture", "balanced"):
        found = run(cast(Routing, name), options)
        console.print(
            f"{name}: {found.orbits.hit_rate:.2f} of the orbits' pictures found encoded, edits by editor "
            f"{list(found.orbits.completed)}; unlike edits by editor {list(found.unlike.completed)}, at most "
            f"{found.unlike.largest_share:.2f} times the mean"
        )
        wrong += problems(found) if name == "picture" else [f"a request failed: {each}" for each in found.errors]
    for problem in wrong:
        console.print(f"PROBLEM: {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
