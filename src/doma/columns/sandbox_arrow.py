"""Arrow batches of a process that nobody trusts, read as data: every length is checked against its bytes.

No compression (bombs), no extension or dictionary types (code and shared state on reading), no types whose
elements take no bytes without a bound. What passes is validated by Arrow in full.
"""

import struct
from typing import Any

import awkward as ak
import pyarrow as pa

from doma.columns.evaluate import Table
from doma.core.errors import BadQuery

ROWS = 1 << 18
"""Rows of one batch at most."""


def columns(body: bytes | bytearray, place: str) -> Table:
    """The columns of one batch.

    Args:
        body: An Arrow IPC stream.
        place: URL and tree, for messages.

    Raises:
        BadQuery: it is not what our harness sends.
    """
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
            if message.type == "record batch" and not _plain(message.metadata.to_pybytes()):
                raise BadQuery(f"{place}: the function's result is compressed")
            if message.type not in {"schema", "record batch"}:
                raise BadQuery(f"{place}: the function's result has a part of the kind {message.type}")
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            for field in reader.schema:
                _check_type(field.type, f"{place}: the column {field.name[:80]!r}")
            if len(set(reader.schema.names)) != len(reader.schema.names):
                raise BadQuery(f"{place}: two columns of the result have one name")
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as e:
        raise BadQuery(f"{place}: the function's result cannot be read: {str(e)[:200]}") from e
    if table.num_rows > ROWS or table.nbytes > 2 * len(body) + 1024:
        raise BadQuery(f"{place}: the function's result says that it is larger than it is")
    for column in table.columns:
        for chunk in column.chunks:
            _check_length(chunk, 8 * len(body) + ROWS, place)
    # A table of one column without a name is that column to awkward.
    columns = ((name, ak.from_arrow(table.select([name]))) for name in table.column_names)
    return Table({name: data[name] if name else data for name, data in columns})


def _plain(metadata: bytes) -> bool:
    """Whether a record batch's head names no compression: the fourth field of its FlatBuffers table."""

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        (size,) = struct.unpack_from("<H", metadata, vtable)
        at = 4 + 2 * number
        offset = struct.unpack_from("<H", metadata, vtable + at)[0] if at < size else 0
        return table + offset if offset else 0

    (root,) = struct.unpack_from("<I", metadata, 0)
    header = field(root, 2)
    return not field(header + struct.unpack_from("<I", metadata, header)[0], 3)


def _check_type(kind: Any, place: str) -> None:
    t = pa.types
    if t.is_union(kind):
        raise BadQuery(f"{place} mixes types; give all its elements one type")
    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        return _check_type(kind.value_type, place)
    if t.is_struct(kind):
        for i in range(kind.num_fields):
            _check_type(kind.field(i).type, place)
        return None
    texts = (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)
    simple = (t.is_boolean, t.is_integer, t.is_floating, t.is_temporal, t.is_null, t.is_decimal, *texts)
    if isinstance(kind, pa.BaseExtensionType) or not any(is_(kind) for is_ in simple):
        raise BadQuery(f"{place} has the type {str(kind)[:80]}, which cannot be delivered")
    return None


def _check_length(array: Any, most: int, place: str) -> None:
    if len(array) > most:
        raise BadQuery(f"{place}: the function's result says that it is larger than it is")
    kind = array.type
    if pa.types.is_struct(kind):
        for i in range(kind.num_fields):
            _check_length(array.field(i), most, place)
    elif pa.types.is_nested(kind):
        _check_length(array.values, most, place)
