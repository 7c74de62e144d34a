"""Memory that a process has freed goes back to the system."""

import ctypes

MMAP_THRESHOLD_BYTES = 128 * 2**10
"""glibc's default, which it raises up to 32 MiB by itself unless it is set."""
_M_MMAP_THRESHOLD = -3


def return_freed_blocks() -> None:
    """Make glibc map every large block by itself, so that to free it returns its memory. Otherwise a process keeps
    most of what it needed once, such as for many large responses at the same time. Called once in each process that
    handles bodies; other C libraries have no such setting."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
