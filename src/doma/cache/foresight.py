"""Which bytes of a file will be wanted next, judged by its own structure.

A cache asks the :class:`Foresight` of an open object at each read; :class:`Sight` knows the file's clusters
and columns (:mod:`doma.cache.layout`). What is remembered is per column and cluster, not per reader: over
HTTP each range is a reader of its own, and several clients may work at different ends of one file.

Source: cache contract §9.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from doma.cache.extents import PAGE
from doma.cache.layout import Layout, Span, joined

_WHOLE = 32
"""Extents within one read that tell a copy of the whole file from a read of columns."""
_PART = 64 << 10
"""So many bytes of an extent are a read of it; of a smaller one the half: not the rim of a rounded range."""
_RECENT = 20_000
"""Reads of the object after which a read is no neighbour of the next any more."""
_AHEAD = 8 << 20
"""Bytes that one read may have fetched ahead."""
_REMEMBERED = 1024
"""Reads that are remembered until the layout is known."""
_STEADY = 4
"""Clusters read in a row after which two are fetched ahead instead of one."""


class Foresight(Protocol):
    """The reading habits of the clients of one version of one object."""

    def seen(self, start: int, stop: int) -> Sequence[tuple[int, int]]:
        """Note a read of ``[start, stop)``; the byte ranges worth fetching now, none that was given before.

        Called on the event loop for every read, hit or miss: microseconds, never waits.
        """

    def reach(self, stop: int) -> int:
        """How far plain read-ahead may go after a read that ended at ``stop``.

        The size while the structure is unknown or the file is read as a whole; else the end of the extent
        that is being read: what comes after it in the file belongs to another column.
        """


class Sight:
    """The habits of clients of one object; says nothing until it is told the layout."""

    __slots__ = (
        "_before",
        "_columns",
        "_given",
        "_groups",
        "_layout",
        "_reads",
        "_size",
        "_stamps",
        "_starts",
        "_stops",
        "_whole",
    )

    def __init__(self, size: int) -> None:
        self._size = size
        self._before: deque[Span] = deque(maxlen=_REMEMBERED)
        self.learn(None)

    @property
    def layout(self) -> Layout | None:
        """What is known of the file's structure."""
        return self._layout

    def learn(self, layout: Layout | None) -> None:
        """Take a layout, or forget it; of the reads so far the last ones without a layout count."""
        self._layout = layout
        groups = len(layout.group_columns) if layout else 0
        # One element of a numpy array costs as much as five of a view.
        nothing = memoryview(b"")
        self._starts = layout.starts.data if layout else nothing
        self._stops = layout.stops.data if layout else nothing
        self._groups = layout.groups.data if layout else nothing
        self._columns = layout.group_columns.data if layout else nothing
        self._stamps = array("q", bytes(8 * groups))
        self._given = bytearray(groups)
        self._reads, self._whole = 0, False
        if layout is not None:
            for start, stop in self._before:
                for group in self._read_groups(start, stop):
                    self._stamps[group] = self._reads
            self._before.clear()

    def seen(self, start: int, stop: int) -> Sequence[Span]:
        layout = self._layout
        if layout is None:
            self._before.append((start, stop))
            return ()
        wanted: list[Span] = []
        left = _AHEAD
        for group in self._read_groups(start, stop):
            self._stamps[group] = self._reads
            for span in self._next(layout, group, left):
                wanted.append(span)
                left -= span[1] - span[0]
        return joined(wanted, PAGE)

    def reach(self, stop: int) -> int:
        if self._layout is None or self._whole:
            return self._size
        extent = bisect_right(self._stops, stop - 1)
        inside = extent < len(self._starts) and self._starts[extent] < stop
        return self._stops[extent] if inside else stop

    def _read_groups(self, start: int, stop: int) -> list[int]:
        """The groups that a read is a read of."""
        first, last = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if first >= last:
            return []
        self._reads += 1
        self._whole = last - first > _WHOLE
        if self._whole:
            return []
        out = []
        for extent in range(first, last):
            a, b = self._starts[extent], self._stops[extent]
            inside = start <= a and b <= stop
            if inside or start == a or min(b, stop) - max(a, start) >= min((b - a + 1) // 2, _PART):
                out.append(self._groups[extent])
        return out

    def _next(self, layout: Layout, group: int, most: int) -> list[Span]:
        """What to fetch of the column's next groups, if this one and that before were read."""
        stamps, given, columns = self._stamps, self._given, self._columns
        column, run = columns[group], 1
        while run < _STEADY and group >= run and self._lately(group - run) and columns[group - run] == column:
            run += 1
        if run < 2:
            return []
        last = min(group + 2, len(columns) - 1)
        out: list[Span] = []
        for following in range(group + 1, min(last, group + (2 if run >= _STEADY else 1)) + 1):
            if columns[following] != column:
                break
            if given[following] or stamps[following]:
                continue
            spans = [(self._starts[n], self._stops[n]) for n in layout.extents_of(following).tolist()]
            most -= sum(b - a for a, b in spans)
            if most < 0:
                break
            given[following] = 1
            out += spans
        return out

    def _lately(self, group: int) -> bool:
        # What was fetched ahead may have been read where nobody told us: by another process of the cache.
        if self._given[group]:
            return True
        return self._stamps[group] > 0 and self._reads - self._stamps[group] < _RECENT
