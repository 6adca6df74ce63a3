"""Input files as columns: TTree and RNTuple by uproot, Parquet by pyarrow, one interface for all.

A file is read in windows of bounded size; a window reads the columns that filters need first and the others
only for the events that survive.
"""

import io
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import uproot
from uproot.source.chunk import Chunk
from uproot.source.chunk import Source as UprootSource
from uproot.source.futures import TrivialFuture

from doma.columns.near import did_you_mean, near
from doma.columns.remote import Bytes
from doma.core.errors import BadQuery, CorruptFile, UnknownColumn

GAP = 64 << 10
"""Ranges nearer than this are fetched in one request …"""
PIECE = 8 << 20
"""… of at most this size."""
CONNECTIONS = 4
TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "TChain")

Columns = dict[str, ak.Array]


class Source(Protocol):
    """A table in a file."""

    place: str
    """URL and tree, for messages."""
    names: tuple[str, ...]
    entries: int

    def read(self, names: tuple[str, ...], start: int, stop: int) -> Columns:
        """Entries ``[start, stop)`` of some columns; an empty range gives typed empty arrays."""

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator["Window"]:
        """All entries, in windows whose columns take ``step`` bytes or so; ``first`` are read first."""


def open_source(data: Bytes, tree: str | None) -> Source:
    """The table of a file.

    Raises:
        CorruptFile: empty, or neither ROOT nor Parquet. UnknownColumn: no such tree.
        BadQuery: several trees and none is named.
    """
    if data.size == 0:
        raise CorruptFile(f"{data.url}: the file is empty (0 bytes)")
    magic = data.read(0, min(4, data.size))
    if magic == b"root":
        return _root(data, tree)
    if magic == b"PAR1":
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
        self._start = start
        self._keep: npt.NDArray[np.int64] | None = None
        self._cache: dict[str, tuple[int, ak.Array]] = {n: (0, a) for n, a in (ready or {}).items()}
        self.size = stop - start
        self.names = source.names if not any(groups) else tuple(n for g in groups for n in g)

    def column(self, name: str) -> ak.Array:
        """(size,) values of a branch."""
        if name not in self._cache:
            self._load(name)
        offset, data = self._cache[name]
        return data if self._keep is None else data[self._keep - offset]

    def where(self, mask: npt.NDArray[np.bool_]) -> "Window":
        """The events for which the mask (size,) is true."""
        kept = Window(self._source, 0, 0, self._groups)
        kept._start, kept._cache, kept.names = self._start, dict(self._cache), self.names
        kept._keep = np.flatnonzero(mask) if self._keep is None else self._keep[mask]
        kept.size = len(kept._keep)
        return kept

    def _load(self, name: str) -> None:
        check_names(self._source, (name,))
        group = next((g for g in self._groups if name in g), (name,))
        wanted = tuple(n for n in group if n not in self._cache)
        if self._keep is None:
            low, high = 0, self.size
        elif self.size:
            low, high = int(self._keep[0]), int(self._keep[-1]) + 1
        else:
            low, high = 0, 0
        start = self._start + low if high else 0
        for key, data in self._source.read(wanted, start, start + high - low).items():
            self._cache[key] = (low, data)


def check_names(source: Source, names: tuple[str, ...]) -> None:
    """Raises UnknownColumn with the nearest names for the first one that the table lacks."""
    known = set(source.names)
    for name in names:
        if name not in known:
            raise UnknownColumn(
                f"{source.place}: there is no branch {name!r}; {did_you_mean(name, source.names)}",
                name=name,
                near=near(name, source.names),
            )


def _spans(source: Source, entries: int, size: float, step: int, groups: Any) -> Iterator[Window]:
    per = max(1, int(step / max(size / max(entries, 1), 1e-9))) if size else max(entries, 1)
    for start in range(0, entries, per):
        yield Window(source, start, min(entries, start + per), groups)


