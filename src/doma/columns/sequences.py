"""The sequence operators that need no lambda, or only its result: reductions, picks, order, combinations."""

from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from doma.columns import momenta
from doma.columns import plain as fast
from doma.columns.arithmetic import ufunc
from doma.columns.values import (
    Fields,
    Opened,
    Scope,
    Value,
    array,
    bounded,
    check_element,
    check_numbers,
    deepest,
    element,
    innermost,
    levels,
    listed,
    opened,
    scope_of,
)
from doma.core.errors import BadQuery, LimitExceeded

COMBINATION = "combination"
"""Marks the lists that ``Choose`` makes: of a fixed length inside, plain in the output."""
MAX_COMBINATIONS = 20_000_000
"""Members that ``Choose`` may make of one step."""


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
    check_numbers(data, f"{what} needs one true or false per element (Any, All and Count make one)")
    mask: npt.NDArray[np.bool_] = np.asarray(ak.fill_none(data, False)) != 0
    return mask


def by_key(name: str, took: Opened, result: Value) -> Value:
    """Where, Any, All and the orders, from what the lambda gave for each member."""
    parents = took.inner.parents
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
    check_numbers(keys, f"{name} needs one number per element as its key")
    lost = np.asarray(ak.is_none(keys))
    values = np.asarray(ak.fill_none(keys, 0))
    lost |= np.isnan(values)
    ranks = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return np.lexsort((-ranks if name == "OrderByDescending" else ranks, lost, parents))


def reduced(name: str, source: Value) -> Value:
    """Count the members of a sequence; reduce the innermost axis."""
    if name == "Sum" and isinstance(source.data, ak.Array) and source.scope is not None:
        quick = fast.summed(source.data)
        if quick is not None:
            return Value(source.scope, quick)
    took = opened(source, name)
    if name == "Count":
        return Value(took.outer, ak.Array(took.counts))
    data = listed(took.flat, took.counts)
    if name == "Sum" and momenta.is_momentum(data):
        return Value(took.outer, ak.sum(data, axis=-1))
    if element(data) != "numbers":
        raise BadQuery(f"query: {name} needs numbers, this is a sequence of {element(data)}")
    if getattr(innermost(data), "dtype", None) == np.float16:
        data = ak.values_astype(data, "float32")
    data = ak.from_regular(data, axis=None)
    return Value(took.outer, ak.sum(data, axis=-1) if name == "Sum" else extreme(name, data, axis=-1))


def extreme(name: str, data: ak.Array, axis: int | None, keepdims: bool = False) -> ak.Array:
    """``Max`` or ``Min``: missing of nothing, NaN where there is nothing else; awkward has infinity there."""
    found = (ak.max if name == "Max" else ak.min)(data, axis=axis, keepdims=keepdims, mask_identity=True)
    dtype = getattr(innermost(data), "dtype", np.dtype(bool))
    if dtype.kind != "f":
        return found
    nothing = found == (-np.inf if name == "Max" else np.inf)
    if not ak.any(nothing):
        return found
    real = ak.any(~np.isnan(data), axis=axis, keepdims=keepdims, mask_identity=False)
    return ak.where(nothing & ~real, dtype.type(np.nan), found)


def picked(source: Value, index: Value, what: str) -> Value:
    """One member of each sequence; missing where the sequence is too short. Negative counts from the end."""
    check_element(index, what)
    scope = deepest([source, index])
    if scope is None:
        raise BadQuery(f"query: {what} needs a sequence, this is a constant")
    if index.scope is None and type(index.data) is not int:
        raise BadQuery(f"query: {what} needs an integer, not {index.data!r}")
    size: int = getattr(source.data.layout, "size", 0) if isinstance(source.data, ak.Array) else 0
    # Every sequence has this length by construction (Choose): nothing can be missing.
    is_sure = index.scope is None and -size <= index.data < size
    if is_sure and source.scope is scope and source.data.layout.parameter("__list__") == COMBINATION:
        content = ak.Array(source.data.layout.content, behavior=source.data.behavior)
        return Value(scope, fast.every(content, index.data % size, size, len(source.data)))
    if source.scope is not scope and not isinstance(source.data, Fields):
        source = Value(scope, array(source, scope))
    if index.scope is None and isinstance(source.data, ak.Array):
        quick = fast.member(source.data, index.data)
        if quick is not None:
            return Value(scope, quick)
    took = opened(source, what)
    starts = np.cumsum(took.counts) - took.counts
    if index.scope is None:
        at = np.full(scope.size, index.data, dtype=np.int64)
    else:
        wanted = array(index, scope)
        check_numbers(wanted, f"{what} needs one integer per element")
        at = np.asarray(ak.fill_none(wanted, np.iinfo(np.int64).max)).astype(np.int64)
    at = np.where(at < 0, at + took.counts, at)
    there = (at >= 0) & (at < took.counts)
    if is_sure:
        return Value(scope, took.flat[starts + at])
    if len(there) and there.all() and fast.numbers(took.flat) is not None:
        whole = ak.contents.UnmaskedArray(took.flat[starts + at].layout)
        return Value(scope, ak.Array(whole))
    where = ak.index.Index64(np.where(there, starts + at, -1))
    layout = ak.contents.IndexedOptionArray.simplified(where, took.flat.layout)
    return Value(scope, ak.Array(layout, behavior=took.flat.behavior))


