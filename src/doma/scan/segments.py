"""Lists as offsets: flattening, the frame of the objects of a scope, and reductions per list.

A *frame* is the set of objects that a scope runs over. Values inside it are flat arrays, one entry an object;
``parents`` says to which row of the enclosing frame an object belongs. The outermost frame are the rows.

Source: scan.md §3 (empty and null lists, null elements, NaN) and §4 (offset kernels).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from doma.scan.kernels import TypeMismatch, numpy_of


@dataclass(frozen=True, slots=True)
class Frame:
    """The objects of a scope.

    Args:
        outer: The enclosing frame; None for the rows themselves.
        offsets: (n + 1,) int64, in objects, for the n entries of the enclosing frame.
        parents: (n_objects,) int64, entry of the enclosing frame.
        valid: (n,) bool; False where the list itself is null. None: nowhere.
    """

    outer: "Frame | None"
    offsets: Any
    parents: Any
    valid: Any

    @property
    def size(self) -> int:
        """Number of objects."""
        return len(self.parents)

    def chain(self) -> "list[Frame]":
        """This frame and those around it, innermost first; the rows are not among them."""
        out: list[Frame] = []
        frame: Frame | None = self
        while frame is not None:
            out.append(frame)
            frame = frame.outer
        return out


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any layout."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def lengths_of(lists: pa.Array) -> tuple[Any, Any]:
    """Lengths (0 for null) as int64, and where the lists are valid (None: everywhere)."""
    if not is_list(lists.type):
        raise TypeMismatch(f"a list is needed, here is {lists.type}")
    counts, valid = numpy_of(pc.list_value_length(lists))
    return counts.astype(np.int64), valid


def flatten(lists: pa.Array) -> pa.Array:
    """All elements of all valid lists in order."""
    return pc.list_flatten(lists)


def frame_of(counts: Any, valid: Any, outer: Frame | None) -> Frame:
    """The frame over lists of these lengths."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Frame(outer, offsets, np.repeat(np.arange(len(counts)), counts), valid)


def lift(values: pa.Array, source: Frame | None, target: Frame | None) -> pa.Array:
    """Values of an enclosing frame, one copy for each object of an inner one."""
    if source is target or target is None:
        return values
    steps = []
    for frame in target.chain():
        if frame is source:
            break
        steps.append(frame.parents)
    for parents in reversed(steps):
        values = values.take(pa.array(parents))
    return values


def reduce(op: str, values: pa.Array, frame: Frame) -> pa.Array:
    """One value for each list of the frame; null for a null list.

    Raises:
        OverflowError: an integer sum leaves 64 bits; its argument is the entry.
    """
    count = len(frame.offsets) - 1
    if op in ("any", "all", "count"):
        if not pt.is_boolean(values.type) and not pt.is_null(values.type):
            raise TypeMismatch(f"{op!r} needs a truth value of each object, here is {values.type}")
        return _truths(op, values, frame)
    if not (pt.is_integer(values.type) or pt.is_floating(values.type)):
        raise TypeMismatch(f"{op!r} needs a number of each object, here is {values.type}")
    numbers, valid = numpy_of(values)
    parents = frame.parents
    if valid is not None:
        numbers, parents = numbers[valid], parents[valid]
    if op in ("sum", "mean"):
        answer: Any = _sums(numbers, parents, count)
        mask = _mask(frame, None)
        if op == "mean":
            filled = np.bincount(parents, minlength=count)
            with np.errstate(all="ignore"):
                answer = answer.astype(np.float64) / filled
            mask = _mask(frame, filled == 0)
        return pa.array(answer, mask=mask)
    return _extremes(op, numbers, parents, frame, values.type)


def cut(values: pa.Array, chosen: Any, frame: Frame) -> pa.Array:
    """Lists again, of the chosen objects only."""
    kept = _running(chosen)[frame.offsets]
    large = bool(len(kept) and kept[-1] > np.iinfo(np.int32).max)
    offsets = pa.array(kept, pa.int64() if large else pa.int32())
    make = pa.LargeListArray if large else pa.ListArray
    mask = None if frame.valid is None else pa.array(~frame.valid)
    return make.from_arrays(offsets, values.filter(pa.array(chosen)), mask=mask)


def _truths(op: str, values: pa.Array, frame: Frame) -> pa.Array:
    true, valid = numpy_of(values.cast(pa.bool_()))
    true = true if valid is None else true & valid
    trues = _per_list(true, frame)
    if op == "count":
        return pa.array(trues, mask=_mask(frame, None))
    unknown = np.zeros(len(trues), bool) if valid is None else _per_list(~valid, frame) > 0
    if op == "any":
        answer = trues > 0
        return pa.array(answer, mask=_mask(frame, ~answer & unknown))
    falses = np.diff(frame.offsets) - trues - (0 if valid is None else _per_list(~valid, frame))
    answer = falses == 0
    return pa.array(answer, mask=_mask(frame, answer & unknown))


def _running(flags: Any) -> Any:
    out = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=out[1:])
    return out


def _per_list(flags: Any, frame: Frame) -> Any:
    return np.diff(_running(flags)[frame.offsets])


def _mask(frame: Frame, more: Any) -> Any:
    if frame.valid is None:
        return more
    return ~frame.valid if more is None else ~frame.valid | more


def _sums(numbers: Any, parents: Any, count: int) -> Any:
    rough = np.bincount(parents, weights=numbers, minlength=count)
    if numbers.dtype.kind == "f":
        return rough  # float64, added one after another in row order: the same for every chunking
    kind = np.uint64 if numbers.dtype == np.uint64 else np.int64
    out = np.zeros(count, kind)
    np.add.at(out, parents, numbers.astype(kind))
    info = np.iinfo(kind)
    # Far from the borders the rough sum proves that nothing wrapped; near them each list is added exactly.
    spread = np.bincount(parents, weights=np.abs(numbers.astype(np.float64)), minlength=count)
    for entry in np.flatnonzero(spread >= float(info.max) * 0.5):
        exact = sum(int(n) for n in numbers[parents == entry])
        if not info.min <= exact <= info.max:
            raise OverflowError(int(entry))
        out[entry] = exact
    return out


def _extremes(op: str, numbers: Any, parents: Any, frame: Frame, kind: pa.DataType) -> pa.Array:
    count = len(frame.offsets) - 1
    sizes = np.bincount(parents, minlength=count)
    filled = np.flatnonzero(sizes)
    out = np.zeros(count, numbers.dtype)
    if len(filled):
        starts = (np.cumsum(sizes) - sizes)[filled]
        # fmin and fmax skip NaN unless there is nothing else.
        out[filled] = (np.fmin if op == "min" else np.fmax).reduceat(numbers, starts)
    return pa.array(out, kind, mask=_mask(frame, sizes == 0))
