"""Where the columns of a file lie: byte extents with their column and cluster, found in microseconds.

An extent is a run of baskets (TTree), of pages (RNTuple) or a column chunk (Parquet) of one column in one
cluster (row group). The extents of a *group*, that is of one column in one cluster, need not lie together;
group ``g + 1`` is the same column in its next cluster, if both have one column. Pure.

On disk: one line of JSON, then the arrays, compressed. What does not fit its checksum or its bounds is no
layout: whoever wrote it may have read a hostile file.

Source: cache contract §9.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from doma.core.errors import CorruptFile

_MAGIC = b"doma-layout-1 "
MOST_EXTENTS = 1 << 20
MOST_COLUMNS = 1 << 17
LARGEST = 64 << 20
"""Bytes of a layout, encoded or not."""

Span = tuple[int, int]
Ints = npt.NDArray[np.int64]
Shorts = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The extents of one file by their offsets; none overlap, but several columns may share one."""

    size: int
    names: tuple[tuple[str, str], ...]
    """Tree (empty for Parquet) and column of each column number."""
    starts: Ints
    """(n,) First bytes, ascending."""
    stops: Ints
    """(n,) Ends, ascending."""
    columns: Shorts
    """(n,) Column numbers."""
    clusters: Shorts
    """(n,) Cluster numbers, from 0 in each tree."""
    metadata: tuple[Span, ...] = ()
    """What has to be read to know this."""
    waits: tuple[Span, ...] = ()
    """Where more trees are described that could not be read yet."""
    groups: Shorts = field(init=False)
    """(n,) Group numbers."""
    group_columns: Shorts = field(init=False)
    """(groups,) Column of each group."""
    _order: Ints = field(init=False)
    _firsts: Ints = field(init=False)

    def __post_init__(self) -> None:
        order = np.lexsort((self.starts, self.clusters, self.columns))
        columns, clusters = self.columns[order], self.clusters[order]
        begins = np.ones(len(order), bool)
        begins[1:] = (columns[1:] != columns[:-1]) | (clusters[1:] != clusters[:-1])
        groups = np.empty(len(order), np.int32)
        groups[order] = np.cumsum(begins, dtype=np.int32) - 1
        firsts = np.flatnonzero(begins)
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "group_columns", columns[firsts])
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_firsts", np.append(firsts, len(order)))

    @property
    def weight(self) -> int:
        """About the bytes of memory it takes."""
        return 44 * len(self.starts) + 150 * len(self.names)

    def touched(self, start: int, stop: int) -> Span:
        """The extents ``first … last - 1`` that overlap ``[start, stop)``."""
        return int(self.stops.searchsorted(start, "right")), int(self.starts.searchsorted(stop, "left"))

    def find(self, offset: int) -> tuple[int, int] | None:
        """Column and cluster of a byte; None for metadata and unused bytes."""
        first, last = self.touched(offset, offset + 1)
        return (int(self.columns[first]), int(self.clusters[first])) if first < last else None

    def extents_of(self, group: int) -> Ints:
        """The extents of a group, in file order."""
        return self._order[self._firsts[group] : self._firsts[group + 1]]

    def ranges(
        self, columns: Iterable[int], clusters: Iterable[int] | None = None, gap: int = 0
    ) -> list[Span]:
        """The bytes of columns in clusters (None: in all), ascending, joined across at most ``gap`` bytes."""
        chosen = np.isin(self.columns, np.fromiter(columns, np.int32))
        if clusters is not None:
            chosen &= np.isin(self.clusters, np.fromiter(clusters, np.int32))
        return joined(zip(self.starts[chosen].tolist(), self.stops[chosen].tolist(), strict=True), gap)


def joined(spans: Iterable[Span], gap: int = 0) -> list[Span]:
    """Byte ranges sorted and united where they overlap or are at most ``gap`` bytes apart.

    >>> joined([(9, 12), (0, 4), (5, 6)], 1)
    [(0, 6), (9, 12)]
    """
    out: list[Span] = []
    for start, stop in sorted(spans):
        if out and start - out[-1][1] <= gap:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((start, stop))
    return out


