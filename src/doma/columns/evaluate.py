"""The interpreter: a plan over one step of events gives columns. Nothing is compiled or looked up by name.

Numbers follow NumPy's promotion: ``float32`` branches stay ``float32``, also as coordinates of four-momenta;
Python constants are weak. Where physics asks for double precision the query says so
(``np.float64(e.Muon_pt)``). ``First``, ``Last``, ``ElementAt`` of too short a sequence and ``Max``, ``Min``
of an empty one are missing values; a condition that is missing is false.

Source: servicex.md §8.1 of the project's contracts, column "ours" of the table of cases.
"""

from dataclasses import dataclass
from typing import Any, assert_never

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns import arithmetic, folds, momenta, sequences
from doma.columns import expressions as ex
from doma.columns.functions import VECTOR_PROPERTIES
from doma.columns.near import unknown
from doma.columns.plan import Plan
from doma.columns.values import (
    Fields,
    Opened,
    Row,
    Rows,
    Scope,
    Value,
    array,
    bounded,
    deepest,
    element,
    levels,
    listed,
    opened,
    scope_of,
    stacked,
)
from doma.core.errors import BadQuery

Env = dict[int, Value]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of a step: equally long arrays; an unnamed single column is called ``""``."""

    columns: dict[str, ak.Array]
    total: str = ""
    """The reduction that combines tables of one row each (``Count`` …); empty: rows follow each other."""


def run(plan: Plan, rows: Rows) -> Table:
    """The columns of one step.

    Raises:
        UnknownColumn: the file has no such branch. BadQuery: an operator does not fit what the file holds.
        LimitExceeded: combinations without bound.
    """
    root = Scope(1)
    with np.errstate(all="ignore"):
        value = _eval(plan.body, {}, root, rows)
        if isinstance(value.data, AllEvents):
            value = Value(root, listed(array(Value(root, Row(value.data.rows)), root), _one(rows.size)))
        data = array(value, root)
        if levels(data) == 0:
            assert isinstance(plan.body, ex.Op)
            return Table(_named({"": data}, plan.columns), plan.body.name)
        flat = opened(value, "the result").flat
        _check_size(flat)
    columns = {name: sequences.unmarked(column) for name, column in _columns(flat).items()}
    return Table(_named(columns, plan.columns))


def _check_size(data: ak.Array) -> None:
    """Refuse what would grow without bound when it is written: lists may repeat what they hold."""
    layout = data.layout
    while layout.is_list or layout.is_option or layout.is_indexed:
        if isinstance(layout, ak.contents.ListArray):
            bounded(np.asarray(layout.stops) - np.asarray(layout.starts))
            layout = layout.to_ListOffsetArray64(True)
        elif isinstance(layout, ak.contents.IndexedArray | ak.contents.IndexedOptionArray):
            layout = layout.project()
            continue
        layout = layout.content
    for inner in layout.contents if layout.is_record else ():
        _check_size(ak.Array(inner))


def _columns(flat: ak.Array) -> dict[str, ak.Array]:
    """Record keys become columns, also those of an unnamed list of records (struct of lists)."""
    if element(flat) != "records" or levels(flat) > 1:
        return {"": flat}
    return {name: flat[name] for name in ak.fields(flat)}


def _named(columns: dict[str, ak.Array], names: tuple[str, ...] | None) -> dict[str, ak.Array]:
    if names is None:
        return columns
    if len(names) != len(columns):
        raise BadQuery(f"query: {len(names)} column names are given for {len(columns)} columns")
    return dict(zip(names, columns.values(), strict=True))


@dataclass(eq=False, slots=True)
class AllEvents:
    """The events as a sequence."""

    rows: Rows


def _one(size: int) -> npt.NDArray[np.int64]:
    return np.array([size], dtype=np.int64)


def _eval(expr: ex.Expr, env: Env, root: Scope, rows: Rows) -> Value:
    def sub(inner: ex.Expr) -> Value:
        return _eval(inner, env, root, rows)

    match expr:
        case ex.Const(value=constant):
            return Value(None, constant)
        case ex.Var(slot=slot):
            return env[slot]
        case ex.Events():
            return Value(root, AllEvents(rows))
        case ex.Field(source=source, name=name):
            return _field(sub(source), name)
        case ex.Item(source=source, index=index):
            return sequences.item(sub(source), sub(index))
        case ex.Ufunc(name=name, args=args):
            return arithmetic.ufunc(name, [sub(a) for a in args])
        case ex.Cast(dtype=dtype, source=source):
            return arithmetic.cast(dtype, sub(source))
        case ex.If(test=test, yes=yes, no=no):
            return arithmetic.choice(sub(test), sub(yes), sub(no))
        case ex.Slice(source=source, low=low, high=high, step=step):
            return sequences.part(sub(source), low, high, step)
        case ex.Fill(source=source, default=default):
            return sequences.filled(sub(source), sub(default))
        case ex.Span(low=first, high=last):
            return sequences.span(sub(first), sub(last), root)
        case ex.Fold(source=source, seed=seed, by=by):
            return folds.fold(
                _below(_sequence(sub(source), root), by, env), sub(seed),
                lambda acc, item: _eval(by.body, {**env, by.slot: acc, by.second: item}, root, rows),
            )  # fmt: skip
        case ex.Record(names=names, values=values, is_tuple=is_tuple):
            parts = dict(zip(names, map(sub, values), strict=True))
            return Value(deepest(list(parts.values())), Fields(parts, is_tuple))
        case ex.Method(name=name, source=source, args=args):
            return momenta.method(name, sub(source), [sub(a) for a in args])
        case ex.Op():
            return _operator(expr, sub(expr.source), env, root, rows)
    assert_never(expr)


def _field(value: Value, name: str) -> Value:
    data = value.data
    if isinstance(data, Row):
        return Value(value.scope, data.rows.column(name))
    if isinstance(data, Fields):
        if name in data.values:
            return data.values[name]
        names = list(data.values)
    else:
        names = ak.fields(data) if isinstance(data, ak.Array) else []
        if name in names:
            return Value(value.scope, data[name])
        if name in VECTOR_PROPERTIES and momenta.is_momentum(data):
            return momenta.method(name, value, [])
    raise unknown("query: there is no field", name, names)


def _operator(op: ex.Op, source: Value, env: Env, root: Scope, rows: Rows) -> Value:
    def body(by: ex.Lambda, item: Value) -> Value:
        return _eval(by.body, {**env, by.slot: item}, root, rows)

    if isinstance(source.data, AllEvents):
        return _over_events(op, source, body, root)
    if op.name != "Contains":
        source = _sequence(source, root)
    if op.by is not None:
        source = _below(source, op.by, env)
    if op.by is None:
        arg = None if op.arg is None else _eval(op.arg, env, root, rows)
        return sequences.plain(op.name, source, arg)
    took = opened(source, op.name)
    result = body(op.by, Value(took.inner, took.flat))
    if op.name == "SelectMany":
        return _flattened(took, result)
    if op.name == "Select":
        return took.close(array(result, took.inner))
    return sequences.by_key(op.name, took, result)


def _below(source: Value, by: ex.Lambda, env: Env) -> Value:
    """The source in a scope below that of every outer variable which the lambda uses."""
    outer = deepest([source, *(env[slot] for slot in by.free)])
    if outer is None or outer is scope_of(source):
        return source
    return Value(outer, array(source, outer))


def _sequence(source: Value, root: Scope) -> Value:
    """A list of constants is a sequence, the same for all events."""
    if isinstance(source.data, Fields) and source.data.is_tuple and scope_of(source) is None:
        return stacked(source, "a list", root)
    return source


def _over_events(op: ex.Op, source: Value, body: Any, root: Scope) -> Value:
    """Select, Where, SelectMany and Count of the events themselves."""
    events: Rows = source.data.rows
    scope = root.open(_one(events.size))
    if op.name == "Count":
        return Value(root, ak.Array(_one(events.size)))
    assert op.by is not None
    result = body(op.by, Value(scope, Row(events)))
    if op.name == "Where":
        return Value(root, AllEvents(events.where(sequences.condition(result, scope, "Where"))))
    if op.name in {"Any", "All"}:
        mask = sequences.condition(result, scope, op.name)
        return Value(root, ak.Array(np.array([mask.any() if op.name == "Any" else mask.all()])))
    took = Opened(root, _one(events.size), scope, ak.Array(np.zeros(0)))
    if op.name == "SelectMany":
        return _flattened(took, result)
    if op.name == "Select":
        return took.close(array(result, scope))
    raise BadQuery(f"query: {op.name} of whole events is not offered; Select a column first")


def _flattened(took: Opened, result: Value) -> Value:
    """Members of members: one level less, in order. A record of sequences gives records."""
    if isinstance(result.data, Fields) and not result.data.is_tuple:
        result = sequences.zipped(Value(took.inner, result.data))
    inner = opened(Value(took.inner, array(result, took.inner)), "SelectMany")
    ends = np.concatenate([[0], np.cumsum(inner.counts)])
    borders = np.concatenate([[0], np.cumsum(took.counts)])
    return took.close(inner.flat, np.diff(ends[borders]))
