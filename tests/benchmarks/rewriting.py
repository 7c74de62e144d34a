"""Measure what batches do to the times of rewrites: `python -m tests.benchmarks.rewriting --output FILE`.

The rewriter has tiny random weights and one torch thread; its cache of rewrites is off. By turns:

- before: eight prompts one after another, by one plain call of `generate` each.
- alone: the same, through the batches of the service.
- at once: the same prompts together.

Prompts and pictures have unlike sizes. Measured with one picture for each prompt, as most edits have, and with one to
four. Exit status 1 if with one picture "at once" has less than 4 times the throughput of "before" or "alone" takes more
than 1.05 times as long, or if any answer differs.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console

from serve_app.config import RewriterSettings
from serve_app.edits.request import Pictures, PreparedPicture, Rewrite, RewriteRequest
from serve_app.rewriter.batches import RewriteBatches
from serve_app.rewriter.deployment import BoundedRewriter
from serve_app.rewriter.model import RewriterModel, Row
from tests.conftest import RANDOM_FILE, settings_in

NUM_PROMPTS = 8
SIDES_PX = (96, 128, 160, 256)
WORDS = ("make", "the", "sky", "of", "picture", "one", "look", "like", "a", "warm", "evening", "by", "the", "sea")

Request = tuple[RewriteRequest, Pictures]
Run = Callable[[Sequence[Request]], Awaitable[list[str]]]


class RawModel(RewriterModel):
    """Returns raw answers as rewrites: those of random weights hold no instruction."""

    def rewrite(self, rows: Sequence[Row]) -> list[Rewrite]:
        return [Rewrite(answer) for answer in self.generate(rows)]

    @torch.inference_mode()
    def generate_alone(self, job: RewriteRequest, pictures: Pictures) -> str:
        """One call of `generate`, with no batch and no shared prefix."""
        inputs = self.prepare(job.prompt, pictures).inputs
        tokens = self._model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=self._settings.max_new_tokens,
            max_time=self._settings.timeout_s,
        )
        answer: str = self._processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[
            0
        ]
        return answer


def requests(rng: np.random.Generator, max_pictures: int) -> list[Request]:
    return [
        (RewriteRequest("id", " ".join(rng.choice(WORDS, 4 + 6 * number))), _pictures(rng, 1 + number % max_pictures))
        for number in range(NUM_PROMPTS)
    ]


def _pictures(rng: np.random.Generator, num: int) -> Pictures:
    shapes = rng.choice(SIDES_PX, (num, 2))
    drawn = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    return tuple(PreparedPicture(pixels, pixels) for pixels in drawn)


def runs(settings: RewriterSettings) -> dict[str, Run]:
    """The ways to rewrite these requests, by name."""
    thread = ThreadPoolExecutor(1)
    model = thread.submit(RawModel, settings).result()
    rewriter = BoundedRewriter(RewriteBatches(model, settings, thread).rewrite, settings)

    async def before(given: Sequence[Request]) -> list[str]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(thread, model.generate_alone, *each) for each in given]

    async def alone(given: Sequence[Request]) -> list[str]:
        return [_answer(await rewriter.rewrite(*each)) for each in given]

    async def at_once(given: Sequence[Request]) -> list[str]:
        return [_answer(each) for each in await asyncio.gather(*(rewriter.rewrite(*each) for each in given))]

    return {"before": before, "alone": alone, "at once": at_once}


def _answer(rewrite: Rewrite) -> str:
    if rewrite.prompt is None:
        raise RuntimeError(rewrite.reason)
    return rewrite.prompt


@dataclass
class Times:
    """Of a way, a figure for each round: seconds, and seconds of CPU time, which other processes lengthen less."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


async def measure(
    ways: dict[str, Run], max_pictures: int, rounds: int, on_round: Callable[[str], None]
) -> tuple[dict[str, Times], bool]:
    """The times of each way, and whether all answers were equal. One round before these is not counted."""
    is_equal = True
    times = {name: Times() for name in ways}
    for number in range(rounds + 1):
        given = requests(np.random.default_rng(number), max_pictures)
        answers = []
        for name, run in ways.items() if number % 2 else reversed(ways.items()):
            wall, cpu = time.perf_counter(), time.process_time()
            answers.append(await run(given))
            if number:
                times[name].wall_s.append(time.perf_counter() - wall)
                times[name].cpu_s.append(time.process_time() - cpu)
        is_equal = is_equal and all(each == answers[0] for each in answers)
        on_round(f"up to {max_pictures} pictures: round {number} of {rounds} is done")
    return times, is_equal


async def measure_all(ways: dict[str, Run], rounds: int, on_round: Callable[[str], None]) -> dict[str, Any]:
    """On one event loop, to which the rewriter belongs."""
    figures = {}
    for name, max_pictures in {"one picture": 1, "one to four": 4}.items():
        times, is_equal = await measure(ways, max_pictures, rounds, on_round)
        figures[name] = {
            "wall": ratios(*(each.wall_s for each in times.values())),
            "cpu": ratios(*(each.cpu_s for each in times.values())),
            "answers_differ": not is_equal,
            "times": {name: asdict(each) for name, each in times.items()},
        }
    return figures


def ratios(before: Sequence[float], alone: Sequence[float], at_once: Sequence[float]) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        "alone_times_before": median(ours / theirs for ours, theirs in zip(alone, before, strict=True)),
        "throughput_at_once": median(theirs / ours for ours, theirs in zip(at_once, before, strict=True)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rewriting", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    settings = settings_in(RANDOM_FILE).rewriter
    if settings is None:
        raise RuntimeError(f"{RANDOM_FILE} has no rewriter")
    ways = runs(settings.model_copy(update={"cache_bytes": 0, "timeout_s": 600.0}))
    figures = asyncio.run(measure_all(ways, options.rounds, console.print))
    console.print_json(json.dumps(figures))
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    wall = figures["one picture"]["wall"]
    is_missed = wall["throughput_at_once"] < 4 or wall["alone_times_before"] > 1.05
    return int(is_missed or any(each["answers_differ"] for each in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
