"""Which bytes to ask an origin for: pages, runs of pages, and how far to read ahead. Pure.

A page is 4 KiB; a run ``(first, last)`` is pages ``first … last - 1``. Fixed large blocks were refused: cold
random reads of 64 KiB then move 2.7 times (128 KiB blocks) to 13 times (1 MiB slices) what is delivered.

Source: cache contract §9.
"""

from collections.abc import Iterable
from dataclasses import dataclass

PAGE = 4096
GAP = 32 << 10
"""Runs closer than this are fetched as one: a request costs more than the bytes between."""
EXTENT = 8 << 20
"""The farthest a reader reads ahead."""
FLIGHT = 1 << 20
"""Bytes of one request to an origin: bounds memory, and lets the first bytes out early."""

Run = tuple[int, int]


def pages_of(start: int, stop: int) -> Run:
    """The pages that hold the bytes ``[start, stop)``.

    >>> pages_of(4095, 4097), pages_of(0, 0)
    ((0, 2), (0, 0))
    """
    return start // PAGE, max(start // PAGE, -(-stop // PAGE))


def joined(runs: Iterable[Run], gap: int = GAP) -> list[Run]:
    """Runs sorted, overlapping ones united, neighbours less than ``gap`` bytes apart made one.

    >>> joined([(20, 22), (0, 2), (5, 6)])
    [(0, 6), (20, 22)]
    """
    out: list[Run] = []
    for first, last in sorted(runs):
        if first >= last:
            continue
        if out and (first - out[-1][1]) * PAGE < gap:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out


def pieces(run: Run, size: int = FLIGHT) -> list[Run]:
    """A run cut into requests of at most ``size`` bytes.

    >>> pieces((0, 600))
    [(0, 256), (256, 512), (512, 600)]
    """
    step = size // PAGE
    return [(at, min(at + step, run[1])) for at in range(run[0], run[1], step)]


def without(run: Run, taken: Iterable[Run]) -> list[Run]:
    """What is left of a run after taking away others.

    >>> without((0, 10), [(2, 4), (8, 20)])
    [(0, 2), (4, 8)]
    """
    left, (at, end) = [], run
    for first, last in sorted(taken):
        if last <= at or first >= end or first >= last:
            continue
        if first > at:
            left.append((at, first))
        at = last
    if at < end:
        left.append((at, end))
    return left


@dataclass(slots=True)
class Stride:
    """One reader's habit: how far it is worth to read ahead of it."""

    cautious: bool = False
    """Read ahead at most half of what was read in a row: it may be the file's directory, and end soon."""
    position: int = 0
    begun: int = 0
    """Where the adjacent reads began."""
    adjacent: int = 0
    window: int = 0

    def ahead(self, start: int, stop: int, limit: int) -> int:
        """Bytes to read ahead beyond ``stop``; 0 until two adjacent reads, and after any jump.

        Args:
            start: First byte of this read.
            stop: End of this read.
            limit: The most that may be read ahead now (a share of the memory budget).

        >>> habit = Stride()
        >>> [habit.ahead(a, a + 100, 1000) for a in (0, 100, 200, 300, 900)]
        [0, 0, 200, 400, 0]
        >>> habit = Stride(cautious=True)
        >>> [habit.ahead(a, a + 100, 1000) for a in (0, 100, 200, 300, 400)]
        [0, 0, 150, 200, 250]
        """
        self.adjacent = self.adjacent + 1 if start == self.position and self.position else 0
        if not self.adjacent:
            self.begun = start
        self.position = stop
        if self.adjacent < 2:
            self.window = 0
            return 0
        self.window = min(max(2 * (stop - start), 2 * self.window), EXTENT, limit)
        if self.cautious:
            self.window = min(self.window, (stop - self.begun) // 2)
            return self.window if self.window >= stop - start else 0
        return self.window
