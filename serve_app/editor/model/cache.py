"""Encoded pictures and prompts, kept by content: several edits of one picture encode it once."""

from dataclasses import dataclass

import torch
from cachetools import LRUCache

Key = tuple[str, ...]


@dataclass(frozen=True)
class CacheStats:
    """Look-ups since the start, and what is held now."""

    hits: int
    misses: int
    entries: int
    held_bytes: int


class TensorCache:
    """Tensors by key; above `max_bytes` the least recently used ones are dropped. Not thread-safe: one thread owns it,
    and any may read `stats`.

    With `max_bytes` 0 it keeps nothing, and every look-up is a miss.
    """

    def __init__(self, max_bytes: int) -> None:
        self._tensors: LRUCache[Key, torch.Tensor] = LRUCache(max_bytes, getsizeof=lambda tensor: tensor.nbytes)
        self._hits = 0
        self._misses = 0

    def get(self, key: Key) -> torch.Tensor | None:
        tensor = self._tensors.get(key)
        if tensor is None:
            self._misses += 1
        else:
            self._hits += 1
        return tensor

    def put(self, key: Key, tensor: torch.Tensor) -> None:
        """Keep a tensor, unless its key is known or it alone exceeds the budget."""
        if key not in self._tensors and tensor.nbytes <= self._tensors.maxsize:
            self._tensors[key] = tensor

    def clear(self) -> None:
        self._tensors.clear()

    @property
    def stats(self) -> CacheStats:
        return CacheStats(self._hits, self._misses, len(self._tensors), int(self._tensors.currsize))
