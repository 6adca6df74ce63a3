"""Input files as columns: TTree, RNTuple and Parquet behind one interface.

A file is read in windows of bounded size along its clusters; a window reads the columns that filters need
first and the others only for the events that survive, basket by basket.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns.near import did_you_mean, near
from doma.columns.plain import taken
from doma.columns.remote import Bytes
from doma.core.errors import CorruptFile, UnknownColumn

if TYPE_CHECKING:
    from doma.columns.plan import Plan

MOST = 125_000
"""Events of a window: more of them take memory and save no time."""
Columns = dict[str, ak.Array]
Index = npt.NDArray[np.int64]


class Source(Protocol):
    """A table in a file."""

    place: str
    """URL and tree, for messages."""
    names: tuple[str, ...]
    entries: int

    @property
    def readable(self) -> tuple[str, ...]:
        """The columns that can be read: what a query for whole events gets."""

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        """Entries ``[start, stop)`` of some columns; an empty range gives typed empty arrays.

        Args:
            names: Columns.
            start: First entry.
            stop: Behind the last.
            keep: Only these of the entries, ascending; what holds none of them need not be fetched.

        Raises:
            CorruptFile, LimitExceeded: the data. BadQuery: a column of a type that cannot be read.
        """

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator["Window"]:
        """All entries, in windows whose columns take ``step`` bytes or so; ``first`` are read first."""

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        """Bytes of these columns, compressed and not; 0: not known."""


@runtime_checkable
class HasPaths(Protocol):
    """A table whose columns have columns, which ``parent/child`` names, too."""

    def path(self, name: str) -> str | None:
        """Where a column is, whatever it is called; None: there is none."""


@runtime_checkable
class CanPush(Protocol):
    """An input beside which a part of a query can be run."""

    def push(self, plan: "Plan") -> Source | None:
        """The table without events that the plan drops anyway; None: read it directly."""


def open_source(data: Bytes, tree: str | None, plan: "Plan | None" = None) -> Source:
    """The table of a file.

    Args:
        data: The file.
        tree: Tree or ntuple; None: the only one.
        plan: What will be asked of it; its filters may be run where the file lies.

    Raises:
        CorruptFile: empty, or neither ROOT nor Parquet. UnknownColumn: no such tree.
        BadQuery: several trees and none is named.
    """
    if plan is not None and isinstance(data, CanPush) and (source := data.push(plan)) is not None:
        return source
    if data.size == 0:
        raise CorruptFile(f"{data.url}: the file is empty (0 bytes)")
    magic = data.read(0, min(4, data.size))
    if magic == b"root":
        from doma.columns.source_root import open_root

        return open_root(data, tree)
    if magic == b"PAR1":
        from doma.columns.source_parquet import ParquetSource

        return ParquetSource(data)
    raise CorruptFile(f"{data.url}: neither a ROOT nor a Parquet file; it begins with {magic!r}")


class Window:
    """The events of a window, or those of them that passed the filters."""

    def __init__(
        self,
        source: Source,
        start: int,
        stop: int,
        groups: tuple[tuple[str, ...], ...],
        ready: Columns | None = None,
    ) -> None:
        self._source, self._groups = source, groups
        self._start, self._stop = start, stop
        self._keep: Index | None = None
        # Each column with the entries that it has values of; None: all.
        self._cache: dict[str, tuple[Index | None, ak.Array]] = {
            n: (None, a) for n, a in (ready or {}).items()
        }
        self.size = stop - start
        wanted = {n for group in groups for n in group} or set(source.names)
        self.names = tuple(n for n in source.names if n in wanted)

    def column(self, name: str) -> ak.Array:
        """(size,) values of a branch."""
        if name not in self._cache:
            self._load(name)
        held, data = self._cache[name]
        if held is not self._keep:
            assert self._keep is not None
            place = self._keep - self._start if held is None else np.searchsorted(held, self._keep)
            held, data = self._cache[name] = self._keep, taken(data, place)
        return data

    def where(self, mask: npt.NDArray[np.bool_]) -> "Window":
        """The events for which the mask (size,) is true."""
        kept = Window(self._source, self._start, self._stop, self._groups)
        kept._cache, kept.names = dict(self._cache), self.names
        kept._keep = np.flatnonzero(mask) + self._start if self._keep is None else self._keep[mask]
        kept.size = len(kept._keep)
        return kept

    def _load(self, name: str) -> None:
        check_names(self._source, (name,))
        group = next((g for g in self._groups if name in g), (name,))
        wanted = tuple(n for n in group if n not in self._cache)
        start, stop, keep = self._start, self._stop, self._keep
        if keep is not None:
            start, stop = (int(keep[0]), int(keep[-1]) + 1) if len(keep) else (0, 0)
        for key, data in self._source.read(wanted, start, stop, keep).items():
            self._cache[key] = (keep, data)


def cuts(entries: int, size: int, borders: Index | None) -> Iterator[tuple[int, int]]:
    """Ranges of about ``size`` entries, along the borders of clusters where these lie near.

    >>> list(cuts(100, 30, np.array([0, 20, 40, 60, 80, 100])))
    [(0, 20), (20, 40), (40, 60), (60, 80), (80, 100)]
    """
    size, start = max(1, min(size, MOST)), 0
    while start < entries:
        stop = min(entries, start + size)
        if borders is not None and stop < entries:
            near_ = int(borders[max(0, int(np.searchsorted(borders, stop, "right")) - 1)])
            stop = near_ if near_ - start > size // 2 else stop
        yield start, stop
        start = stop


def check_names(source: Source, names: tuple[str, ...]) -> None:
    """Raises UnknownColumn with the nearest names for the first one that the table lacks."""
    known = set(source.names)
    for name in names:
        if name not in known and (not isinstance(source, HasPaths) or source.path(name) is None):
            raise UnknownColumn(
                f"{source.place}: there is no branch {name!r}; {did_you_mean(name, source.names)}",
                name=name,
                near=near(name, source.names),
            )
