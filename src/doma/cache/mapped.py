"""A file in memory, and whether its bytes are: what the kernel dropped comes back from a disk that may rot.

Read-ahead is switched off for the file: pages come into memory when they are asked for and never beside
others, so that whoever asks before each use, as :meth:`Mapped.absent` does, misses no return from disk. To
ask the kernel costs more than all else of a warm read, so many pages are asked for together, once single
questions have cost as much, and an answer is believed for 50 ms: a page that leaves memory and is read back
within that time goes unnoticed.

Source: ``mincore(2)``, ``posix_fadvise(2)``; traps T4 and T21 of the project's data plane contract.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic

import numpy as np

_PAGE = mmap.PAGESIZE
_STEP = 4096
"""Kernel pages of one question."""
_UNIT = _STEP * _PAGE
_BELIEVED = 0.05
"""Seconds that an answer holds."""
_EXACT, _CHEAP, _DEAR, _DEAREST = 4e-6, 1e-5, 1e-4, 5e-4
"""Seconds that a question takes: for few pages; for a unit that is mapped, for one that is not, at most."""
# The call takes a few microseconds and never waits: not worth letting go of the interpreter's lock.
_mincore = ctypes.PyDLL(None).mincore
_mincore.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
_answer = bytearray(_STEP)
_answer_at = ctypes.addressof((ctypes.c_char * _STEP).from_buffer(_answer))
_ALL = b"\1" * _STEP
_IN = bytes(i & 1 for i in range(256))
"""Only the lowest bit of an answer is defined."""


class Mapped:
    """The first ``size`` bytes of a file that never gets shorter.

    Raises:
        OSError, ValueError: it cannot be mapped.
    """

    __slots__ = ("_at", "_map", "_price", "_spent", "_told", "_until", "content")

    def __init__(self, fd: int, size: int) -> None:
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        with suppress(OSError):
            self._map.madvise(mmap.MADV_RANDOM)
        self.content = memoryview(self._map)
        self._at = int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])
        units = -(-size // _UNIT)
        self._until = [0.0] * units
        self._price, self._spent = [_DEAR] * units, [0.0] * units
        """Seconds that the last question for a whole unit took too long, and that smaller ones took since."""
        self._told = [b""] * units
        """What the kernel said of the pages of each unit."""

    def absent(self, spans: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The first of some spans that is not all in memory now, or of which the kernel won't say."""
        now = monotonic()
        for span in spans:
            start, stop = span
            unit, first = divmod(start, _UNIT)
            last = first + stop - start
            if last <= _UNIT:
                if now >= self._until[unit]:
                    self._spent[unit] += _EXACT
                    if self._spent[unit] >= self._price[unit]:
                        self._ask_all(unit)
                if (
                    now < self._until[unit]
                    and self._told[unit].find(0, first // _PAGE, -(-last // _PAGE)) < 0
                ):
                    continue
            # Across units, not worth asking for more, or not in memory a moment ago.
            cuts = range(start - start % _PAGE, stop, _UNIT)
            if any(self._ask(at, min(at + _UNIT, stop)).find(0) >= 0 for at in cuts):
                return span
        return None

    def _ask_all(self, unit: int) -> None:
        began = monotonic()
        self._told[unit] = self._ask(unit * _UNIT, min((unit + 1) * _UNIT, len(self.content)))
        self._until[unit] = began + _BELIEVED
        self._price[unit] = min(monotonic() - began, _DEAREST) - _CHEAP
        self._spent[unit] = 0.0

    def _ask(self, start: int, stop: int) -> bytes:
        """A byte for each page, 0 if it is not in memory; all 0 if the kernel won't say."""
        count = -(-(stop - start) // _PAGE)
        if _mincore(self._at + start, count * _PAGE, _answer_at):
            return b"\0" * count
        told = bytes(_answer[:count])
        return told if told == _ALL[:count] else told.translate(_IN)


def without_read_ahead(fd: int) -> None:
    """Have the kernel read what is asked for and nothing beside it; where it can't, nothing changes."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
