"""What a number of GPUs holds and costs: cells, editors, rewriters, ingresses, memory of Redis, and prices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.config import AppSettings, JobSettings
from serve_app.tools.load.mix import EditKind, Mix
from serve_app.tools.plan.costs import Costs
from serve_app.tools.plan.setup import Setup

MAX_CELL_GPUS = 32
"""Of one Ray cluster with one Jobs replica and one Redis."""

INGRESS_CORES = 2
INGRESS_LOAD = 0.6
"""Of an ingress' cores, so that a burst finds some free."""

PREPARED_BYTES_PER_PX = 3.4
"""Of a picture in the store: the VAE's pixels and the text encoder's. A prepared megapixel has 3.4 MiB."""

RESULT_BYTES_PER_PX = 1.5
REDIS_OVERHEAD = 1.25
GIB = 2**30


@dataclass(frozen=True)
class Assumptions:
    """What no file of this repository says.

    Attributes:
        load: share of the capacity that is to be used at the planned rate.
        cpu_s: of all processes but the editors, for each picture.
        rewrites_per_s: of one rewriter with a GPU of its own.
        gpu_price, core_price, gib_price: per hour, of a GPU, a CPU core for ingresses, and a GiB of Redis.
    """

    load: float
    cpu_s: float
    rewrites_per_s: float
    gpu_price: float
    core_price: float
    gib_price: float


@dataclass(frozen=True)
class Fleet:
    """A plan for a number of GPUs; `redis_gib` and `cell_gpus` are of one cell, the largest, all else of all.

    Attributes:
        editors: with the rewriter on the same GPU where there is only one.
        pictures_per_s: at the planned load.
    """

    gpus: int
    cells: int
    cell_gpus: int
    editors: int
    rewriters: int
    ingresses: int
    redis_gib: float
    pictures_per_s: float
    price_per_1000: float


def plan_fleet(gpus: int, mix: Mix, setup: Setup, settings: AppSettings, costs: Costs, assumed: Assumptions) -> Fleet:
    """The fleet of so many GPUs, in cells of nearly equal size."""
    cells = math.ceil(gpus / MAX_CELL_GPUS)
    sizes = [gpus // cells + (number < gpus % cells) for number in range(cells)]
    rewriters = [num_rewriters(size, mix, setup, costs, assumed) for size in sizes]
    editors = [size - own for size, own in zip(sizes, rewriters, strict=True)]
    rates = [
        assumed.load * cell_capacity(*each, mix, setup, costs, assumed) for each in zip(editors, rewriters, strict=True)
    ]
    cores = INGRESS_CORES * INGRESS_LOAD
    fewest = 1 if gpus == 1 else 2  # of a cell: one may be replaced
    ingresses = sum(max(fewest, math.ceil(rate * assumed.cpu_s / cores)) for rate in rates)
    redis = [redis_bytes(rate, mix, setup, settings.jobs) / GIB for rate in rates]
    hourly = gpus * assumed.gpu_price + ingresses * INGRESS_CORES * assumed.core_price + sum(redis) * assumed.gib_price
    return Fleet(
        gpus,
        cells,
        sizes[0],
        sum(editors),
        sum(rewriters),
        ingresses,
        redis[0],
        sum(rates),
        1000 * hourly / (3600 * sum(rates)),
    )


def num_rewriters(gpus: int, mix: Mix, setup: Setup, costs: Costs, assumed: Assumptions) -> int:
    """The number of a cell's rewriters with which it draws most; a single GPU is shared."""
    if gpus == 1 or not rewritten(mix):
        return 0
    return max(range(1, gpus), key=lambda own: cell_capacity(gpus - own, own, mix, setup, costs, assumed))


def cell_capacity(editors: int, rewriters: int, mix: Mix, setup: Setup, costs: Costs, assumed: Assumptions) -> float:
    """Pictures per second of a cell that is never idle."""
    picture_s, rewrites = sum(share * engine_s(kind, setup, costs) for kind, share in shares(mix)), rewritten(mix)
    if not rewrites:
        return editors / picture_s
    if not rewriters:
        return 1 / (picture_s + rewrites / assumed.rewrites_per_s)
    return min(editors / picture_s, rewriters * assumed.rewrites_per_s / rewrites)


def engine_s(kind: EditKind, setup: Setup, costs: Costs) -> float:
    """Seconds of an editor for one picture of this kind, in full steps."""
    tokens, views = setup.tokens(kind), kind.views if setup.routing == "picture" else 1
    num_packed = max(1, setup.max_pack_tokens // tokens)
    encode_s = costs.encode_token_s * sum(setup.reference_tokens(kind)) / views
    num_sequences = setup.num_prompts(kind)
    step_s = costs.step([tokens // num_sequences] * num_sequences * num_packed) / num_packed
    decode_s = costs.decode_token_s * kind.output.num_tokens
    return costs.text_s * setup.num_prompts(kind) + encode_s + kind.num_inference_steps * step_s + decode_s


def redis_bytes(rate_per_s: float, mix: Mix, setup: Setup, jobs: JobSettings) -> float:
    """Of a cell's Redis: all places of the queue taken, and the results of jobs for as long as they are kept."""
    prepared = sum(share * kind.references * setup.sizes.vae_area_px for kind, share in shares(mix))
    result = sum(share * kind.output.pixels for kind, share in shares(mix))
    queued = (jobs.max_active_jobs + jobs.max_queued_jobs) * prepared * PREPARED_BYTES_PER_PX
    kept = rate_per_s * jobs.async_retention_s * result * RESULT_BYTES_PER_PX
    return REDIS_OVERHEAD * (queued + kept)


def rewritten(mix: Mix) -> float:
    """The share of edits whose prompt is rewritten."""
    return sum(share for kind, share in shares(mix) if kind.rewrite_prompt)


def shares(mix: Mix) -> Sequence[tuple[EditKind, float]]:
    total = sum(kind.weight for kind in mix)
    return [(kind, kind.weight / total) for kind in mix]