class RootSource:
    """A TTree or RNTuple."""

    def __init__(self, data: Bytes, name: str, tree: Any) -> None:
        self.place, self._tree = f"{data.url}, tree {name!r}", tree
        self._is_tree = hasattr(tree, "branches")
        # Listing the keys of an ntuple of 2,000 fields, and reading by name, takes uproot seconds; its top
        # fields are at hand, and each can be read by itself.
        self._fields: dict[str, Any] = {} if self._is_tree else {f.name: f for f in tree.fields}
        self.names = tuple(dict.fromkeys(tree.keys(full_paths=False) if self._is_tree else self._fields))
        self.entries = int(tree.num_entries)

    def read(self, names: tuple[str, ...], start: int, stop: int) -> Columns:
        if not names:
            return {}
        wanted = set(names)
        if self._is_tree:
            taken: set[str] = set()

            def pick(branch: Any) -> bool:
                first = branch.name in wanted and branch.name not in taken
                if first:
                    taken.add(branch.name)
                return first

            chosen = {b.cache_key for b in self._tree.itervalues(recursive=True) if pick(b)}
            arrays = self._tree.arrays(
                filter_branch=lambda b: b.cache_key in chosen, entry_start=start, entry_stop=stop, how=dict
            )
            by_name = {str(k).rpartition("/")[2]: a for k, a in arrays.items()}
        else:
            by_name = {
                n: self._fields[n].array(entry_start=start, entry_stop=stop)
                for n in names
                if n in self._fields
            }
        lost = wanted - set(by_name)
        if lost:
            raise BadQuery(
                f"{self.place}: the branch {min(lost)!r} has a type that cannot be read as a column"
            )
        return {n: by_name[n] for n in names}

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        return _spans(self, self.entries, self._bytes(names), step, groups)

    def _bytes(self, names: tuple[str, ...]) -> float:
        wanted = set(names)
        if self._is_tree:
            return float(
                sum(b.uncompressed_bytes for b in self._tree.itervalues(recursive=True) if b.name in wanted)
            )
        # An ntuple's page sizes are not summed by uproot: eight bytes for each of eight members is generous.
        return 64.0 * self.entries * len(names)


class ParquetSource:
    """A Parquet file."""

    def __init__(self, data: Bytes) -> None:
        self.place = data.url
        try:
            self._file = pq.ParquetFile(pa.PythonFile(_FileLike(data), mode="r"), pre_buffer=True)
        except (pa.ArrowException, OSError) as e:
            raise CorruptFile(f"{data.url}: not a readable Parquet file: {_line(e)}") from e
        self._meta = self._file.metadata
        self.names = tuple(self._file.schema_arrow.names)
        rows = [self._meta.row_group(i).num_rows for i in range(self._meta.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.entries = int(self._starts[-1])

    def read(self, names: tuple[str, ...], start: int, stop: int) -> Columns:
        if not names:
            return {}
        if start >= stop:
            schema = self._file.schema_arrow
            empty = pa.schema([schema.field(n) for n in names]).empty_table()
            return self._columns(empty, names)
        low = int(np.searchsorted(self._starts, start, side="right")) - 1
        high = int(np.searchsorted(self._starts, stop, side="left"))
        table = self._guarded(lambda: self._file.read_row_groups(list(range(low, high)), columns=list(names)))
        return self._columns(table.slice(start - int(self._starts[low]), stop - start), names)

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        for i in range(self._meta.num_row_groups):
            start, stop = int(self._starts[i]), int(self._starts[i + 1])
            size = self._bytes(i, set(names))
            if size <= step:
                yield Window(self, start, stop, groups)
                continue
            # A row group larger than the step is decoded in batches, all its columns at once.
            per = max(1, int((stop - start) * step / size))
            at = start
            batches = self._file.iter_batches(batch_size=per, row_groups=[i], columns=list(names))
            while (batch := self._guarded(lambda it=batches: next(it, None))) is not None:  # type: ignore[misc]
                ready = self._columns(pa.Table.from_batches([batch]), names)
                yield Window(self, at, at + batch.num_rows, groups, ready)
                at += batch.num_rows

    def _bytes(self, group: int, names: set[str]) -> int:
        meta = self._meta.row_group(group)
        columns = (meta.column(j) for j in range(meta.num_columns))
        return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] in names)

    def _columns(self, table: Any, names: tuple[str, ...]) -> Columns:
        return {n: ak.from_arrow(table.column(n)) for n in names}

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except (pa.ArrowException, OSError) as e:
            raise CorruptFile(f"{self.place}: the data cannot be decoded: {_line(e)}") from e


