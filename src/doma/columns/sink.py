"""Results as Parquet: columns in, row groups out as steps finish; zstd, fsynced before it is named.

One row per event or flattened element; a jagged column is a list; a single unnamed array is the column
``""``, which awkward reads back as a bare array.

Source: servicex.md §9 of the project's contracts.
"""

import os
from pathlib import Path
from types import TracebackType

import awkward as ak
import pyarrow as pa
import pyarrow.parquet as pq

from doma.columns.evaluate import Table
from doma.core.errors import BadQuery, StorageFull, StorageUnavailable

GROUP = 16 << 20
"""Bytes gathered into one row group."""


class ParquetSink:
    """A result being written.

    Args:
        path: The file to make; it must not be read before :meth:`close`.
        like: A table without rows: column names and types of all that follow.
    """

    def __init__(self, path: Path, like: Table) -> None:
        self._path = path
        self._schema = to_arrow(like).schema
        self._waiting: list[pa.Table] = []
        self._held = 0
        self._groups = 0
        self.rows = 0
        try:
            self._file = path.open("xb")
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        except pa.ArrowException as e:
            self._file.close()
            raise BadQuery(f"query: the result does not fit into Parquet: {e}") from e
        except OSError as e:
            raise _translated(path, e) from e

    def write(self, table: Table) -> None:
        """Append the rows of a step."""
        data = to_arrow(table)
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
        """Finish and make durable; returns the size in bytes."""
        try:
            self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            return self._path.stat().st_size
        except OSError as e:
            raise _translated(self._path, e) from e

    def __enter__(self) -> "ParquetSink":
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
