"""Results as Parquet: row groups as steps finish; zstd.

One row per event or flattened element; a jagged column is a list; a single unnamed array is the column
``""``, which awkward reads back as a bare array.

Source: servicex.md §9 of the project's contracts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
from awkward import contents

# The writer itself: pyarrow.parquet around it imports every file system, 8 MiB of a worker.
from pyarrow._parquet import ParquetWriter

from doma.columns.sink_file import FileSink, same_names
from doma.core.errors import BadQuery

DICTIONARY = 128 << 10
"""Bytes of a column's distinct values up to which they are written as a dictionary: looking for them among
many different numbers takes time, and ten times their memory."""


class ParquetSink(FileSink):
    """A Parquet file."""

    trees = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._table: _Table | None = None

    def copy(self, path: str, thing: Any) -> None:
        raise BadQuery(f"query: the histogram {path!r} cannot be stored in Parquet; ask for root-file")

    def _begin(self, tree: str, columns: Mapping[str, ak.Array]) -> "_Table":
        self._table = _Table(self._file, to_arrow(columns).schema)
        return self._table

    def _finish(self) -> None:
        (self._table or _Table(self._file, pa.schema([]))).finish()


class _Table:
    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._groups = 0
        try:
            self._writer = ParquetWriter(
                file, schema, version="2.6", compression="zstd", use_dictionary=True,
                dictionary_pagesize_limit=DICTIONARY, writer_engine_version="V2",
            )  # fmt: skip
        except OSError:
            raise
        except pa.ArrowException as e:
            raise BadQuery(f"query: the result does not fit into Parquet: {e}") from e

    def add(self, columns: Mapping[str, ak.Array]) -> int:
        same_names("the result", tuple(self._schema.names), tuple(columns))
        data = to_arrow({n: columns[n] for n in self._schema.names})
        if data.schema != self._schema:
            data = pa.table([self._cast(data.column(f.name), f) for f in self._schema], schema=self._schema)
        self._waiting.append(data)
        return int(data.nbytes)

    def flush(self) -> None:
        tables = [t for t in self._waiting if t.num_rows]
        self._waiting = []
        if tables:
            whole = pa.concat_tables(tables)
            self._writer.write_table(whole, max(1, whole.num_rows))
            self._groups += 1

    def finish(self) -> None:
        if not self._groups:
            # Without a row group, if an empty one, awkward does not open the file.
            # Not empty_table(): pyarrow imports pandas for it, 0.3 s and 40 MB.
            self._writer.write_table(pa.Table.from_batches([], self._schema))
        self._writer.close()

    def _cast(self, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
        try:
            cast = column.cast(field.type)
        except (pa.ArrowException, ValueError) as e:
            raise BadQuery(f"query: the column {field.name!r} changes its type within the file: {e}") from e
        if not field.nullable and cast.null_count:
            raise BadQuery(
                f"query: the column {field.name!r} changes its type within the file: "
                "values are missing in a later part"
            )
        return cast


def to_arrow(columns: Mapping[str, ak.Array]) -> pa.Table:
    """Columns as an Arrow table.

    Raises:
        BadQuery: a column has a type that Parquet cannot hold, named.
    """
    fields, arrays = [], []
    for name, data in columns.items():
        if data.layout.is_union:
            raise BadQuery(
                f"query: the column {name!r} mixes types; give both parts of its if … else one type"
            )
        try:
            column = _plain(data.layout)
            if column is None:
                packed = ak.transform(_solid, ak.to_packed(data))
                column = ak.to_arrow(packed, extensionarray=False, list_to32=True)
        except (TypeError, ValueError, IndexError, NotImplementedError, pa.ArrowException) as e:
            raise BadQuery(f"query: the column {name!r} cannot be stored in Parquet: {e}") from e
        fields.append(pa.field(name, column.type, nullable=data.layout.is_option))
        arrays.append(column)
    return pa.table(arrays, schema=pa.schema(fields))


def _plain(layout: contents.Content) -> pa.Array | None:
    """Numbers, or lists of numbers, as awkward converts them, but at once."""
    if layout.parameters:
        return None
    if isinstance(layout, contents.NumpyArray):
        data = layout.data
        if not isinstance(data, np.ndarray) or data.ndim != 1 or data.dtype.kind not in "biuf":
            return None
        if not data.dtype.isnative or data.dtype.itemsize > 8:
            return None
        stored = np.packbits(data, bitorder="little") if data.dtype.kind == "b" else data
        buffer = pa.py_buffer(np.ascontiguousarray(stored))
        # Not pa.array(): it imports pandas, 40 MiB.
        return pa.Array.from_buffers(pa.from_numpy_dtype(data.dtype), len(data), [None, buffer])
    if not isinstance(layout, contents.ListOffsetArray):
        return None
    offsets = np.asarray(layout.offsets.data)
    first, last = int(offsets[0]), int(offsets[-1])
    if last - first > np.iinfo(np.int32).max or not isinstance(layout.content, contents.NumpyArray):
        return None
    values = _plain(layout.content[first:last])
    if values is None:
        return None
    ends = pa.py_buffer((offsets - first).astype(np.int32))
    kind = pa.list_(pa.field("item", values.type, nullable=False))
    return pa.Array.from_buffers(kind, len(layout), [None, ends], children=[values])


def _solid(layout: contents.Content, **_: Any) -> contents.Content | None:
    """Give options without a single value one to point at: awkward does not convert them otherwise."""
    if isinstance(layout, contents.IndexedOptionArray) and len(layout) and not len(layout.content):
        if layout.content.is_unknown:
            return contents.IndexedOptionArray(layout.index, contents.NumpyArray(np.zeros(1)))
        one = ak.transform(_solid, layout.content.form.length_one_array(highlevel=False), highlevel=False)
        return contents.IndexedOptionArray(layout.index, one, parameters=layout.parameters)
    return None
