"""A file in memory, and whether its bytes are: what the kernel dropped comes back from a disk that may rot.

Read-ahead is switched off for the file: pages come into memory when they are asked for and never beside
others, so that whoever asks before each use, as :meth:`Mapped.resident` does, misses no return from disk.

Source: ``mincore(2)``, ``posix_fadvise(2)``; traps T4 and T21 of the project's data plane contract.
"""

import ctypes
import mmap
import os
from contextlib import suppress

import numpy as np

_STEP = 4096
"""Kernel pages of one question."""
# The call takes a few microseconds and never waits: not worth letting go of the interpreter's lock.
_mincore = ctypes.PyDLL(None).mincore
_mincore.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
_answer = bytearray(_STEP)
_answer_at = ctypes.addressof((ctypes.c_char * _STEP).from_buffer(_answer))
_IN = bytes(i & 1 for i in range(256))


class Mapped:
    """The first ``size`` bytes of a file that never gets shorter.

    Raises:
        OSError, ValueError: it cannot be mapped.
    """

    __slots__ = ("_at", "_map", "content")

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        with suppress(OSError):
            self._map.madvise(mmap.MADV_RANDOM)
        self.content = memoryview(self._map)
        self._at = int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])

    def resident(self, start: int, stop: int) -> bool:
        """Whether every byte of ``[start, stop)`` is in memory now; False also if the kernel won't say."""
        at = start - start % mmap.PAGESIZE
        while at < stop:
            count = min(-(-(stop - at) // mmap.PAGESIZE), _STEP)
            if _mincore(self._at + at, count * mmap.PAGESIZE, _answer_at):
                return False
            # Only the lowest bit of each answer is defined; the usual ones need no translation.
            if _answer.count(1, 0, count) != count and _answer[:count].translate(_IN).count(1) != count:
                return False
            at += count * mmap.PAGESIZE
        return True


def without_read_ahead(fd: int) -> None:
    """Have the kernel read what is asked for and nothing beside it; where it can't, nothing changes."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
