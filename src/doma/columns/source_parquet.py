"""Parquet files as columns, by pyarrow."""

from collections.abc import Callable, Iterator
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from doma.columns.fetch import FileLike
from doma.columns.plain import taken
from doma.columns.remote import Bytes
from doma.columns.source import Columns, Index, Window
from doma.core.errors import CorruptFile, DomaError

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}


class ParquetSource:
    """A Parquet file."""

    def __init__(self, data: Bytes) -> None:
        self.place = data.url
        self._guarded(lambda: self._begin(data))

    def _begin(self, data: Bytes) -> None:
        self._file = pq.ParquetFile(pa.PythonFile(FileLike(data), mode="r"), pre_buffer=True)
        self._meta = self._file.metadata
        self._schema = self._file.schema_arrow  # made anew each time it is asked for: slow with many columns
        self.names = self.readable = tuple(self._schema.names)
        rows = [self._meta.row_group(i).num_rows for i in range(self._meta.num_row_groups)]
        if min(rows, default=0) < 0:
            raise CorruptFile(f"{self.place}: a row group has a negative number of rows")
        self._leaves: dict[str, range] = {}
        stop = 0
        for field in self._schema:
            self._leaves[field.name] = range(stop, stop := stop + _leaves(field.type))
        if stop != self._meta.num_columns:
            raise CorruptFile(f"{self.place}: it has {self._meta.num_columns} columns of values, not {stop}")
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.entries = int(self._starts[-1])
        self._missing: dict[str, bool] = {}

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        if not names:
            return {}
        if start >= stop:
            # Not empty_table(): pyarrow imports pandas for it, 0.3 s and 40 MB.
            empty = pa.Table.from_batches([], pa.schema([self._schema.field(n) for n in names]))
            return self._columns(empty, names)
        low = int(np.searchsorted(self._starts, start, side="right")) - 1
        high = int(np.searchsorted(self._starts, stop, side="left"))
        groups = np.arange(low, high)
        if keep is not None:
            groups = groups[np.diff(np.searchsorted(keep, self._starts[low : high + 1])) > 0]
        table = self._guarded(lambda: self._file.read_row_groups(groups.tolist(), columns=list(names)))
        sizes = np.diff(self._starts)[groups]
        if table.num_rows != int(sizes.sum()):
            raise CorruptFile(f"{self.place}: the row groups have other numbers of rows than they say")
        if keep is None:
            return self._columns(table.slice(start - int(self._starts[low]), stop - start), names)
        # Rows of the groups that were read, counted through.
        group = np.searchsorted(self._starts[groups], keep, side="right") - 1
        place = keep - self._starts[groups][group] + (np.cumsum(sizes) - sizes)[group]
        return {n: taken(a, place) for n, a in self._columns(table, names).items()}

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        wanted = set(names)
        begin = held = 0
        for i in range(self._meta.num_row_groups):
            size = self._bytes(i, wanted)
            if held and held + size > step:
                yield Window(self, int(self._starts[begin]), int(self._starts[i]), groups)
                begin, held = i, 0
            held += size
            if size > step:
                yield from self._batches(i, names, step / size, groups)
                begin, held = i + 1, 0
        if begin < self._meta.num_row_groups:
            yield Window(self, int(self._starts[begin]), self.entries, groups)

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        wanted = set(names)
        chosen = [c for i in range(self._meta.num_row_groups) for c in self._chunks(i, wanted)]
        return sum(c.total_compressed_size for c in chosen), sum(c.total_uncompressed_size for c in chosen)

    def _batches(
        self, group: int, names: tuple[str, ...], share: float, groups: tuple[tuple[str, ...], ...]
    ) -> Iterator[Window]:
        """A row group larger than the step, decoded in batches, all its columns at once."""
        at, stop = int(self._starts[group]), int(self._starts[group + 1])
        per = max(1, int((stop - at) * share))
        batches = self._file.iter_batches(batch_size=per, row_groups=[group], columns=list(names))
        while (batch := self._guarded(lambda: next(batches, None))) is not None:
            ready = self._columns(pa.Table.from_batches([batch]), names)
            yield Window(self, at, at + batch.num_rows, groups, ready)
            at += batch.num_rows

    def _chunks(self, group: int, names: set[str]) -> list[Any]:
        meta = self._meta.row_group(group)
        return [meta.column(j) for name in names for j in self._leaves.get(name, ())]

    def _bytes(self, group: int, names: set[str]) -> int:
        """About the bytes of some columns in memory: what is encoded as a dictionary is larger there."""
        chunks = self._chunks(group, names)
        lists = 8 * int(self._meta.row_group(group).num_rows) * len(chunks)
        sizes = [
            max(c.total_uncompressed_size, c.num_values * _WIDTHS.get(c.physical_type, 16)) for c in chunks
        ]
        return lists + int(sum(sizes))

    def _columns(self, table: Any, names: tuple[str, ...]) -> Columns:
        found: Columns = self._guarded(lambda: {n: self._column(n, joined(table.column(n))) for n in names})
        return found

    def _column(self, name: str, values: Any) -> ak.Array:
        """An optional column has its type in every part of the file, also in one where nothing is missing."""
        kind = _spelled(values.type)
        data = ak.from_arrow(values if kind == values.type else values.cast(kind))
        if name not in self._missing:
            self._missing[name] = self._may_miss(name)
        if self._missing[name] and not data.layout.is_option:
            return ak.Array(ak.contents.UnmaskedArray(data.layout))
        return data

    def _may_miss(self, name: str) -> bool:
        """Whether a value may be missing; before it is read a missing list looks like an empty one."""
        if not self._schema.field(name).nullable:
            return False
        chunks = (c for i in range(self._meta.num_row_groups) for c in self._chunks(i, {name}))
        told = (
            c.statistics.null_count if c.statistics and c.statistics.has_null_count else 1 for c in chunks
        )
        return any(count > 0 for count in told)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DomaError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError) as e:
            cause: BaseException | None = e
            while cause is not None:
                if isinstance(cause, DomaError):
                    raise cause from e
                cause = cause.__cause__ or cause.__context__
            line = " ".join(str(e).split())[:300] or type(e).__name__
            raise CorruptFile(f"{self.place}: cannot be read as Parquet: {line}") from e


def joined(column: Any) -> Any:
    """A column of a table as one array."""
    return column.combine_chunks() if column.num_chunks else _none_of(_spelled(column.type))


def _leaves(kind: Any) -> int:
    """The columns of values that a type is stored as, one after the other."""
    if pa.types.is_map(kind):
        return _leaves(kind.key_type) + _leaves(kind.item_type)
    if pa.types.is_dictionary(kind):
        return 1
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _spelled(kind: Any) -> Any:
    """A type with the values themselves where it has numbers of a dictionary."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_spelled(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_spelled(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct(
            [f.with_type(_spelled(f.type)) for f in (kind.field(i) for i in range(kind.num_fields))]
        )
    return kind


def _none_of(kind: Any) -> Any:
    """No values of a type: to combine no chunks pandas is imported; lists of no nulls lack an offset."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first = pa.py_buffer(bytes(8 if pa.types.is_large_list(kind) else 4))
        return pa.Array.from_buffers(kind, 0, [None, first], children=[_none_of(kind.value_type)])
    if pa.types.is_struct(kind):
        parts = [_none_of(kind.field(i).type) for i in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, 0, [None], children=parts)
    return pa.nulls(0, kind)