def _root(data: Bytes, name: str | None) -> RootSource:
    handler = type("BoundSource", (_RootBytes,), {"data": data})
    try:
        file = uproot.open({data.url: None}, handler=handler, object_cache=None, array_cache=None)
        classes = {k: c for k, c in file.classnames(cycle=False).items() if c in TREES}
    except (ValueError, OSError, NotImplementedError, uproot.deserialization.DeserializationError) as e:
        raise CorruptFile(f"{data.url}: not a readable ROOT file: {_line(e)}") from e
    trees = list(classes)
    # Clients write the text 'None' when no tree was named.
    if name in {None, "None"} and name not in trees:
        if len(trees) != 1:
            listed = f"it has {', '.join(trees[:8])}; name one" if trees else "it has no tree"
            raise (BadQuery if trees else UnknownColumn)(f"{data.url}: the query names no tree, and {listed}")
        name = trees[0]
    assert name is not None
    if name.split(";")[0] not in classes:
        tail = did_you_mean(name, trees) if trees else "the file has no trees at all"
        raise UnknownColumn(
            f"{data.url}: there is no tree {name!r}; {tail}", name=name, near=near(name, trees)
        )
    return RootSource(data, name, file[name])


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


class _RootBytes(UprootSource):  # type: ignore[misc]
    """Our bytes as uproot wants them: many ranges at once, merged and fetched side by side."""

    data: Bytes

    def __init__(self, file_path: str, **options: Any) -> None:
        super().__init__()
        self._file_path, self._num_bytes = file_path, self.data.size
        self._closed = False
        self._pool: ThreadPoolExecutor | None = None

    def chunk(self, start: int, stop: int) -> Any:
        # uproot asks for a generous first chunk, also of a small file.
        stop = min(stop, self.data.size)
        return Chunk(self, start, stop, TrivialFuture(self.data.read(start, stop)))

    def chunks(self, ranges: list[tuple[int, int]], notifications: "queue.Queue[Any]") -> list[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CONNECTIONS, "input")
        merged = _merged(ranges)
        blocks = dict(zip(merged, self._pool.map(lambda r: self.data.read(*r), merged), strict=True))
        made = []
        for start, stop in ranges:
            low, high = next((a, b) for a, b in merged if a <= start and stop <= b)
            part = memoryview(blocks[low, high])[start - low : stop - low]
            chunk = Chunk(self, start, stop, TrivialFuture(part))
            made.append(chunk)
            notifications.put(chunk)
        return made

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> "_RootBytes":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges as fewer, larger ones; each lies whole in one of them.

    >>> _merged([(0, 10), (20, 30), (1000000, 1000010)])
    [(0, 30), (1000000, 1000010)]
    """
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start - merged[-1][1] <= GAP and stop - merged[-1][0] <= PIECE:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif not (merged and stop <= merged[-1][1]):
            merged.append((start, stop))
    return merged


class _FileLike(io.RawIOBase):
    """Our bytes as a Python file for pyarrow."""

    def __init__(self, data: Bytes) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._data.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._data.size if size is None or size < 0 else min(self._data.size, self._at + size)
        data = self._data.read(self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data