def item(source: Value, index: Value) -> Value:
    """``source[index]``: a member, a field of a tuple, members by mask or by list of positions."""
    check_element(index, "[]")
    if index.scope is None:
        if isinstance(source.data, ak.Array) and levels(source.data) == 0 and ak.fields(source.data):
            names = ak.fields(source.data)
            if type(index.data) is int and -len(names) <= index.data < len(names):
                return Value(source.scope, source.data[names[index.data]])
        return picked(source, index, "[]")
    scope = deepest([source, index])
    assert scope is not None
    chosen_ = array(index, scope)
    if levels(chosen_) == 0:
        return picked(source, index, "[]")
    if not isinstance(source.data, Fields) and levels(array(source, scope)) == 0:
        raise BadQuery("query: [] needs a sequence before it")
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
    inner: Scope | None = None
    counts: npt.NDArray[np.int64] | None = None
    members: dict[str, ak.Array] = {}
    arrays = {name: array(value, scope) for name, value in parts.items()}
    for name, data in arrays.items():
        if levels(data) == 0:
            continue
        took = opened(Value(scope, data), f"Zip of {name!r}")
        if counts is not None and not np.array_equal(counts, took.counts):
            raise BadQuery(f"query: Zip: {name!r} has other lengths than {next(iter(parts))!r} in some event")
        inner, counts, members[name] = took.inner, took.counts, took.flat
    if inner is None or counts is None:
        raise BadQuery(f"query: Zip needs a sequence, {', '.join(map(repr, parts))} are single values")
    # What has one value per event is repeated for each member.
    members = {
        n: members[n] if n in members else array(Value(scope, data), inner) for n, data in arrays.items()
    }
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
    sizes, places = fast.chosen(took.counts, n) or _combined(took.counts, n)
    members = took.flat[places.ravel()]
    groups = ak.contents.RegularArray(
        members.layout, n, zeros_length=len(places), parameters={"__list__": COMBINATION}
    )
    return took.close(ak.Array(groups, behavior=members.behavior), sizes)


