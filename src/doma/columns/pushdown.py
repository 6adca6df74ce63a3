"""The flat part of a query run beside the data, where a scan service serves the same file.

Only conditions that drop no event which the query keeps are sent: the query itself runs here on what comes
back, all its filters included, so an answer can't depend on who filtered. What is not plainly the same
there and here stays here: literals are sent in the type in which NumPy compares them, a condition that would
hold for a missing list is not sent, nor is anything under ``or`` or ``not``.

It has to pay: the service is asked first how many events stay (it reads the columns of the filter alone,
where they lie), and sends them only if that is at most :data:`WORTH` of all. What it sends is not compressed
as it is in the file, so that with more of them reading the file moves fewer bytes.

Source: scan.md §3 of the project's contracts (query JSON, semantics of null, NaN and literals).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import awkward as ak
import numpy as np
import pyarrow as pa

from doma.columns.expressions import Const, Events, Expr, Field, Lambda, Op, Ufunc, Var
from doma.columns.model import Task
from doma.columns.plan import Plan
from doma.columns.remote import Bytes, open_input
from doma.columns.source import Columns, Index, Source, Window
from doma.columns.source_parquet import joined
from doma.core.errors import DomaError, OriginFailed
from doma.scan.client import RemoteDataset, scan

log = logging.getLogger(__name__)

WORTH = 0.5
"""Share of the events up to which they are taken from the scan service: columns are compressed to a half."""

_SIGNS = {
    "greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!=",
}  # fmt: skip
_TURNED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}


class Beside:
    """An input that a scan service can read, too, behind the ``Bytes`` Protocol.

    Args:
        data: The input.
        task: Says where the scan service is, and with which token.
    """

    def __init__(self, data: Bytes, task: Task) -> None:
        self._data, self._task = data, task
        self.sent = 0
        """Bytes that the scan service sent."""
        self.pushed = False
        """A filter runs beside the data."""

    def push(self, plan: Plan) -> Source | None:
        """The table without the events that the plan drops anyway; None: this is to be read directly."""
        suffix = self.url.rpartition(".")[2].lower()
        if plan.branches is None or suffix != "root" or plan.tree in {None, "None"}:
            return None
        if self.url != self._task.url:
            return None  # another replica is read: nothing tells that it is the same file
        wheres = list(_wheres(plan.body))
        if not wheres:
            return None
        try:
            whole = self._dataset(plan.tree)
            schema = whole.schema
            if any(n not in schema.names or not _is_plain(schema.field(n).type) for n in plan.branches):
                return None
            parts = [p for by in wheres for p in _parts(by.body, by.slot, schema)]
            if not parts:
                return None
            where = parts[0] if len(parts) == 1 else {"and": parts}
            entries, stay = whole.count_rows(), whole.count_rows(where)
            if stay > WORTH * entries:
                log.info("columns: %s: not pushed down: %d of %d events stay", self.url, stay, entries)
                return None
            source = FlightSource(self, whole, schema, plan.branches, where, entries)
        except DomaError as e:
            log.info("columns: %s: not pushed down: %s", self.url, e)
            return None
        self.pushed = True
        return source

    def _dataset(self, tree: str | None) -> RemoteDataset:
        place = urlsplit(self._task.flight)
        trust = self._task.ca_file if place.scheme == "grpc+tls" and self._task.ca_file else None
        door, path = f"{place.scheme}://{place.netloc}", unquote(place.path)
        return scan(door, path, self._task.token, None if trust is None else Path(trust), tree=tree)

    def unchanged(self) -> None:
        """Make sure that what was scanned is the version that was opened, by which the result is known.

        Raises:
            OriginFailed: the file has changed meanwhile; it is to be tried again.
        """
        again = open_input(replace(self._task, replicas=()))
        again.close()
        if again.version != self.version or again.size != self.size:
            raise OriginFailed(f"{self.url}: the file has changed while it was read")

    @property
    def url(self) -> str:
        return self._data.url

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def version(self) -> str:
        return self._data.version

    @property
    def taken(self) -> int:
        return self._data.taken + self.sent

    def read(self, start: int, stop: int) -> bytes:
        return self._data.read(start, stop)

    def close(self) -> None:
        self._data.close()


class FlightSource:
    """The events that a scan service found."""

    def __init__(
        self,
        data: Beside,
        whole: RemoteDataset,
        schema: Any,
        names: tuple[str, ...],
        where: dict[str, Any],
        entries: int,
    ) -> None:
        self._data, self._schema = data, schema
        self.place = f"{data.url}, beside the data"
        self.names = self.readable = tuple(n for n in schema.names if n in names)
        self.entries = entries
        # Asked at once: what the service refuses can still be read directly.
        self._scanner = whole.scanner(list(self.names), where)
        self._found = self._scanner.projected_schema

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        if start < stop:
            raise OriginFailed(f"{self.place}: events are only read in order")
        return _columns(pa.Table.from_batches([], self._found), names)

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        waiting: list[pa.RecordBatch] = []
        held = at = 0
        for batch in self._scanner.to_batches():
            waiting.append(batch)
            held += batch.nbytes
            self._data.sent += batch.nbytes
            if held >= step:
                yield self._window(waiting, at, groups)
                at += sum(b.num_rows for b in waiting)
                waiting, held = [], 0
        if waiting or not at:
            yield self._window(waiting, at, groups)
        self._data.unchanged()

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        return 0, 0

    def _window(self, batches: list[Any], at: int, groups: tuple[tuple[str, ...], ...]) -> Window:
        table = pa.Table.from_batches(batches, self._found).combine_chunks()
        return Window(self, at, at + table.num_rows, groups, _columns(table, self.names))


def _columns(table: Any, names: tuple[str, ...]) -> Columns:
    return {n: ak.Array(_layout(joined(table.column(n)))) for n in names}


def _layout(array: Any) -> Any:
    """Numbers and lists of them, as they are read from a ROOT file: nothing is missing there."""
    if array.null_count:
        raise OriginFailed("the scan service sends missing values where a ROOT file has none")
    if not pa.types.is_list(array.type):
        return ak.contents.NumpyArray(array.to_numpy(zero_copy_only=False))
    offsets = np.asarray(array.offsets).astype(np.int64)
    content = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return ak.contents.ListOffsetArray(ak.index.Index64(offsets - offsets[0]), _layout(content))


def _is_plain(kind: Any) -> bool:
    if pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
                or pa.types.is_boolean(kind))  # fmt: skip


def _wheres(body: Expr) -> Iterator[Lambda]:
    """The filters that stand directly on the events."""
    found: list[Lambda] = []
    while isinstance(body, Op):
        if body.name == "Where" and body.by is not None:
            found.append(body.by)
        else:
            found.clear()
        body = body.source
    if isinstance(body, Events):
        yield from found


def _parts(test: Expr, slot: int, schema: Any) -> Iterator[Any]:
    """The conditions in a filter that can be sent, as the scan service writes them."""
    if isinstance(test, Ufunc) and test.name == "logical_and":
        for arg in test.args:
            yield from _parts(arg, slot, schema)
    elif isinstance(test, Op) and test.name == "Any" and test.by is not None:
        scope = _objects(test, slot, schema)
        if scope is not None:
            yield {"any": list(scope)}
    elif isinstance(test, Ufunc) and test.name in _SIGNS and len(test.args) == 2:
        left, right, sign = *test.args, _SIGNS[test.name]
        if isinstance(left, Const):
            left, right, sign = right, left, _TURNED[sign]
        if isinstance(right, Const):
            part = _compared(left, sign, right.value, slot, schema)
            if part is not None:
                yield part


def _compared(left: Expr, sign: str, value: Any, slot: int, schema: Any) -> Any:
    name = _column(left, slot)
    if name is not None:
        literal = _literal(value, schema.field(name).type)
        return None if literal is None else {sign: [{"col": name}, literal]}
    if not isinstance(left, Op) or left.name != "Count" or type(value) is not int:
        return None
    # What holds for none of them would hold for a list that is missing.
    if {">": value < 0, ">=": value <= 0, "==": value == 0}.get(sign, True) or value >= 1 << 31:
        return None
    name = _column(left.source, slot)
    if name is not None and pa.types.is_list(schema.field(name).type):
        return {sign: [{"len": {"col": name}}, {"lit": value}]}
    inner = left.source
    if isinstance(inner, Op) and inner.name == "Where" and inner.by is not None:
        scope = _objects(inner, slot, schema)
        return None if scope is None else {sign: [{"count": list(scope)}, {"lit": value}]}
    return None


def _objects(op: Op, slot: int, schema: Any) -> tuple[Any, Any] | None:
    """A comparison of each member of a list with a constant."""
    name, by = _column(op.source, slot), op.by
    if name is None or by is None or not pa.types.is_list(schema.field(name).type):
        return None
    test = by.body
    if not (isinstance(test, Ufunc) and test.name in _SIGNS and len(test.args) == 2):
        return None
    left, right = test.args
    if left != Var(by.slot) or not isinstance(right, Const):
        return None
    literal = _literal(right.value, schema.field(name).type.value_type)
    if literal is None:
        return None
    return {"each": {"x": name}, "as": "m"}, {_SIGNS[test.name]: [{"var": "m.x"}, literal]}


def _column(expr: Expr, slot: int) -> str | None:
    return expr.name if isinstance(expr, Field) and expr.source == Var(slot) else None


def _literal(value: Any, kind: Any) -> Any:
    """A number in the type in which NumPy compares it with a column; None: not plainly the same there."""
    if type(value) not in {int, float} or not math.isfinite(value):
        return None
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        with np.errstate(over="ignore"):
            held = float(np.float32(value) if pa.types.is_float32(kind) else np.float64(value))
        word = "float32" if pa.types.is_float32(kind) else "float64"
        return {"lit": held, "type": word} if math.isfinite(held) else None
    if pa.types.is_integer(kind) and type(value) is int and kind.bit_width <= 32:
        bounds = np.iinfo(kind.to_pandas_dtype())
        return {"lit": value, "type": str(kind)} if bounds.min <= value <= bounds.max else None
    return None
