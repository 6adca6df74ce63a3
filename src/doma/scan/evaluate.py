"""Runs a program over record batches: one pass over its steps, no recursion, bounded memory.

Evaluation is eager: both branches of a choice and all parts of an ``and`` are computed, so that an error
(overflow, division by zero) depends on the rows alone and not on their order or chunking.

Source: scan.md §3 and §4.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from doma.core.errors import BadQuery, LimitExceeded
from doma.scan import kernels
from doma.scan.grammar import AGGREGATE, COMPARE, Program, Scope, Step, last_uses
from doma.scan.kernels import CURVES, TypeMismatch
from doma.scan.literal import NAMES, Literal
from doma.scan.names import members, needs, unknown
from doma.scan.place import pointer, shown, wrong
from doma.scan.segments import Frame, cut, flatten, frame_of, lengths_of, lift, reduce

BUDGET = 64 << 20
"""Bytes of intermediate results; a batch is evaluated in slices that keep below it."""
_CELL = 16
_ARITHMETIC = frozenset({"+", "-", "*", "/", "//", "%", "**", "atan2", "min2", "max2"})
_UNARY = frozenset({"neg", "abs", "floor", "ceil", "round", "is_nan", "is_finite"})
_TEXT: dict[str, Callable[[Any, str], pa.Array]] = {
    "starts_with": lambda a, s: pc.starts_with(a, pattern=s),
    "ends_with": lambda a, s: pc.ends_with(a, pattern=s),
    "contains": lambda a, s: pc.match_substring(a, pattern=s),
    "like": lambda a, s: pc.match_like(a, pattern=s),
}


class _TooWide(Exception):
    """A scope has more objects than the budget; the batch is halved."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A result: an array in a frame, or a literal, which is in all of them."""

    data: Any
    frame: Frame | None = None


