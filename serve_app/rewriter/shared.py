"""Rewrites by content: equal requests are rewritten once, recent ones not again."""

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from serve_app.edits.images import pixels_hash
from serve_app.edits.request import Pictures, Rewrite

_ENTRY_BYTES = 500
"""Of an entry without its text: the key, and Python's objects."""


@dataclass(eq=False)
class _Call:
    """A rewrite that runs, and how many wait for it."""

    task: asyncio.Task[Rewrite]
    num_callers: int = 0


class SharedRewrites:
    """Keeps successful rewrites by prompt and pictures, and joins requests that are equal to one that runs. Decoding is
    greedy, so equal requests have equal results. Lives on one event loop.

    Args:
        max_bytes: of the texts that are kept; the least recently used ones are dropped. 0: none are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[bytes, Rewrite] = LRUCache(max_bytes, getsizeof=_num_bytes)
        self._calls: dict[bytes, _Call] = {}

    async def get(
        self, prompt: str, pictures: Pictures, rewrite: Callable[[], Coroutine[Any, Any, Rewrite]]
    ) -> Rewrite:
        """The rewrite of a prompt.

        Args:
            rewrite: makes it, if it is neither kept nor in the making. Cancelled when all who wait for it have left.
        """
        key = await asyncio.to_thread(content_key, prompt, pictures)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = _Call(asyncio.ensure_future(rewrite()))
        call.num_callers += 1
        try:
            made = await asyncio.shield(call.task)
        finally:
            call.num_callers -= 1
            if call.num_callers == 0:
                call.task.cancel()  # no effect after its end
                del self._calls[key]
        if made.prompt is not None and _num_bytes(made) <= self._kept.maxsize:
            self._kept[key] = made
        return made


def _num_bytes(rewrite: Rewrite) -> int:
    return _ENTRY_BYTES + len((rewrite.prompt or "").encode())


def content_key(prompt: str, pictures: Pictures) -> bytes:
    """A hash of a prompt and of its pictures, in their order."""
    hashes = [pixels_hash(picture.vae_pixels) for picture in pictures]
    text = prompt.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(repr((text, hashes)).encode(), digest_size=32).digest()
