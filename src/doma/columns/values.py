"""Values and scopes: how a lambda over nested sequences becomes flat arithmetic.

A **scope** is a set of elements: the file's step, its events, the muons of all events, … Every lambda over
a sequence opens a child scope with one element per member of the sequence and an index ``parents`` back
to the enclosing scope. A **value** belongs to a scope and has one entry per element of it. To combine values
of different scopes the outer one is repeated along ``parents``, so broadcasting never guesses: what an outer
variable means inside an inner lambda follows from the nesting alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns import plain
from doma.core.errors import BadQuery, LimitExceeded

Index = npt.NDArray[np.int64]
MAX_MEMBERS = 20_000_000
"""Members that a query may make of one step, at each level: 160 MB of indices. What the file holds is not
counted: the step bounds it."""


class Rows(Protocol):
    """Events of a step: a size and columns that are read when they are asked for."""

    @property
    def size(self) -> int: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def column(self, name: str) -> ak.Array:
        """(size,) values of a branch; raises UnknownColumn."""

    def where(self, mask: npt.NDArray[np.bool_]) -> "Rows":
        """The rows for which the mask (size,) is true."""


def bounded(counts: npt.NDArray[Any]) -> int:
    """The number of members of sequences of these lengths; raises LimitExceeded above the bound."""
    total = int(counts.sum(dtype=np.float64))
    if total > MAX_MEMBERS:
        raise LimitExceeded(
            f"query: the sequences of one step would have {total:.3g} members, more than {MAX_MEMBERS:.3g}; "
            "filter first"
        )
    return total


@dataclass(eq=False, slots=True)
class Scope:
    """A set of elements, each belonging to one element of the parent scope."""

    size: int
    parent: "Scope | None" = None
    depth: int = 0
    counts: Index | None = None
    """(parent.size,) How many elements each element of the parent has …"""
    _parents: Index | None = None
    """… or (size,) the index of each element's parent: of both, what is at hand."""
    _paths: "dict[Scope, Index]" = field(default_factory=dict)

    def open(self, counts: npt.NDArray[Any]) -> "Scope":
        """The scope of the members of sequences with these lengths: (size,)."""
        return Scope(int(counts.sum()), self, self.depth + 1, counts)

    @property
    def parents(self) -> Index:
        """(size,) index of each element's parent; made when it is first asked for, which is not always."""
        if self._parents is None:
            assert self.parent is not None
            assert self.counts is not None
            if self.parent.size == 1:  # of the events of a step: zeros that nobody touches take no memory
                self._parents = np.zeros(self.size, np.int64)
            else:
                self._parents = np.repeat(np.arange(self.parent.size, dtype=np.int64), self.counts)
        return self._parents

    def path(self, outer: "Scope") -> Index:
        """(size,) index into an enclosing scope."""
        if outer not in self._paths:
            assert self.parent is not None
            above = None if self.parent is outer else self.parent.path(outer)
            self._paths[outer] = self.parents if above is None else above[self.parents]
        return self._paths[outer]


@dataclass(eq=False, slots=True)
class Fields:
    """A record that is not yet an array: its fields keep their own scopes."""

    values: "dict[str, Value]"
    is_tuple: bool


@dataclass(eq=False, slots=True)
class Row:
    """One event each: the element of the event scope."""

    rows: Rows


@dataclass(eq=False, slots=True)
class Value:
    """Data with one entry per element of a scope; a constant has no scope."""

    scope: Scope | None
    data: Any


def deepest(values: "list[Value] | tuple[Value, ...]") -> Scope | None:
    """The innermost scope of some values; all lie on one chain since lambdas nest."""
    scopes = [s for s in map(scope_of, values) if s is not None]
    return max(scopes, key=lambda s: s.depth, default=None)


def scope_of(value: Value) -> Scope | None:
    """The scope of a value, for a record that of its innermost field."""
    if isinstance(value.data, Fields):
        inner = deepest(list(value.data.values.values()))
        if inner is not None and (value.scope is None or inner.depth > value.scope.depth):
            return inner
    return value.scope


def check_element(value: Value, what: str) -> None:
    """Raises BadQuery for a record or tuple where one value per element is needed."""
    if isinstance(value.data, Fields | Row):
        raise BadQuery(f"query: {what} does not work on a list, tuple or record; name one of its fields")


def array(value: Value, scope: Scope) -> ak.Array:
    """The value as (scope.size,) array."""
    if isinstance(value.data, Fields):
        parts = {name: array(v, scope) for name, v in value.data.values.items()}
        layouts = [p.layout for p in parts.values()]
        names = None if value.data.is_tuple else list(parts)
        return ak.Array(ak.contents.RecordArray(layouts, names, length=scope.size))
    if isinstance(value.data, Row):
        rows = value.data.rows
        data = ak.Array(
            ak.contents.RecordArray(
                [rows.column(n).layout for n in rows.names], list(rows.names), length=rows.size
            )
        )
    elif value.scope is None:
        return _constant(value.data, scope.size)
    else:
        data = value.data
    if value.scope is scope or value.scope is None:
        return data
    where = scope.path(value.scope)
    if (lists := plain.members(data)) is not None:
        bounded(lists[0][where])
    return plain.taken(data, where)


