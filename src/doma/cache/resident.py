"""Which bytes of a file are in memory, asked of the kernel without touching any.

Read-ahead is switched off for the file: pages come into memory when they are asked for and never beside
others, so that whoever asks before each use misses no return from a disk that may rot. Linux tells how many
pages of a range it holds since 6.5. Where it does not say all of them, the file is mapped for the question
alone: no page of the map is ever used, so none of it counts as memory of this process.

Source: ``cachestat(2)``, ``mincore(2)``, ``posix_fadvise(2)``; traps T4 and T21 of the project's data plane
contract.
"""

import ctypes
import mmap
import os
from contextlib import suppress

import numpy as np

_PAGE = mmap.PAGESIZE
_STEP = 4096
"""Kernel pages of one question."""
# The calls take a few microseconds and never wait: not worth letting go of the interpreter's lock.
_libc = ctypes.PyDLL(None)
_mincore = _libc.mincore
_mincore.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_CACHESTAT = 451
"""Its number on every architecture; the C library has no name for it yet."""
_range = (ctypes.c_uint64 * 2)()
_counts = (ctypes.c_uint64 * 5)()
"""First the pages in memory; the others are not asked."""
_BEHIND = ctypes.byref(_range), ctypes.byref(_counts), ctypes.c_long(0)
"""Its last arguments."""
_answer = bytearray(_STEP)
_answer_at = ctypes.addressof((ctypes.c_char * _STEP).from_buffer(_answer))
_ALL = b"\1" * _STEP
_IN = bytes(i & 1 for i in range(256))
"""Only the lowest bit of an answer is defined."""


class Resident:
    """The first ``size`` bytes of a file that never gets shorter; the descriptor stays the caller's."""

    __slots__ = ("_asked", "_at", "_fd", "_map", "_size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        # Arguments that need no conversion: it costs as much as the kernel's own work.
        self._asked = (ctypes.c_long(_CACHESTAT), ctypes.c_long(fd), *_BEHIND)
        self._map: mmap.mmap | None = None
        self._at = 0

    def holds(self, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)`` is in memory now; False if the kernel won't say."""
        first = start // _PAGE
        _range[0] = at = first * _PAGE
        _range[1] = stop - at
        failed = _syscall(*self._asked)
        if not failed and _counts[0] == -(-stop // _PAGE) - first:
            return True
        return self._mapped(at, stop)  # while others use the processor it was seen to count too few

    def _mapped(self, at: int, stop: int) -> bool:
        """The same, page by page."""
        if self._map is None:
            try:
                self._map = mmap.mmap(self._fd, self._size, mmap.MAP_SHARED, mmap.PROT_READ)
            except (OSError, ValueError):
                return False
            self._at = int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])
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
