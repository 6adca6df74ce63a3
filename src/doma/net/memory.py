"""Keep the C heap from giving memory back between answers.

Over TLS every piece passes through two fresh buffers of its size. glibc maps or trims such sizes at every
turn, and the kernel then clears each page again: a fifth to a third of the CPU of a 1 MiB range.

Source: dataplane.md T27 of the project's contracts; mallopt(3).
"""

import contextlib
import ctypes
import sys

TRIM, MAPPED = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
KEPT = 32 << 20
"""Free bytes at the end of the heap that stay with the process."""
FROM_HEAP = 4 << 20
"""Blocks below this size come from the heap."""


def keep_heap() -> None:
    """Tell malloc so, where it is glibc's; elsewhere nothing happens. Safe to repeat."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM, KEPT)
        mallopt(MAPPED, FROM_HEAP)
