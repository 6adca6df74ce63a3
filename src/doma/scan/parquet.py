"""Parquet as a source: an own row-group planner over pyarrow's column reader.

Values of dictionary-encoded columns are shown as themselves. Statistics are trusted for integers alone.

Source: scan.md §4 and §5; Apache Parquet format, "Statistics" (sort order of unsigned types, NaN).
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from doma.core.errors import CorruptFile, DomaError, LimitExceeded
from doma.scan.groups import Group, batch_of

_BUFFER = 1 << 20


class ParquetSource:
    """One Parquet file."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self._file = file
        try:
            self._python = pa.PythonFile(file, mode="r")
            self._reader = pq.ParquetFile(self._python)
            self._stored = self._reader.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as e:
            raise _broken(name, e) from e
        self._meta = self._reader.metadata
        self.schema = pa.schema([pa.field(f.name, _plain(f.type)) for f in self._stored])
        self.rows: int = self._meta.num_rows
        self._leaves: dict[str, range] = {}
        at = 0
        for field in self._stored:
            self._leaves[field.name] = range(at, at + _leaves(field.type))
            at += _leaves(field.type)
        if len(self._leaves) != len(self._stored):
            raise CorruptFile(
                f"{name}: a column name stands twice in the schema; rewrite the file", path=name
            )

    def groups(self, columns: Sequence[str]) -> list[Group]:
        out, start = [], 0
        for index in range(self._meta.num_row_groups):
            stop = start + self._meta.row_group(index).num_rows
            out.append(Group(index, start, stop))
            start = stop
        return out

    def size(self, group: Group, columns: Sequence[str]) -> int:
        meta = self._meta.row_group(group.index)
        total = 0
        for name in columns:
            for leaf in self._leaves[name]:
                chunk = meta.column(leaf)
                total += max(chunk.total_uncompressed_size, chunk.num_values * 8)
        return total

    def read(self, group: Group, columns: Sequence[str]) -> pa.RecordBatch:
        try:
            table = self._reader.read_row_group(group.index, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as e:
            raise _broken(self.name, e, group) from e
        if columns and table.num_rows != group.rows:
            raise _broken(
                self.name, ValueError(f"{table.num_rows} rows where {group.rows} were announced"), group
            )
        return batch_of({name: _decoded(table.column(name)) for name in columns}, columns, group.rows)

    def stream(self, group: Group, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        if not columns:
            yield batch_of({}, (), group.rows)
            return
        try:
            # Buffered: column chunks are read page by page instead of whole.
            reader = pq.ParquetFile(self._python, metadata=self._meta, buffer_size=_BUFFER, pre_buffer=False)
            for batch in reader.iter_batches(
                rows, row_groups=[group.index], columns=list(columns), use_threads=False
            ):
                yield batch_of({n: _decoded(batch.column(n)) for n in columns}, columns, batch.num_rows)
        except (pa.ArrowException, OSError, ValueError) as e:
            raise _broken(self.name, e, group) from e

    def bounds(self, group: Group, column: str) -> tuple[int, int] | None:
        kind = self.schema.field(column).type
        if not pt.is_integer(kind):
            return None
        statistics = self._meta.row_group(group.index).column(self._leaves[column][0]).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        low, high = statistics.min, statistics.max
        if not isinstance(low, int) or not isinstance(high, int) or high < low:
            return None
        # Writers have stored unsigned columns with signed order: believed only where both orders agree.
        if pt.is_unsigned_integer(kind) and (low < 0 or high >= 1 << kind.bit_width - 1):
            return None
        return low, high

    def close(self) -> None:
        self._reader.close(force=True)
        self._file.close()


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without dictionary encoding at the top or in a list."""
    if pt.is_dictionary(kind):
        return _plain(kind.value_type)
    if pt.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pt.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return kind


def _decoded(column: Any) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps several where 32-bit offsets would overflow
        raise LimitExceeded("a text column of a row group has more than 2 GiB; write smaller row groups")
    plain = _plain(array.type)
    return array if array.type == plain else array.cast(plain)


def _leaves(kind: pa.DataType) -> int:
    """Number of Parquet columns that a type takes."""
    if pt.is_nested(kind):
        return sum(_leaves(kind.field(n).type) for n in range(kind.num_fields)) or 1
    return 1


def _broken(name: str, error: Exception, group: Group | None = None) -> DomaError:
    if isinstance(error, DomaError):
        return error
    if isinstance(error.__cause__, DomaError):
        return error.__cause__
    where = "" if group is None else f", row group {group.index}"
    text = " ".join(str(error).split())[:200]
    facts: dict[str, Any] = {"path": name} if group is None else {"path": name, "row_group": group.index}
    return CorruptFile(f"{name}{where}: cannot be read as Parquet ({text}); upload the file again", **facts)