class Evaluator:
    """One program over batches of one schema.

    Args:
        program: What to compute.
        schema: Columns of the batches; types are checked at once, on no rows.
        budget: Bytes of intermediate results.
        more: Columns that are read besides those named in the program.

    Raises:
        UnknownColumn, BadQuery: the program does not fit the schema; ``detail["pointer"]`` says where.
    """

    def __init__(
        self,
        program: Program,
        schema: pa.Schema,
        budget: int = BUDGET,
        more: Iterable[str] = (),
    ) -> None:
        self.program = program
        self.schema = schema
        self.columns = needs(program, schema) | set(more)
        self._last = last_uses(program.steps)
        self._widest = max(budget // _CELL, 1)
        self._slice = max(budget // (_CELL * max(program.live(), 1)), 16)
        empty = pa.RecordBatch.from_arrays(
            [pa.array([], schema.field(name).type) for name in sorted(self.columns)], sorted(self.columns)
        )
        self.type: pa.DataType = self.run(empty).type

    def run(self, batch: pa.RecordBatch, row: Callable[[int], int] = lambda n: n) -> pa.Array:
        """The result for each row.

        Args:
            batch: Holds at least the columns needed.
            row: Number of a batch row for error messages.

        Raises:
            BadQuery: overflow, division by zero, lists of unequal length; with the row.
            LimitExceeded: one row alone needs more than the budget.
        """
        done: list[pa.Array] = []
        step = max(self._slice, 1)
        work = [(at, min(at + step, batch.num_rows)) for at in range(0, batch.num_rows, step)] or [(0, 0)]
        work.reverse()
        while work:
            start, stop = work.pop()
            try:
                done.append(self._once(batch.slice(start, stop - start), _shifted(row, start)))
            except _TooWide as e:
                if stop - start <= 1:
                    raise LimitExceeded(
                        f"row {row(start)}: {e} objects in one scope, at most {self._widest} fit; cut earlier"
                    ) from None
                middle = (start + stop) // 2
                work += [(middle, stop), (start, middle)]
        return done[0] if len(done) == 1 else pa.concat_arrays(done)

    def _once(self, batch: pa.RecordBatch, row: Callable[[int], int]) -> pa.Array:
        cells: list[Any] = [None] * len(self.program.steps)
        frames: dict[int, Frame] = {}
        for position, step in enumerate(self.program.steps):
            try:
                cells[position] = self._step(step, position, cells, frames, batch, row)
            except TypeMismatch as e:
                raise BadQuery(
                    f"query{shown(step.place)}: {e}", pointer=shown(step.place), reason="type-mismatch"
                ) from e
            except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
                types = ", ".join(
                    str(getattr(cells[a].data, "type", "a literal")) for a in step.args if cells[a]
                )
                raise BadQuery(
                    f"query{shown(step.place)}: {step.op!r} is not defined for {types}",
                    pointer=shown(step.place),
                    reason="type-mismatch",
                ) from e
            for arg in step.args:
                if self._last[arg] == position:
                    cells[arg] = None
        result = cells[-1]
        return _array(result, batch.num_rows, result.frame)

    def _step(
        self, step: Step, position: int, cells: list[Any], frames: dict[int, Frame], batch: Any, row: Any
    ) -> Any:
        op = step.op
        if op == "lit":
            return _Cell(step.value)
        if op == "col":
            return _Cell(_column(batch, step))
        if op == "scope":
            return self._scope(step, position, cells, frames, batch, row)
        if op == "var":
            return _Cell(cells[step.args[0]].data[step.value], frames[step.args[0]])
        if op in AGGREGATE:
            frame = frames[step.args[0]]
            inner = cells[step.args[1]]
            values = lift(_array(inner, frame.size, frame), inner.frame if _is_array(inner) else frame, frame)
            try:
                return _Cell(reduce(op, values, frame), frame.outer)
            except OverflowError as e:
                place = _row_of(frame.outer, e.args[0])
                raise _failed("the sum overflows 64 bits", step, row(place)) from e
        if op == "keep":
            return self._keep(step, cells, frames)
        return self._apply(step, [cells[a] for a in step.args], batch.num_rows, row)

    def _scope(
        self, step: Step, position: int, cells: list[Any], frames: dict[int, Frame], batch: Any, row: Any
    ) -> _Cell:
        scope: Scope = step.value
        outer = frames[scope.outer] if scope.outer is not None else None
        if scope.collection is not None:
            every = self.program.steps[-1].op == "keep" and position == self.program.steps[-1].args[0]
            found = members(scope, self.schema, every=every)
            lists = {f: _Cell(batch.column(batch.schema.get_field_index(c))) for f, (c, _) in found.items()}
        else:
            found = {}
            lists = dict(zip(scope.fields, (cells[a] for a in step.args), strict=False))
        arrays = {}
        for name, cell in lists.items():
            array = _array(cell, batch.num_rows if outer is None else outer.size, outer)
            arrays[name] = lift(array, cell.frame if _is_array(cell) else outer, outer)
        labels = {name: column for name, (column, _) in found.items()}
        for name, arg in zip(scope.fields, step.args, strict=False):
            named = self.program.steps[arg]
            labels.setdefault(name, ".".join(named.value) if named.op == "col" else name)
        counts, valid = _parallel([(labels.get(n, n), a) for n, a in arrays.items()], step, outer, row)
        if int(counts.sum()) > self._widest:
            raise _TooWide(int(counts.sum()))
        frame = frames[position] = frame_of(counts, valid, outer)
        flat = {}
        for name, array in arrays.items():
            if valid is not None:
                array = pc.if_else(pa.array(valid), array, pa.scalar(None, array.type))
            flat[name] = flatten(array)
            if name in found and found[name][1] is not None:
                flat[name] = pc.struct_field(flat[name], found[name][1])
        return _Cell(flat, frame)

    def _keep(self, step: Step, cells: list[Any], frames: dict[int, Frame]) -> _Cell:
        """The lists of the collection, cut to the chosen objects, as a struct of lists."""
        frame = frames[step.args[0]]
        chosen = cells[step.args[1]]
        truth = lift(_array(chosen, frame.size, frame), chosen.frame if _is_array(chosen) else frame, frame)
        if not pt.is_boolean(truth.type) and not pt.is_null(truth.type):
            raise TypeMismatch(f"'keep' needs a truth value of each object, here is {truth.type}")
        flags = pc.fill_null(truth.cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
        lists = {name: cut(values, flags, frame) for name, values in cells[step.args[0]].data.items()}
        return _Cell(pa.StructArray.from_arrays(list(lists.values()), list(lists)), frame.outer)

    def _apply(self, step: Step, args: list[_Cell], rows: int, row: Any) -> _Cell:
        frame: Frame | None = None
        for cell in args:
            if cell.frame is not None and (frame is None or len(cell.frame.chain()) > len(frame.chain())):
                frame = cell.frame
        size = rows if frame is None else frame.size
        kinds = [cell.data.type if _is_array(cell) else None for cell in args]
        plain = all(kind is None for kind in kinds)
        known = next((kind for kind in kinds if kind is not None), None)
        operands: list[Any] = []
        for cell in args:
            if _is_array(cell):
                operands.append(lift(cell.data, cell.frame, frame))
            elif plain or (step.op == "if" and not operands):
                operands.append(_array(cell, size, frame))
            else:
                beside = known if step.op != "if" else next((k for k in kinds[1:] if k is not None), None)
                operands.append(kernels.scalar_of(cell.data, beside))
        try:
            return _Cell(_compute(step, operands), frame)
        except pa.ArrowInvalid as e:
            place = _locate(step, operands, size)
            raise _failed(str(e).split(". ")[0], step, row(_row_of(frame, place))) from e


def _compute(step: Step, args: list[Any]) -> pa.Array:
    op, a = step.op, args[0]
    if op in COMPARE:
        return kernels.compare(op, a, args[1])
    if op in ("and", "or", "not"):
        for arg in args:
            if not pt.is_boolean(arg.type) and not pt.is_null(arg.type):
                raise TypeMismatch(f"{op!r} needs truth values, here is {arg.type}")
        args = [arg.cast(pa.bool_()) for arg in args]
        if op == "not":
            return pc.invert(args[0])
        if len(args) == 1:
            return args[0]
        return (pc.and_kleene if op == "and" else pc.or_kleene)(*args)
    if op in _ARITHMETIC:
        return kernels.arithmetic(op, a, args[1]) if len(args) == 2 else a
    if op in CURVES:
        return kernels.curve(op, a)
    if op in _UNARY:
        return kernels.unary(op, a)
    if op == "in":
        return kernels.among(a, *step.value)
    if op == "is_null":
        return pc.is_null(a, nan_is_null=step.value)
    if op == "cast":
        return _cast(a, step)
    if op in ("if", "coalesce"):
        return _choice(op, args)
    if op == "len":
        counts, valid = lengths_of(a)
        return pa.array(counts, mask=None if valid is None else ~valid)
    if op == "at":
        return _element(a, *step.value)
    if not (pt.is_string(a.type) or pt.is_large_string(a.type)):
        raise TypeMismatch(f"{op!r} needs text, here is {a.type}")
    if op == "regex":
        return _regex(a, step)
    if op in _TEXT:
        return _TEXT[op](a, step.value)
    return {"str_len": pc.utf8_length, "lower": pc.utf8_lower, "upper": pc.utf8_upper}[op](a)


def _choice(op: str, args: list[Any]) -> pa.Array:
    if op == "coalesce":
        return pc.coalesce(*kernels.unify(*args)) if len(args) == 2 else args[0]
    if not pt.is_boolean(args[0].type) and not pt.is_null(args[0].type):
        raise TypeMismatch(f"the condition of 'if' is {args[0].type}, not a truth value")
    return pc.if_else(args[0].cast(pa.bool_()), *kernels.unify(args[1], args[2]))


def _cast(a: Any, step: Step) -> pa.Array:
    name, safe = step.value
    if name not in NAMES:
        raise wrong(f"{name[:50]!r} is not a type; types: {', '.join(NAMES)}", step.place)
    return a.cast(kernels.arrow_type(name), safe=safe)


def _regex(a: Any, step: Step) -> pa.Array:
    try:
        pc.match_substring_regex(pa.array([""]), pattern=step.value)  # also where there are no rows
    except pa.ArrowInvalid as e:
        raise wrong(f"the pattern {step.value[:80]!r} is not RE2: {str(e)[:200]}", step.place) from e
    return pc.match_substring_regex(a, pattern=step.value)


def _element(lists: pa.Array, index: int, strict: bool) -> pa.Array:
    counts, valid = lengths_of(lists)
    stops = np.cumsum(counts)
    inside = (index < counts) & (index >= -counts)
    if strict and not (inside if valid is None else inside | ~valid).all():
        raise pa.ArrowInvalid(f"the list has no element {index}")
    places = np.where(inside, (stops if index < 0 else stops - counts) + index, 0)
    return flatten(lists).take(pa.array(places, mask=~inside))


def _column(batch: pa.RecordBatch, step: Step) -> pa.Array:
    path = step.value
    array = batch.column(batch.schema.get_field_index(path[0]))
    for part in path[1:]:
        if not pt.is_struct(array.type) or array.type.get_field_index(part) < 0:
            have = [f.name for f in array.type] if pt.is_struct(array.type) else []
            raise unknown(part, have, f"query{shown(step.place)}: column {path[0]!r} ({array.type})", "field")
        array = pc.struct_field(array, part)
    return array


def _parallel(
    arrays: list[tuple[str, pa.Array]], step: Step, outer: Frame | None, row: Any
) -> tuple[Any, Any]:
    """Lengths and validity that the lists of a scope share."""
    first, lists = arrays[0]
    counts, valid = lengths_of(lists)
    for name, lists in arrays[1:]:
        others, there = lengths_of(lists)
        differ = counts != others
        shared = kernels.both(valid, there)
        if shared is not None:
            differ &= shared
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            place = row(_row_of(outer, at))
            raise BadQuery(
                f"row {place}: {first!r} has {counts[at]} objects and {name!r} {others[at]};"
                " lists of one scope must run in parallel",
                pointer=pointer(step.place),
                row=place,
                reason="unequal-lists",
            )
        valid = shared
    return (counts if valid is None else np.where(valid, counts, 0)), valid


def _is_array(cell: _Cell) -> bool:
    return not isinstance(cell.data, Literal)


def _array(cell: _Cell, size: int, frame: Frame | None) -> pa.Array:
    """The cell as an array; a literal fills one of the size."""
    if not isinstance(cell.data, Literal):
        return cell.data
    return pa.repeat(kernels.scalar_of(cell.data), size)


def _shifted(row: Callable[[int], int], start: int) -> Callable[[int], int]:
    return lambda n: row(start + n)


def _row_of(frame: Frame | None, place: int) -> int:
    if frame is not None:
        for level in frame.chain():
            place = int(level.parents[place])
    return place


def _locate(step: Step, operands: list[Any], size: int) -> int:
    """The first entry at which a step fails, by bisection."""
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        part = [o.slice(low, middle - low) if isinstance(o, pa.Array) else o for o in operands]
        try:
            _compute(step, part)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low


def _failed(text: str, step: Step, row: int) -> BadQuery:
    return BadQuery(
        f"row {row}: query{shown(step.place)}: {text}; guard the operands or cast to float64",
        pointer=shown(step.place),
        row=row,
        reason="overflow",
    )
