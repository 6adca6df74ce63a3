"""The sequence operators that need no lambda, or only its result: reductions, picks, order, combinations."""

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns import momenta
from doma.columns.arithmetic import ufunc
from doma.columns.values import (
    Fields,
    Opened,
    Scope,
    Value,
    array,
    check_element,
    deepest,
    element,
    levels,
    listed,
    opened,
    scope_of,
)
from doma.core.errors import BadQuery, LimitExceeded

COMBINATION = "combination"
"""Marks the lists that ``Choose`` makes: ``Count`` of them counts combinations, not their members."""
MAX_COMBINATIONS = 50_000_000
"""Members that ``Choose`` may make of one step."""
REDUCERS = {"Sum": ak.sum, "Max": ak.max, "Min": ak.min}


def plain(name: str, source: Value, arg: Value | None) -> Value:
    """An operator without lambda.

    Raises:
        BadQuery: it does not fit the value. LimitExceeded: too many combinations.
    """
    match name:
        case "Count" | "Sum" | "Max" | "Min":
            return reduced(name, source)
        case "Any" | "All":
            took = opened(source, name)
            return by_key(name, took, Value(took.inner, took.flat))
        case "First":
            return picked(source, Value(None, 0), name)
        case "Last":
            return picked(source, Value(None, -1), name)
        case "Zip":
            return zipped(source)
        case "ToFourMomenta" | "ToFourMomentum":
            return momenta.to_momenta(source)
        case _:
            return _with_argument(name, source, arg)


def _with_argument(name: str, source: Value, arg: Value | None) -> Value:
    assert arg is not None
    match name:
        case "ElementAt":
            return picked(source, arg, name)
        case "Choose":
            return chosen(source, arg.data)
        case "Concat":
            return _concatenated(source, arg)
        case "Contains":
            return _contains(source, arg)
        case _:
            raise BadQuery(f"query: {name} is not offered")


def condition(value: Value, scope: Scope, what: str) -> npt.NDArray[np.bool_]:
    """(scope.size,) booleans; missing is false."""
    data = array(value, scope)
    if levels(data) or element(data) != "numbers":
        kind = "a sequence" if levels(data) else element(data)
        raise BadQuery(
            f"query: {what} needs one true or false per element, not {kind}; use Any, All or Count"
        )
    mask: npt.NDArray[np.bool_] = np.asarray(ak.fill_none(data, False)) != 0
    return mask


def by_key(name: str, took: Opened, result: Value) -> Value:
    """Where, Any, All and the orders, from what the lambda gave for each member."""
    parents = took.inner.parents
    assert parents is not None
    size = took.outer.size
    if name in {"OrderBy", "OrderByDescending"}:
        order = _order(array(result, took.inner), parents, name)
        return took.close(took.flat[order])
    mask = condition(result, took.inner, name)
    if name == "Where":
        return took.close(took.flat[mask], np.bincount(parents[mask], minlength=size))
    if name == "Any":
        return Value(took.outer, ak.Array(np.bincount(parents[mask], minlength=size) > 0))
    return Value(took.outer, ak.Array(np.bincount(parents[~mask], minlength=size) == 0))


