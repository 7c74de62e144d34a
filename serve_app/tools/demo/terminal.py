"""The demo's terminal output: diverts other output to a file, and reports the progress of steps."""

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
    """Redirect this process's stdout and stderr to the file `log`, and yield the real stdout.

    By file descriptor: Ray's C++ code writes there too, and its Python threads print despite the log settings.
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
    """Prints a line for each finished step and, on a terminal, a spinner for the current one."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Print]:
        """Show `doing` while the block runs, then print `done` with the seconds. Yields a function to show a status."""
        began = time.monotonic()
        with self._spinner() as bar:
            task = bar.add_task(doing)
            yield lambda status: bar.update(task, description=f"{doing}: {status}")
        self.print_line(f"{done} ({time.monotonic() - began:.1f} s)")

    def _spinner(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            # Else Rich would show on the terminal what other threads print.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def print_line(self, text: str = "", style: str | None = None) -> None:
        """Print a line without wrapping or highlighting, so that it can be copied."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
