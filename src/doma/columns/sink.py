"""Results as Parquet: columns in, row groups out as steps finish; zstd, fsynced before it is named.

One row per event or flattened element; a jagged column is a list; a single unnamed array is the column
``""``, which awkward reads back as a bare array.

Source: servicex.md §9 of the project's contracts.
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import awkward as ak
import pyarrow as pa
import pyarrow.parquet as pq

from doma.columns.evaluate import Table
from doma.core.errors import BadQuery, StorageFull, StorageUnavailable

FORMATS = ("parquet",)
GROUP = 16 << 20
"""Bytes gathered into one row group."""


TREE = "servicex"
"""The output tree of a query that names none."""


class Sink(Protocol):
    """A result being written; leaving its context by an error removes the file."""

    rows: int
    """Rows so far, of all trees."""

    def write(self, table: Table, tree: str = TREE) -> None:
        """Append rows to an output tree; its first table, which may have no rows, fixes names and types.

        Raises:
            BadQuery: a column that the format cannot hold, or that differs from the tree's, named.
            StorageFull, StorageUnavailable.
        """

    def copy(self, path: str, thing: Any) -> None:
        """Store a histogram (an uproot model) under a path, unchanged; BadQuery if the format cannot."""

    def close(self) -> int:
        """Finish and make durable; the size in bytes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_sink(path: Path, format_: str) -> Sink:
    """A result file to be made; it must not be read before it is closed. Raises BadQuery: unknown format."""
    if format_ == "parquet":
        return ParquetSink(path)
    raise BadQuery(f"result-format: {format_[:40]!r} is not offered; there is {', '.join(FORMATS)}")


class ParquetSink:
    """A Parquet file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: list[pa.Table] = []
        self._held = 0
        self._groups = 0
        self.rows = 0
        try:
            self._file = path.open("xb")
        except OSError as e:
            raise _translated(path, e) from e

    def copy(self, path: str, thing: Any) -> None:
        raise BadQuery(f"query: the histogram {path!r} cannot be stored in Parquet; ask for root-file")

    def _begin(self, schema: Any) -> None:
        self._schema = schema
        try:
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        except pa.ArrowException as e:
            raise BadQuery(f"query: the result does not fit into Parquet: {e}") from e
        except OSError as e:
            raise _translated(self._path, e) from e

    def write(self, table: Table, tree: str = TREE) -> None:
        data = to_arrow(table)
        if self._schema is None:
            self._begin(data.schema)
        if data.schema != self._schema:
            try:
                data = data.cast(self._schema)
            except (pa.ArrowException, ValueError) as e:
                raise BadQuery(f"query: a column changes its type within the file: {e}") from e
        self.rows += data.num_rows
        self._waiting.append(data)
        self._held += data.nbytes
        if self._held >= GROUP:
            self._flush()

    def close(self) -> int:
        try:
            if self._schema is None:
                self._begin(pa.schema([]))
            self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            return self._path.stat().st_size
        except OSError as e:
            raise _translated(self._path, e) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        # A file without rows still gets one (empty) row group: awkward does not open it otherwise.
        tables = self._waiting or ([] if self._groups else [self._schema.empty_table()])
        if tables:
            try:
                self._writer.write_table(pa.concat_tables(tables))
            except OSError as e:
                raise _translated(self._path, e) from e
        self._groups += len(tables) > 0
        self._waiting, self._held = [], 0


def to_arrow(table: Table) -> pa.Table:
    """Columns as an Arrow table.

    Raises:
        BadQuery: a column has a type that Parquet cannot hold, named.
    """
    fields, arrays = [], []
    for name, data in table.columns.items():
        if data.layout.is_union:
            raise BadQuery(
                f"query: the column {name!r} mixes types; give both parts of its if … else one type"
            )
        try:
            column = ak.to_arrow(ak.to_packed(data), extensionarray=False, list_to32=True)
        except (TypeError, ValueError, NotImplementedError, pa.ArrowException) as e:
            raise BadQuery(f"query: the column {name!r} cannot be stored in Parquet: {e}") from e
        fields.append(pa.field(name, column.type, nullable=data.layout.is_option))
        arrays.append(column)
    return pa.table(arrays, schema=pa.schema(fields))


def _translated(path: Path, error: OSError) -> StorageFull | StorageUnavailable:
    if error.errno in {28, 122}:  # ENOSPC, EDQUOT
        return StorageFull(f"{path.name}: no space left for the result; free some and submit again")
    return StorageUnavailable(f"{path.name}: the result cannot be written: {error.strerror}")