def _order(keys: ak.Array, parents: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
    """A stable order within each sequence; missing and NaN come last either way."""
    if levels(keys) or element(keys) != "numbers":
        raise BadQuery(f"query: {name} needs one number per element as its key")
    lost = np.asarray(ak.is_none(keys))
    values = np.asarray(ak.fill_none(keys, 0))
    lost |= np.isnan(values)
    ranks = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return np.lexsort((-ranks if name == "OrderByDescending" else ranks, lost, parents))


def reduced(name: str, source: Value) -> Value:
    """Reduce the innermost axis of a sequence."""
    took = opened(source, name)
    data = listed(took.flat, took.counts)
    if name == "Count":
        return Value(took.outer, ak.num(data, axis=levels(data, COMBINATION)))
    if element(data) != "numbers":
        raise BadQuery(f"query: {name} needs numbers, this is a sequence of {element(data)}")
    return Value(took.outer, REDUCERS[name](ak.from_regular(data, axis=None), axis=-1))


def picked(source: Value, index: Value, what: str) -> Value:
    """One member of each sequence; missing where the sequence is too short. Negative counts from the end."""
    check_element(index, what)
    scope = deepest([source, index])
    if scope is None:
        raise BadQuery(f"query: {what} needs a sequence, this is a constant")
    if index.scope is None and (isinstance(index.data, bool) or not isinstance(index.data, int)):
        raise BadQuery(f"query: {what} needs an integer, not {index.data!r}")
    size = getattr(source.data.layout, "size", None) if isinstance(source.data, ak.Array) else None
    took = opened(source if source.scope is scope or isinstance(source.data, Fields) else
                  Value(scope, array(source, scope)), what)  # fmt: skip
    starts = np.cumsum(took.counts) - took.counts
    if index.scope is None:
        at = np.full(scope.size, index.data, dtype=np.int64)
    else:
        wanted = array(index, scope)
        if levels(wanted) or element(wanted) != "numbers":
            raise BadQuery(f"query: {what} needs one integer per element")
        at = np.asarray(ak.fill_none(wanted, np.iinfo(np.int64).max)).astype(np.int64)
    at = np.where(at < 0, at + took.counts, at)
    there = (at >= 0) & (at < took.counts)
    if isinstance(size, int) and index.scope is None and -size <= index.data < size:
        # Every sequence has this length by construction (Choose): nothing can be missing.
        return Value(scope, took.flat[starts + at])
    where = ak.index.Index64(np.where(there, starts + at, -1))
    layout = ak.contents.IndexedOptionArray.simplified(where, took.flat.layout)
    return Value(scope, ak.Array(layout, behavior=took.flat.behavior))


def item(source: Value, index: Value) -> Value:
    """``source[index]``: a member, a field of a tuple, members by mask or by list of positions."""
    check_element(index, "[]")
    if index.scope is None:
        if isinstance(source.data, ak.Array) and levels(source.data) == 0 and ak.is_tuple(source.data):
            names = ak.fields(source.data)
            if isinstance(index.data, int) and -len(names) <= index.data < len(names):
                return Value(source.scope, source.data[names[index.data]])
        return picked(source, index, "[]")
    scope = deepest([source, index])
    assert scope is not None
    chosen_ = array(index, scope)
    if levels(chosen_) == 0:
        return picked(source, index, "[]")
    try:
        return Value(scope, ak.from_regular(array(source, scope), axis=1)[ak.from_regular(chosen_, axis=1)])
    except (IndexError, ValueError, TypeError) as e:
        raise BadQuery("query: []: the mask or the positions do not fit the sequence") from e


def zipped(source: Value) -> Value:
    """A record of sequences as a sequence of records.

    Raises:
        BadQuery: lengths differ in some event.
    """
    scope = scope_of(source)
    if isinstance(source.data, Fields):
        parts, is_tuple = dict(source.data.values), source.data.is_tuple
    elif isinstance(source.data, ak.Array) and ak.fields(source.data) and levels(source.data) == 0:
        is_tuple = ak.is_tuple(source.data)
        parts = {n: Value(source.scope, source.data[n]) for n in ak.fields(source.data)}
    else:
        raise BadQuery("query: Zip needs a record of sequences, such as {'pt': e.Muon_pt, 'eta': e.Muon_eta}")
    if scope is None:
        raise BadQuery("query: Zip needs sequences, these are constants")
    members: dict[str, ak.Array] = {}
    counts: npt.NDArray[np.int64] | None = None
    for name, value in parts.items():
        took = opened(Value(scope, array(value, scope)), f"Zip of {name!r}")
        if counts is not None and not np.array_equal(counts, took.counts):
            raise BadQuery(f"query: Zip: {name!r} has other lengths than {next(iter(parts))!r} in some event")
        counts, members[name] = took.counts, took.flat
    assert counts is not None
    names = None if is_tuple else list(members)
    record = ak.contents.RecordArray([m.layout for m in members.values()], names, length=int(counts.sum()))
    return Value(scope, listed(ak.Array(record), counts))


def chosen(source: Value, n: int) -> Value:
    """All n-combinations of each sequence, each a list of n, in the order of the members."""
    took = opened(source, "Choose")
    counts = took.counts.astype(np.float64)
    total = np.ones_like(counts)
    for k in range(n):
        total = total * np.maximum(counts - k, 0) / (k + 1)
    if total.sum() * n > MAX_COMBINATIONS:
        raise LimitExceeded(
            f"query: Choose({n}) makes {total.sum():.3g} combinations in one step; filter first"
        )
    places = ak.local_index(listed(took.flat, took.counts), axis=1)
    starts = np.cumsum(took.counts) - took.counts
    combos = ak.combinations(places + starts, n, axis=1)
    sizes = np.asarray(ak.num(combos, axis=1))
    flat = ak.flatten(combos, axis=1)
    where = np.stack([np.asarray(flat[str(i)]) for i in range(n)], axis=1).ravel().astype(np.int64)
    members = took.flat[where]
    groups = ak.contents.RegularArray(
        members.layout, n, zeros_length=len(flat), parameters={"__list__": COMBINATION}
    )
    return took.close(ak.Array(groups, behavior=members.behavior), sizes)


def _concatenated(first: Value, second: Value) -> Value:
    scope = deepest([first, second])
    if scope is None:
        raise BadQuery("query: Concat needs sequences, these are constants")
    parts: list[Any] = []
    for value in (first, second):
        took = opened(Value(scope, array(value, scope)), "Concat")
        parts.append(listed(took.flat, took.counts))
    return Value(scope, ak.concatenate(parts, axis=1))


def _contains(source: Value, wanted: Value) -> Value:
    check_element(wanted, "Contains")
    if isinstance(source.data, Fields) and scope_of(source) is None:
        constants = [v.data for v in source.data.values.values()]
        if wanted.scope is None:
            return Value(None, wanted.data in constants)
        hits = np.zeros(wanted.scope.size, dtype=bool)
        for constant in constants:
            hits |= condition(ufunc("equal", [wanted, Value(None, constant)]), wanted.scope, "Contains")
        return Value(wanted.scope, ak.Array(hits))
    scope = deepest([source, wanted])
    if scope is None:
        raise BadQuery("query: Contains needs a sequence, this is a constant")
    took = opened(source if scope_of(source) is scope else Value(scope, array(source, scope)), "Contains")
    return by_key("Any", took, ufunc("equal", [Value(took.inner, took.flat), wanted]))
