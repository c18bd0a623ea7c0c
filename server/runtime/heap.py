"""Heap of the C library: freed memory returns to the system. Without effect where that is not glibc."""

import ctypes

M_ARENA_MAX = -8  # glibc's malloc.h


def limit_arenas() -> None:
    """Have all threads allocate from one arena; before the first thread starts.

    An arena for each thread that tokenizes keeps what its largest prompt took: over 10,000 hostile requests the
    process grew by 6 to 9 MiB, with one arena not at all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def trim_heap() -> None:
    """Return freed memory to the system; other threads of Python run meanwhile."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
