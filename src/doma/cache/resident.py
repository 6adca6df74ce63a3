"""Which bytes of a file are in memory, asked of the kernel without touching any.

Read-ahead is switched off for the file: pages come into memory when they are asked for and never beside
others, so that whoever asks before each use misses no return from a disk that may rot. The file is mapped for
the question alone: no page of the map is ever used, so none of it counts as memory of this process.

Source: ``mincore(2)``, ``posix_fadvise(2)``; traps T4 and T21 of the project's data plane contract.
"""

import ctypes
import mmap
import os
from contextlib import suppress

import numpy as np

_PAGE = mmap.PAGESIZE
_STEP = 4096
"""Kernel pages of one question."""
# The call takes a few microseconds and never waits: not worth letting go of the interpreter's lock.
_mincore = ctypes.PyDLL(None).mincore
_mincore.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
_answer = bytearray(_STEP)
_answer_at = ctypes.addressof((ctypes.c_char * _STEP).from_buffer(_answer))
_ALL = b"\1" * _STEP
_IN = bytes(i & 1 for i in range(256))
"""Only the lowest bit of an answer is defined."""


class Resident:
    """The first ``size`` bytes of a file that never gets shorter.

    Raises:
        OSError, ValueError: it cannot be mapped.
    """

    __slots__ = ("_at", "_map")

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        self._at = int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])

    def holds(self, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)`` is in memory now; False if the kernel won't say."""
        at = start - start % _PAGE
        while at < stop:
            count = min(_STEP, -(-(stop - at) // _PAGE))
            if _mincore(self._at + at, count * _PAGE, _answer_at):
                return False
            if _answer[:count] != _ALL[:count] and _answer[:count].translate(_IN).find(0) >= 0:
                return False
            at += count * _PAGE
        return True


def without_read_ahead(fd: int) -> None:
    """Have the kernel read what is asked for and nothing beside it; where it can't, nothing changes."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
