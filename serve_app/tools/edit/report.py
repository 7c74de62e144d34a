"""What the command prints: progress on stderr; the summary, or a JSON document, on stdout."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Result:
    """What became of one picture.

    Attributes:
        note: why the prompt was not rewritten, or why the picture failed.
    """

    input: str
    file: str
    status: Literal["made", "skipped", "failed"]
    job: str | None = None
    seed: int | None = None
    final_prompt: str | None = None
    note: str | None = None

    @property
    def line(self) -> str:
        name = self.input if self.status == "failed" else self.file
        return f"{self.status}: {name}{'' if self.note is None else f': {self.note}'}"


@dataclass
class Report:
    """The results so far, with a progress bar on a terminal and a line for each."""

    total: int
    out: Path
    results: list[Result] = field(default_factory=list)
    animations: list[Result] = field(default_factory=list)
    ended_by: str | None = None

    def __post_init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("editing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self.total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, result: Result) -> None:
        self.results.append(result)
        self._bar.advance(self._task)
        self._print_line(result)

    def add_animation(self, result: Result) -> None:
        self.animations.append(result)
        self._print_line(result)

    def _print_line(self, result: Result) -> None:
        self._bar.console.print(result.line, markup=False, highlight=False, soft_wrap=True)

    @property
    def failed(self) -> list[Result]:
        return [result for result in (*self.results, *self.animations) if result.status == "failed"]

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by status; `left` were not tried."""
        by_status = dict.fromkeys(("made", "skipped", "failed"), 0)
        for result in self.results:
            by_status[result.status] += 1
        return {**by_status, "left": self.total - len(self.results)}

    def summary(self) -> str:
        """Counts, and each picture that failed with its reason."""
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items() if number)
        pictures, they_are = ("1 picture", "It is") if self.total == 1 else (f"{self.total} pictures", "They are")
        lines = [f"{pictures}: {counts}. {they_are} in {self.out}."]
        lines += [f"  {result.line}" for result in self.failed]
        if self.ended_by == "interrupted":
            lines.append("Interrupted. The same command continues.")
        return "\n".join(lines)

    def document(self) -> str:
        """The same for programs."""
        document = {
            "out": str(self.out),
            "counts": self.counts,
            "ended_by": self.ended_by,
            "pictures": [asdict(result) for result in self.results],
            "animations": [asdict(result) for result in self.animations],
        }
        return json.dumps(document, indent=2)
