"""What is freed at once, without a run of the garbage collector."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def freed_at_once() -> Iterator["list[weakref.ref[Any]]"]:
    """A list for references to objects, none of which is left at the end: no cycle refers to them."""
    references: list[weakref.ref[Any]] = []
    gc.collect()
    gc.disable()
    try:
        yield references
        assert references
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()
