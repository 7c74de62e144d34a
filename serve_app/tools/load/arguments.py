"""The options of `camera-edit bench serve`. Imports nothing heavy, since `--help` reads them."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from serve_app.tools.numbers import above_0, at_least_0, at_least_1

HELP = "load on a running server: requests per second and latencies, seen from outside"
EXAMPLES = (
    "camera-edit bench serve http://127.0.0.1:8000 --clients 16",
    "camera-edit bench serve http://127.0.0.1:8000 --dialect openai --rate 2 --slo 5 --mix mix.json --json",
)


@dataclass(frozen=True)
class LoadOptions:
    """The command's options. Exactly one of `rate` (requests per second, an open loop) and `clients` (a closed loop) is
    set. All times in seconds."""

    url: str
    dialect: str
    rate: float | None
    clients: int | None
    mix: Path | None = None
    slo: float | None = None
    key: str | None = None
    json: bool = False
    seconds: float = 60.0
    warm_up: float = 10.0
    timeout: float = 600.0
    seed: int = 0

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> "LoadOptions":
        return cls(**{field.name: getattr(namespace, field.name) for field in fields(cls)})


def add_load_arguments(serve: argparse.ArgumentParser) -> None:
    """Add the options of `LoadOptions`."""
    serve.add_argument("url", metavar="URL", help="of the server; for a RunPod endpoint https://api.runpod.ai/v2/ID")
    serve.add_argument("--dialect", choices=("runpod", "openai"), default="runpod", help="default: runpod")
    loop = serve.add_mutually_exclusive_group(required=True)
    loop.add_argument("--rate", type=above_0, metavar="N", help="requests per second at random times, an open loop")
    loop.add_argument(
        "--clients", type=at_least_1, metavar="N", help="clients with one request each at a time, a closed loop"
    )
    serve.add_argument("--mix", type=Path, metavar="FILE", help="kinds of edits (default: a megapixel, 4 steps)")
    serve.add_argument(
        "--slo", type=above_0, metavar="S", help="report the fraction of requests answered within S seconds"
    )
    serve.add_argument("--seconds", type=above_0, metavar="S", default=60, help="to measure for (default: 60)")
    serve.add_argument(
        "--warm-up", type=at_least_0, metavar="S", default=10, help="before that, not counted (default: 10)"
    )
    serve.add_argument("--timeout", type=above_0, metavar="S", default=600, help="of one request (default: 600)")
    serve.add_argument("--seed", type=int, metavar="N", default=0, help="of times and pictures (default: 0)")
    serve.add_argument("--key", metavar="KEY", help="API key (default: $CAMERA_EDIT_API_KEY)")
    serve.add_argument("--json", action="store_true", help="print JSON")
