"""Keeps the terminal for the demo's own words."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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
