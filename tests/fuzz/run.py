"""Throw mutated pictures and bodies at the code that reads them: `python -m tests.fuzz.run --pictures 100000`.

Nothing may come of it but a picture or a refusal, within bounds of memory and time. Each case follows from seed and
number alone; one that ends otherwise is saved, named, and can be run again by `--replay pictures:4711 --seed 1`.
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
    with tempfile.TemporaryDirectory() as diaries, _bar(console) as bar:
        task = bar.add_task(kind, total=num_cases)
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawned, begin, (kind, diaries)) as pool:
            pending = {pool.submit(run_cases, kind, seed, batch): len(batch) for batch in batches}
            try:
                for done in as_completed(pending):
                    total.add(done.result())
                    bar.advance(task, pending[done])
            except BrokenProcessPool:
                last = _last_noted(kind, seed, Path(diaries))
                if not last:  # it never came to a case
                    raise
                total.findings += last
    return total


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        yield bar


def _last_noted(kind: Kind, seed: int, diaries: Path) -> list[Finding]:
    """The cases that were under way when a process died: one of them killed it."""
    numbers = [int(diary.read_text()) for diary in diaries.iterdir() if diary.read_text().strip()]
    what = "this case, or another one that ran beside it, killed its process or hung"
    return [Finding(kind, number, what, repr(make(kind, seed, number)).encode()) for number in numbers]


def problems(kind: Kind, tally: Tally, seed: int, folder: Path) -> list[str]:
    """What is wrong with the outcome, in words; every finding's input is saved under `folder`."""
    told = []
    for finding in tally.findings:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{kind}-{seed}-{finding.number}"
        file.with_suffix(".input").write_bytes(finding.given)
        file.with_suffix(".txt").write_text(finding.what)
        last = finding.what.strip().splitlines()[-1]
        told.append(f"{last}\n  {file}.input; again: --replay {kind}:{finding.number} --seed {seed}")
    if tally.growth_bytes > MAX_GROWTH_BYTES:
        told.append(f"{kind} took {tally.growth_bytes / MIB:.0f} MiB, more than {MAX_GROWTH_BYTES / MIB:.0f}")
    if not tally.taken or not tally.refused:
        told.append(f"{kind}: {tally.taken} taken, {tally.refused} refused: such mutations prove nothing")
    return told


def figures(kind: Kind, tally: Tally, elapsed_s: float) -> str:
    num_cases = tally.taken + tally.refused + len(tally.findings)
    return (
        f"{num_cases:,} {kind} in {elapsed_s:.0f} s, {num_cases / elapsed_s:.0f} a second: {tally.taken:,} taken, "
        f"{tally.refused:,} refused, {len(tally.findings)} findings; slowest {tally.slowest_s * 1000:.0f} ms, "
        f"peak memory {tally.growth_bytes / MIB:.0f} MiB above idle (bound {MAX_GROWTH_BYTES / MIB:.0f})"
    )


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    console = Console()
    if given.replay:
        kind, _, number = given.replay.partition(":")
        tally = run_cases(kind, given.seed, [int(number)])
        console.print(tally.findings[0].what if tally.findings else f"{tally.taken} taken, {tally.refused} refused")
        return 1 if tally.findings else 0
    wrong = []
    for kind in filter(vars(given).get, KINDS):
        began = time.monotonic()
        tally = fuzz(kind, getattr(given, kind), given.seed, given.processes, console)
        console.print(figures(kind, tally, time.monotonic() - began), highlight=False, soft_wrap=True)
        wrong += problems(kind, tally, given.seed, given.folder)
    for each in wrong:
        console.print(each, style="red", highlight=False, markup=False, soft_wrap=True)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000, help="how many mutated pictures (default %(default)s)")
    parser.add_argument("--bodies", type=int, default=1000, help="how many mutated bodies (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other cases (default %(default)s)")
    parser.add_argument("--processes", type=int, choices=range(1, MAX_PROCESSES + 1), default=MAX_PROCESSES)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where findings are saved (default %(default)s)")
    parser.add_argument("--replay", metavar="KIND:NUMBER", help="run one case again and show how it ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
