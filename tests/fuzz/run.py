"""Fuzz the code that reads pictures and request bodies: `python -m tests.fuzz.run --pictures 100000`.

Each case must end as a picture or a refusal, within limits of memory and time. A case depends on seed and number alone;
one that ends otherwise is saved and reported, and can be run again with `--replay pictures:4711 --seed 1`.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.limits import MAX_GROWTH_BYTES, MIB
from tests.fuzz.worker import Finding, Kind, Tally, begin, make, run_cases

BATCH = 200
MAX_PROCESSES = 2
FOLDER = Path(tempfile.gettempdir()) / "fuzz-findings"
KINDS: tuple[Kind, ...] = get_args(Kind)


def fuzz(kind: Kind, num_cases: int, seed: int, processes: int, console: Console) -> Tally:
    """Run cases 0 to `num_cases` - 1. A case that kills its process is a finding, too, and ends the run."""
    total = Tally()
    batches = [range(first, min(first + BATCH, num_cases)) for first in range(0, num_cases, BATCH)]
    with tempfile.TemporaryDirectory() as progress, _bar(console) as bar:
        task = bar.add_task(kind, total=num_cases)
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawned, begin, (kind, progress)) as pool:
            pending = {pool.submit(run_cases, kind, seed, batch): len(batch) for batch in batches}
            try:
                for done in as_completed(pending):
                    total.add(done.result())
                    bar.advance(task, pending[done])
            except BrokenProcessPool:
                running = _running_cases(kind, seed, Path(progress))
                if not running:  # the process died before its first case
                    raise
                total.findings += running
    return total


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        yield bar


def _running_cases(kind: Kind, seed: int, progress: Path) -> list[Finding]:
    """The cases that were running when a process died: one of them killed it."""
    numbers = [int(file.read_text()) for file in progress.iterdir() if file.read_text().strip()]
    what = "this case, or another one that ran beside it, killed its process or hung"
    return [Finding(kind, number, what, repr(make(kind, seed, number)).encode()) for number in numbers]


def problems(kind: Kind, tally: Tally, seed: int, folder: Path) -> list[str]:
    """Messages about what is wrong with the outcome; every finding's input is saved under `folder`."""
    messages = []
    for finding in tally.findings:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{kind}-{seed}-{finding.number}"
        file.with_suffix(".input").write_bytes(finding.payload)
        file.with_suffix(".txt").write_text(finding.what)
        last = finding.what.strip().splitlines()[-1]
        messages.append(f"{last}\n  {file}.input; again: --replay {kind}:{finding.number} --seed {seed}")
    if tally.growth_bytes > MAX_GROWTH_BYTES:
        messages.append(f"{kind} took {tally.growth_bytes / MIB:.0f} MiB, more than {MAX_GROWTH_BYTES / MIB:.0f}")
    if not tally.accepted or not tally.refused:
        messages.append(f"{kind}: {tally.accepted} accepted, {tally.refused} refused: such mutations prove nothing")
    return messages


def figures(kind: Kind, tally: Tally, elapsed_s: float) -> str:
    num_cases = tally.accepted + tally.refused + len(tally.findings)
    return (
        f"{num_cases:,} {kind} in {elapsed_s:.0f} s, {num_cases / elapsed_s:.0f} a second: "
        f"{tally.accepted:,} accepted, {tally.refused:,} refused"
        f"{f', {tally.crashes} of them since the decoder process died' if tally.crashes else ''}, "
        f"{len(tally.findings)} findings; "
        f"slowest {tally.slowest_s * 1000:.0f} ms, "
        f"peak memory {tally.growth_bytes / MIB:.0f} MiB above idle (bound {MAX_GROWTH_BYTES / MIB:.0f})"
    )


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    console = Console()
    if options.replay:
        kind, _, number = options.replay.partition(":")
        tally = run_cases(kind, options.seed, [int(number)])
        counts = f"{tally.accepted} accepted, {tally.refused} refused"
        console.print(tally.findings[0].what if tally.findings else counts)
        return 1 if tally.findings else 0
    wrong = []
    for kind in KINDS:
        num_cases = getattr(options, kind, options.extremes)
        if num_cases == 0:
            continue
        began = time.monotonic()
        tally = fuzz(kind, num_cases, options.seed, options.processes, console)
        console.print(figures(kind, tally, time.monotonic() - began), highlight=False, soft_wrap=True)
        wrong += problems(kind, tally, options.seed, options.folder)
    for each in wrong:
        console.print(each, style="red", highlight=False, markup=False, soft_wrap=True)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000, help="how many mutated pictures (default %(default)s)")
    parser.add_argument("--heif", type=int, default=500, help="how many mutated HEIC, AVIF files (default %(default)s)")
    parser.add_argument("--parts", type=int, default=200, help="how many pictures of many parts (default %(default)s)")
    parser.add_argument("--bodies", type=int, default=1000, help="how many mutated bodies (default %(default)s)")
    extremes = f"how many requests of each of {', '.join(KINDS[4:])} (default %(default)s)"
    parser.add_argument("--extremes", type=int, default=0, help=extremes)
    parser.add_argument("--seed", type=int, default=1, help="each seed gives other cases (default %(default)s)")
    parser.add_argument("--processes", type=int, choices=range(1, MAX_PROCESSES + 1), default=MAX_PROCESSES)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where findings are saved (default %(default)s)")
    parser.add_argument("--replay", metavar="KIND:NUMBER", help="run one case again and show how it ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
