"""Memory that a process has freed goes back to the system."""

import ctypes
import threading
import time
from functools import cache

TRIM_EVERY_S = 5.0
KEPT_BYTES = 32 * 2**20
"""glibc maps larger blocks by themselves, and keeps this much free memory at the end of each heap."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@cache
def return_freed_memory() -> None:
    """Return this process's freed memory to the system every `TRIM_EVERY_S` seconds, from a thread. Otherwise the
    process keeps most of what it needed once, such as for many large responses at the same time.

    To return each large block at once instead, by glibc's default thresholds, costs a page fault for every 4 KiB of the
    next one: a tenth of the CPU time of an edit outside the engine. Other C libraries have no such function.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        threading.Thread(target=_trim_for_good, args=(libc,), name="trim", daemon=True).start()


def _trim_for_good(libc: ctypes.CDLL) -> None:
    while True:
        time.sleep(TRIM_EVERY_S)
        libc.malloc_trim(0)
