"""Encoded conditions, kept by content: an orbit of views encodes its picture once."""

import hashlib
from collections import OrderedDict

import numpy as np
import torch

from serve_app.editor.engine.stats import CacheStats
from serve_app.edits.request import Pixels

Key = tuple[str, ...]


class TensorCache:
    """Tensors by key, the least recently used ones dropped above `max_bytes`. Not thread-safe: one thread owns it.

    A budget of 0 keeps nothing, so that every look-up is a miss.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tensors: OrderedDict[Key, torch.Tensor] = OrderedDict()
        self._held_bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: Key) -> torch.Tensor | None:
        tensor = self._tensors.get(key)
        if tensor is None:
            self._misses += 1
            return None
        self._hits += 1
        self._tensors.move_to_end(key)
        return tensor

    def put(self, key: Key, tensor: torch.Tensor) -> None:
        if key in self._tensors or tensor.nbytes > self._max_bytes:
            return
        self._tensors[key] = tensor
        self._held_bytes += tensor.nbytes
        while self._held_bytes > self._max_bytes:
            _, dropped = self._tensors.popitem(last=False)
            self._held_bytes -= dropped.nbytes

    def clear(self) -> None:
        self._tensors.clear()
        self._held_bytes = 0

    @property
    def stats(self) -> CacheStats:
        return CacheStats(self._hits, self._misses, len(self._tensors), self._held_bytes)


def content_key(pixels: Pixels) -> str:
    """Names a picture by its size and pixels."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()