def _combined(counts: npt.NDArray[np.int64], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many combinations there are of each sequence, and (combinations, n) places of their members."""
    places = listed(ak.Array(np.arange(counts.sum(), dtype=np.int64)), counts)
    combos = ak.combinations(places, n, axis=1)
    flat = ak.flatten(combos, axis=1)
    where = np.stack([np.asarray(flat[str(i)]) for i in range(n)], axis=1).astype(np.int64)
    return np.asarray(ak.num(combos, axis=1)), where


def _concatenated(first: Value, second: Value) -> Value:
    scope = deepest([first, second])
    if scope is None:
        raise BadQuery("query: Concat needs sequences, these are constants")
    took = [opened(Value(scope, array(v, scope)), "Concat") for v in (first, second)]
    bounded(took[0].counts + took[1].counts)
    try:
        joined = ak.concatenate([listed(t.flat, t.counts) for t in took], axis=1)
    except (TypeError, ValueError) as e:
        raise BadQuery("query: Concat: the sequences do not fit each other") from e
    return Value(scope, joined)


def _contains(source: Value, wanted: Value) -> Value:
    """Whether a sequence has a member; with a list of values, whether one is equal, element by element."""
    for options, subject in ((source, wanted), (wanted, source)):
        if isinstance(options.data, Fields) and options.data.is_tuple:
            hits = [ufunc("equal", [subject, option]) for option in options.data.values.values()]
            return hits[0] if len(hits) == 1 else ufunc("logical_or", hits)
    check_element(wanted, "Contains")
    scope = deepest([source, wanted])
    if scope is None:
        raise BadQuery("query: Contains needs a sequence, this is a constant")
    took = opened(source if scope_of(source) is scope else Value(scope, array(source, scope)), "Contains")
    return by_key("Any", took, ufunc("equal", [Value(took.inner, took.flat), wanted]))


def part(source: Value, low: int | None, high: int | None, step: int | None) -> Value:
    """``[low:high:step]`` of each sequence, or of the fields of a tuple."""
    record = source.data
    if isinstance(record, ak.Array) and levels(record) == 0 and ak.fields(record):
        parts = {n: Value(source.scope, record[n]) for n in ak.fields(record)}
        record = Fields(parts, all(n.isdigit() for n in parts))
    if isinstance(record, Fields):
        names = list(record.values)[low:high:step]
        if not names:
            raise BadQuery("query: the slice takes no field of the record")
        values = (record.values[n] for n in names)
        numbered = map(str, range(len(names))) if record.is_tuple else names
        return Value(source.scope, Fields(dict(zip(numbered, values, strict=False)), record.is_tuple))
    took = opened(source, "[:]")
    data = listed(took.flat, took.counts)[:, low:high:step]
    return Value(took.outer, data)


def span(low: Value, high: Value, root: Scope) -> Value:
    """The integers from ``low`` up to but without ``high``, for each element."""
    scope = deepest([low, high]) or root
    ends = []
    for value in (low, high):
        check_element(value, "Range")
        data = array(value, scope)
        check_numbers(data, "Range needs one integer at each end")
        numbers = np.asarray(ak.fill_none(data, 0))
        if not np.issubdtype(numbers.dtype, np.integer):
            raise BadQuery(f"query: Range needs integers, not {numbers.dtype}")
        ends.append(numbers.astype(np.int64))
    # As float first: the distance of two 64-bit integers may not fit into one.
    distance = np.maximum(ends[1].astype(np.float64) - ends[0].astype(np.float64), 0)
    bounded(distance)
    counts = np.maximum(distance.astype(np.int64), 0)
    starts = np.cumsum(counts) - counts
    numbers = np.arange(counts.sum(), dtype=np.int64) + np.repeat(ends[0] - starts, counts)
    return Value(scope, listed(ak.Array(numbers), counts))


def filled(source: Value, default: Value) -> Value:
    """A value in the place of what is missing."""
    check_element(default, "a default")
    if source.scope is None:
        return source
    scope = deepest([source, default])
    assert scope is not None
    data = array(source, scope)
    if not data.layout.is_option:
        return Value(scope, data)
    other = array(default, scope)
    if levels(data) != levels(other) or element(data) != element(other) or element(data) == "records":
        raise BadQuery("query: the default and what it stands in for must have the same type")
    if isinstance(data.layout, ak.contents.UnmaskedArray):
        # The type must not depend on whether something is missing in this step.
        data = ak.Array(data.layout.to_IndexedOptionArray64(), behavior=data.behavior)
    if default.scope is None:
        constant = default.data
        if (dtype := getattr(innermost(data), "dtype", None)) is not None and not isinstance(constant, str):
            kept = _with_constant(dtype, constant)
            data, constant = ak.values_astype(data, kept), kept.type(constant)
        return Value(scope, ak.drop_none(ak.fill_none(data, constant, axis=0), axis=0))
    try:
        result = ak.where(ak.is_none(data), other, data)
        return Value(scope, result if other.layout.is_option else ak.drop_none(result, axis=0))
    except (TypeError, ValueError) as e:
        raise BadQuery("query: the default does not fit what it stands in for") from e


def _with_constant(dtype: np.dtype[Any], constant: Any) -> np.dtype[Any]:
    """The type of numbers and a constant among them: theirs, as long as the constant fits into it."""
    kept = np.result_type(dtype, constant)
    if kept.kind == "f":
        fits = not np.isfinite(constant) or bool(np.isfinite(kept.type(constant)))
    else:
        fits = kept.kind == "b" or np.iinfo(kept).min <= constant <= np.iinfo(kept).max
    return kept if fits else np.result_type(dtype, np.asarray(constant))


def unmarked(data: ak.Array) -> ak.Array:
    """The same data whose combinations are lists like others."""

    def change(layout: Any, **_: Any) -> Any:
        if layout.is_list and layout.parameter("__list__") == COMBINATION:
            below = ak.transform(change, layout.content, highlevel=False)
            sized = layout.to_ListOffsetArray64(True)
            trimmed = below[: len(sized.content)] if len(below) > len(sized.content) else below
            return ak.contents.ListOffsetArray(sized.offsets, trimmed)
        return None

    return ak.transform(change, data) if _marked(data.layout) else data


def _marked(layout: Any) -> bool:
    if layout.is_record or layout.is_union:
        return any(map(_marked, layout.contents))
    if layout.is_option or layout.is_indexed or layout.is_list:
        return layout.parameter("__list__") == COMBINATION or _marked(layout.content)
    return False