def _constant(value: Any, size: int) -> ak.Array:
    if isinstance(value, str) or value is None:
        return ak.Array([value])[np.zeros(size, dtype=np.int64)]
    return ak.Array(np.full(size, value))


def levels(data: ak.Array) -> int:
    """How many lists are nested around a value's elements; a string is an element."""
    layout, depth = data.layout, 0
    while (layout.is_option or layout.is_indexed or layout.is_list) and not _is_text(layout):
        depth, layout = depth + layout.is_list, layout.content
    return depth


def innermost(data: ak.Array) -> ak.contents.Content:
    """The layout of the elements, below lists and what may be missing; a string is an element."""
    layout = data.layout
    while (layout.is_option or layout.is_indexed or layout.is_list) and not _is_text(layout):
        layout = layout.content
    return layout


def _is_text(layout: ak.contents.Content) -> bool:
    return layout.parameter("__array__") in {"string", "bytestring"}


def element(data: ak.Array) -> str:
    """A word for the type of the innermost elements, for messages."""
    layout = innermost(data)
    if _is_text(layout):
        return "text"
    return "records" if layout.is_record else "unions" if layout.is_union else "numbers"


def check_numbers(data: ak.Array, what: str) -> None:
    """Raises BadQuery unless there is one number per element; ``what`` begins the message."""
    if levels(data) or element(data) != "numbers":
        raise BadQuery(f"query: {what}, not {'a sequence' if levels(data) else element(data)}")


@dataclass(eq=False, slots=True)
class Opened:
    """Sequences taken apart: lengths, members in one row, and the scope of the members."""

    outer: Scope
    counts: Index
    inner: Scope
    flat: ak.Array

    def close(self, flat: ak.Array, counts: Index | None = None) -> Value:
        """The sequences again, with other members (and lengths)."""
        return Value(self.outer, listed(flat, self.counts if counts is None else counts))


def listed(flat: ak.Array, counts: Index) -> ak.Array:
    """(len(counts),) lists of consecutive members of ``flat``."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return ak.Array(
        ak.contents.ListOffsetArray(ak.index.Index64(offsets), flat.layout), behavior=flat.behavior
    )


def opened(value: Value, what: str) -> Opened:
    """Take sequences apart; a missing sequence counts as empty.

    Raises:
        BadQuery: the value is no sequence.
    """
    if isinstance(value.data, Fields) and value.data.is_tuple:
        value = stacked(value, what)
    if value.scope is None or isinstance(value.data, Fields | Row):
        raise BadQuery(f"query: {what} needs a sequence, this is a single value")
    data = value.data
    if levels(data) == 0:
        raise BadQuery(f"query: {what} needs a sequence, this has one of {element(data)} per element")
    if isinstance(data.layout, ak.contents.UnmaskedArray):
        data = ak.Array(data.layout.content, behavior=data.behavior)
    if (quick := plain.members(data)) is not None:
        return Opened(value.scope, quick[0], value.scope.open(quick[0]), quick[1])
    counts = np.zeros(len(data), dtype=np.int64)
    if data.layout.is_option:
        there = np.asarray(~ak.is_none(data))
        data = ak.Array(data.layout.project(), behavior=data.behavior)
        counts[there] = np.asarray(ak.num(data, axis=1))
    else:
        counts[:] = np.asarray(ak.num(data, axis=1))
    bounded(counts)
    return Opened(value.scope, counts, value.scope.open(counts), ak.flatten(data, axis=1))


def stacked(value: Value, what: str, scope: Scope | None = None) -> Value:
    """A tuple as a sequence of its items."""
    scope = scope_of(value) or scope
    if scope is None:
        raise BadQuery(f"query: {what} of constants is not offered; write the number")
    parts = [array(v, scope) for v in value.data.values.values()]
    one = np.ones(scope.size, dtype=np.int64)
    bounded(one * len(parts))
    try:
        return Value(scope, ak.concatenate([listed(p, one) for p in parts], axis=1))
    except (TypeError, ValueError) as e:
        raise BadQuery(f"query: {what}: the items of the list do not fit each other") from e


def mapped(data: ak.Array, change: Callable[[ak.Array], ak.Array]) -> ak.Array:
    """Apply a change to the innermost elements, keeping the lists around them."""
    if levels(data) == 0:
        return change(data)
    took = opened(Value(Scope(len(data)), data), "this")
    return listed(mapped(took.flat, change), took.counts)
