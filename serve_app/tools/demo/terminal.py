"""Keeps the terminal for the demo's own words."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Print = Callable[[str], None]

_STDOUT, _STDERR = 1, 2


@contextmanager
def diverted_output(log: Path) -> Iterator[TextIO]:
    """Send what this process writes to stdout and stderr into `log`, and give the real stdout.

    By file descriptor, for Ray's C++ part writes too, and its Python threads print what its log settings do not cover.
    """
    _flush()
    saved = {number: os.dup(number) for number in (_STDOUT, _STDERR)}
    try:
        with log.open("wb") as file:
            for number in saved:
                os.dup2(file.fileno(), number)
        with os.fdopen(os.dup(saved[_STDOUT]), "w", encoding=sys.stdout.encoding) as terminal:
            yield terminal
    finally:
        _flush()
        for number, original in saved.items():
            os.dup2(original, number)
            os.close(original)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


class Reporter:
    """Speaks to a terminal, or to a file without the turning lines."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Print]:
        """Show `doing` while the block runs and `done` with its seconds after; the block may say what it is at."""
        began = time.monotonic()
        with self._turning_line() as bar:
            task = bar.add_task(doing)
            yield lambda now: bar.update(task, description=f"{doing}: {now}")
        self.say(f"{done} ({time.monotonic() - began:.1f} s)")

    def _turning_line(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            # Rich would bring what other threads print back to the terminal.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print a line as it is: neither wrapped nor coloured, so that it can be copied."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
