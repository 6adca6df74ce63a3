"""Short ways for the plain case: numbers and lists of numbers without options, on NumPy's arrays directly.

Awkward decides anew at every operation what its arrays are made of, which takes 0.1 to 0.8 ms whatever their
size; a step of 20,000 events is much quicker than that. Each function here gives the same as the awkward one
that it stands for, or None where the case is not plain.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]
_MOST = 40
"""Members of a sequence up to which its combinations come from a table."""
_FAR = 1 << 31
"""Positions beyond this are left to awkward."""


def numbers(data: ak.Array) -> npt.NDArray[Any] | None:
    """The values of a (n,) array of numbers."""
    layout = data.layout
    if not layout.is_numpy or layout.parameters or not isinstance(layout.data, np.ndarray):
        return None
    return layout.data if layout.data.ndim == 1 else None


def members(data: ak.Array) -> tuple[Index, ak.Array] | None:
    """Lengths and members of sequences, as ``ak.num`` and ``ak.flatten`` give them."""
    layout = data.layout
    if not isinstance(layout, ak.contents.ListOffsetArray) or layout.parameters:
        return None
    offsets = np.asarray(layout.offsets.data)
    content = layout.content[int(offsets[0]) : int(offsets[-1])]
    return np.diff(offsets).astype(np.int64, copy=False), ak.Array(content, behavior=data.behavior)


def ufunc(function: Callable[..., Any], parts: Sequence[Any]) -> ak.Array | None:
    """A NumPy function of scalars and arrays of numbers, or of lists of numbers with the same lengths.

    What might be missing, but is not, stays so.
    """
    arrays = [p for p in parts if isinstance(p, ak.Array)]
    layouts = [a.layout for a in arrays]
    if all(isinstance(x, ak.contents.ListOffsetArray) and not x.parameters for x in layouts) and layouts:
        offsets = layouts[0].offsets
        if any(x.offsets is not offsets and not _same(x.offsets, offsets) for x in layouts):
            return None
        inner = iter([ak.Array(x.content[: int(offsets[-1])]) for x in layouts])
        found = ufunc(function, [next(inner) if isinstance(p, ak.Array) else p for p in parts])
        return None if found is None else ak.Array(ak.contents.ListOffsetArray(offsets, found.layout))
    if any(isinstance(x, ak.contents.UnmaskedArray) for x in layouts):
        found = ufunc(function, [_unmasked(p) for p in parts])
        return None if found is None else ak.Array(ak.contents.UnmaskedArray(found.layout))
    flat = [numbers(a) for a in arrays]
    if not flat or any(f is None or len(f) != len(arrays[0]) for f in flat):
        return None
    values = iter(flat)
    found = function(*[next(values) if isinstance(p, ak.Array) else p for p in parts])
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        return None
    return ak.Array(ak.contents.NumpyArray(found))


def _unmasked(part: Any) -> Any:
    """What may be missing, but is not, as if it might not."""
    is_sure = isinstance(part, ak.Array) and isinstance(part.layout, ak.contents.UnmaskedArray)
    return ak.Array(part.layout.content) if is_sure else part


def taken(data: ak.Array, where: Index) -> ak.Array:
    """``data[where]``, with lists of numbers packed."""
    if isinstance(data.layout, ak.contents.UnmaskedArray):
        inside = taken(ak.Array(data.layout.content, behavior=data.behavior), where)
        return ak.Array(ak.contents.UnmaskedArray.simplified(inside.layout), behavior=data.behavior)
    flat = numbers(data)
    if flat is not None:
        return ak.Array(ak.contents.NumpyArray(flat[where]))
    held = _lists(data.layout)
    if held is None:
        return data[where]
    borders, content = held
    starts = borders[where]
    sizes = borders[where + 1] - starts
    offsets = np.zeros(len(where) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    places = np.repeat(starts - offsets[:-1], sizes)
    places += np.arange(len(places))
    return ak.Array(
        ak.contents.ListOffsetArray(ak.index.Index64(offsets), ak.contents.NumpyArray(content.take(places)))
    )


def member(data: ak.Array, at: int) -> ak.Array | None:
    """One member of each list of numbers, from the end if negative; missing where the list is too short."""
    layout = data.layout
    if isinstance(layout, ak.contents.UnmaskedArray):
        layout = layout.content
    held = _lists(layout)
    if held is None or abs(at) > _FAR:
        return None
    borders, content = held
    if at < 0:
        places = borders[1:] + at
        there = places >= borders[:-1]
    else:
        places = borders[:-1] + at
        there = places < borders[1:]
    if len(there) and there.all():
        # None is missing, though it might be: quicker to compute with.
        found = ak.contents.NumpyArray(content.take(places))
        return ak.Array(ak.contents.UnmaskedArray(found))
    places[~there] = -1
    return ak.Array(ak.contents.IndexedOptionArray(ak.index.Index64(places), ak.contents.NumpyArray(content)))


def _lists(layout: ak.contents.Content) -> tuple[Index, npt.NDArray[Any]] | None:
    """Borders and members of lists of numbers; members that belong to no list may be among them."""
    if not isinstance(layout, ak.contents.ListOffsetArray) or layout.parameters:
        return None
    inner = numbers(ak.Array(layout.content))
    if inner is None:
        return None
    return np.asarray(layout.offsets.data).astype(np.int64, copy=False), inner


def chosen(counts: Index, n: int) -> tuple[Index, Index] | None:
    """All n-combinations of sequences with these lengths, in the order of ``ak.combinations``.

    Returns:
        How many there are of each sequence, and (combinations, n) places of their members in the flat row of
        all members.
    """
    if len(counts) and int(counts.max()) > _MOST:
        return None
    kinds = np.flatnonzero(np.bincount(counts)).tolist()
    tables = [np.array(list(combinations(range(m), n)), np.int64).reshape(-1, n) for m in kinds]
    table = np.concatenate([np.empty((0, n), np.int64), *tables])
    rows = np.zeros(max(kinds, default=0) + 1, np.int64)
    rows[kinds] = [len(t) for t in tables]
    first = np.cumsum(rows) - rows
    sizes = rows[counts]
    some = np.flatnonzero(sizes)
    many = sizes[some]
    at = np.repeat(first[counts[some]] - (np.cumsum(many) - many), many)
    at += np.arange(len(at))
    places = table.take(at, axis=0)
    places += np.repeat((np.cumsum(counts) - counts)[some], many)[:, None]
    return sizes, places


def summed(data: ak.Array) -> ak.Array | None:
    """The sums of lists of one length, of float32 or float64 numbers, in the order of the members."""
    layout = data.layout
    if not isinstance(layout, ak.contents.RegularArray):
        return None
    values = numbers(ak.Array(layout.content))
    if values is None or values.dtype.kind != "f" or values.itemsize < 4:
        return None
    total = np.zeros(len(layout), values.dtype)
    for k in range(layout.size):
        total += values[k : len(layout) * layout.size : layout.size]
    return ak.Array(ak.contents.NumpyArray(total))


def every(data: ak.Array, first: int, step: int, size: int) -> ak.Array:
    """(size,) members ``first``, ``first + step``, … of an array."""
    values = numbers(data)
    if values is None:
        return data[np.arange(first, first + size * step, step)]
    return ak.Array(ak.contents.NumpyArray(values[first : first + size * step : step]))


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one.data), np.asarray(other.data)))