def compose(
    size: int,
    names: Sequence[tuple[str, str]],
    extents: npt.NDArray[np.int64],
    metadata: Iterable[Span] = (),
    waits: Iterable[Span] = (),
) -> Layout:
    """A layout of extents in any order.

    What lies outside the file, or runs into an extent before it, is left out: the file lies about it.

    Args:
        size: Bytes of the file.
        names: Tree and name of each column.
        extents: (n, 4) start, length, column, cluster.
        metadata: What was read to know this.
        waits: Where more is described.
    """
    start, length, column, cluster = extents.reshape(-1, 4).T
    sane = (start >= 0) & (length > 0) & (length <= size) & (start <= size - length)
    sane &= (column >= 0) & (column < len(names)) & (cluster >= 0) & (cluster < 1 << 31)
    start, length, column, cluster = (part[sane] for part in (start, length, column, cluster))
    order = np.lexsort((column, length, start))
    start, stop, column, cluster = start[order], (start + length)[order], column[order], cluster[order]
    if len(start):
        before = np.maximum.accumulate(np.append(0, stop[:-1]))
        shared = np.append(False, (start[1:] == start[:-1]) & (stop[1:] == stop[:-1]))
        leader = np.maximum.accumulate(np.where(shared, 0, np.arange(len(start))))
        kept = (start >= before)[leader]
        start, stop, column, cluster = start[kept], stop[kept], column[kept], cluster[kept]
    return Layout(
        size,
        tuple(names),
        start,
        stop,
        column.astype(np.int32),
        cluster.astype(np.int32),
        tuple(joined(metadata)),
        tuple(sorted(waits)),
    )


def encode(layout: Layout) -> bytes:
    """The bytes of a layout."""
    head: dict[str, Any] = {
        "size": layout.size,
        "extents": len(layout.starts),
        "names": layout.names,
        "metadata": layout.metadata,
        "waits": layout.waits,
    }
    arrays = (layout.starts, layout.stops - layout.starts, layout.columns, layout.clusters)
    body = zlib.compress(
        json.dumps(head).encode() + b"\n" + b"".join(part.tobytes() for part in arrays), level=1
    )
    return _MAGIC + b"%08x\n" % crc32c(body) + body


def decode(data: bytes, size: int) -> Layout:
    """The layout in these bytes, for a file of this size.

    Raises:
        CorruptFile: it is none.
    """
    head, _, body = data.partition(b"\n")
    if len(data) > LARGEST or head != _MAGIC + b"%08x" % crc32c(body):
        raise CorruptFile("layout: damaged; it is made again")
    try:
        plain = zlib.decompressobj().decompress(body, LARGEST)
        text, _, rest = plain.partition(b"\n")
        fields = json.loads(text)
        count = int(fields["extents"])
        names = [(str(tree), str(name)) for tree, name in fields["names"]]
        metadata = [(int(a), int(b)) for a, b in fields["metadata"]]
        waits = [(int(a), int(b)) for a, b in fields["waits"]]
        if fields["size"] != size or not 0 <= count <= MOST_EXTENTS or len(rest) != 24 * count:
            raise CorruptFile("layout: not of this file; it is made again")
        longs = np.frombuffer(rest, np.int64, 2 * count).reshape(2, count)
        shorts = np.frombuffer(rest, np.int32, 2 * count, 16 * count).reshape(2, count)
    except (ValueError, TypeError, KeyError, RecursionError, zlib.error) as e:
        raise CorruptFile("layout: damaged; it is made again") from e
    inside = all(0 <= a <= b <= size for a, b in [*metadata, *waits])
    if len(names) > MOST_COLUMNS or len(waits) > 1000 or not inside:
        raise CorruptFile("layout: claims more than a file can have; it is not used")
    return compose(size, names, np.stack([*longs, *shorts], axis=1).astype(np.int64), metadata, waits)
