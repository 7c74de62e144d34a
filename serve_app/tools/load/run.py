"""Runs `camera-edit bench serve`: sends a load to a server and prints what it saw."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import httpx2
from rich.console import Console

from serve_app.tools.connection import CONNECT_S, Connection, find_connection
from serve_app.tools.load.arguments import LoadOptions
from serve_app.tools.load.dialects import DIALECTS, Send
from serve_app.tools.load.load import Make, Outcome, arrival_times, closed_loop, open_loop
from serve_app.tools.load.mix import LoadEdit, Mix, edits_of, read_mix
from serve_app.tools.load.report import Figures, figures_of, print_figures


def run_load(options: LoadOptions) -> bool:
    """Send the load and print its figures; returns whether any request of the measured time succeeded.

    Raises:
        UsageError: an option or the mix cannot be used.
        OSError: the mix cannot be read.
        ServiceUnavailable: nothing answers at the URL.
    """
    mix, connection = read_mix(options.mix), find_connection(options.url, options.key)
    connection.check()
    figures = measure(options, mix, connection)
    if options.json:
        print(json.dumps(_document(options, mix, figures), indent=1))
    else:
        print_figures(figures, options.slo, Console())
    return figures.latency_s is not None


def measure(options: LoadOptions, mix: Mix, connection: Connection) -> Figures:
    """Send the load and return its figures."""
    outcomes = asyncio.run(send(options, mix, connection))
    return figures_of(outcomes, options.warm_up, options.seconds, options.slo)


async def send(options: LoadOptions, mix: Mix, connection: Connection) -> list[Outcome]:
    """Send the load; returns what became of each request."""
    end_s = options.warm_up + options.seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx2.Timeout(options.timeout, connect=CONNECT_S)
    settings: dict[str, Any] = connection.client_options
    async with httpx2.AsyncClient(base_url=connection.url, limits=limits, timeout=timeout, **settings) as http:
        make = _maker(http, options.dialect, edits_of(mix, options.seed))
        if options.rate is not None:
            times = takewhile(lambda due_s: due_s < end_s, arrival_times(options.rate, options.seed))
            return await open_loop(make, times)
        end_at = time.monotonic() + end_s
        return await closed_loop(make, options.clients or 1, lambda _: time.monotonic() < end_at)


def _maker(http: httpx2.AsyncClient, dialect: str, edits: Iterator[LoadEdit]) -> Make:
    prepare = DIALECTS[dialect]

    def make(number: int) -> Send:
        return prepare(http, next(edits))

    return make


def _document(options: LoadOptions, mix: Mix, figures: Figures) -> dict[str, Any]:
    return {
        "url": options.url,
        "dialect": options.dialect,
        "rate_per_s": options.rate,
        "clients": options.clients,
        "mix": [kind.model_dump() for kind in mix],
        "seed": options.seed,
        "seconds": options.seconds,
        "warm_up_s": options.warm_up,
        "slo_s": options.slo,
        **asdict(figures),
    }
