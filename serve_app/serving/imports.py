"""Imports of large libraries, made sooner."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Python's collector finds nothing to free in what imports make, and goes through all of it again and again: of
    seven seconds for torch, diffusers and transformers it took one."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
