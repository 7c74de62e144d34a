"""The options of `camera-edit plan`. Imports nothing heavy, since `--help` reads them."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

from serve_app.tools.numbers import above_0, at_least_0, at_least_1, number

_SHARE = number(float, "a number between 0 and 1", lambda value: 0 < value < 1)

HELP = "plan GPUs for a mix of edits: editors, rewriters, memory, prices, and simulated latencies"
EXAMPLES = (
    "camera-edit plan --costs paper-h100.txt",
    "camera-edit plan --costs figures.json --mix mix.json --gpus 8 --gpus 100 --gpu-price 2.5 --json",
)


@dataclass(frozen=True)
class PlanOptions:
    """The command's options as they are written; `add_plan_arguments` describes them."""

    costs: Path
    step: str
    config: Path | None
    mix: Path | None
    gpus: list[int]
    load: float
    outside: float
    cpu: float
    rewrites: float | None
    gpu_price: float
    core_price: float
    gib_price: float
    edits: int
    json: bool

    @classmethod
    def of(cls, namespace: argparse.Namespace) -> "PlanOptions":
        return cls(**{field.name: getattr(namespace, field.name) for field in fields(cls)})


def add_plan_arguments(plan: argparse.ArgumentParser) -> None:
    """Add the options of `PlanOptions`."""
    plan.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        required=True,
        help="what an edit costs: the JSON of `bench engine`, or the text that `bench engine --paper` prints",
    )
    plan.add_argument(
        "--step", metavar="NAME", default="bf16, compiled", help="of the computed steps (default: 'bf16, compiled')"
    )
    plan.add_argument("--config", type=Path, metavar="FILE", help="a Serve file (default: configs/gpu-8x80gb.yaml)")
    plan.add_argument("--mix", type=Path, metavar="FILE", help="kinds of edits (default: a megapixel, 4 steps)")
    plan.add_argument(
        "--gpus", type=at_least_1, metavar="N", action="append", help="may be repeated (default: 1, 8, 100, 1000)"
    )
    plan.add_argument("--load", type=_SHARE, metavar="X", default=0.7, help="share of the capacity used (default: 0.7)")
    plan.add_argument(
        "--outside",
        type=at_least_0,
        metavar="S",
        default=0.2,
        help="of an edit outside the engine, seconds (default: 0.2)",
    )
    plan.add_argument(
        "--cpu",
        type=at_least_0,
        metavar="S",
        default=0.4,
        help="CPU time of an edit outside the editors (default: 0.4)",
    )
    plan.add_argument(
        "--rewrites", type=above_0, metavar="N", help="prompts per second of a rewriter (default: computed, H100)"
    )
    plan.add_argument("--gpu-price", type=at_least_0, metavar="P", default=3.0, help="of a GPU and hour (default: 3)")
    plan.add_argument(
        "--core-price", type=at_least_0, metavar="P", default=0.04, help="of a core and hour (default: 0.04)"
    )
    plan.add_argument(
        "--gib-price", type=at_least_0, metavar="P", default=0.01, help="of a GiB and hour (default: 0.01)"
    )
    plan.add_argument(
        "--edits", type=at_least_1, metavar="N", default=1500, help="to simulate for each latency (default: 1500)"
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
