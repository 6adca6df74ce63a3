"""Runs a query over open files: predicate columns first, the others only where rows survive.

Source: scan.md §4 (late materialisation; bounded memory).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from doma.core.errors import BadQuery, CorruptFile, LimitExceeded
from doma.scan.evaluate import BUDGET, Evaluator
from doma.scan.grammar import Scope
from doma.scan.groups import Group, batch_of, portions
from doma.scan.model import Output, Query
from doma.scan.names import members, unknown
from doma.scan.plan import can_skip
from doma.scan.source import Source


@dataclass(slots=True)
class Stats:
    """What a scan has done so far."""

    files: int = 0
    groups: int = 0
    groups_skipped: int = 0
    """By statistics, unread."""
    groups_empty: int = 0
    """No row passed: the projected columns were not read."""
    rows_read: int = 0
    rows_sent: int = 0
    bytes_read: int = 0
    """From the store."""
    bytes_sent: int = 0
    """Arrow IPC messages as written."""
    batches: int = 0


@dataclass(slots=True)
class Job:
    """One query bound to the schema of its dataset.

    Args:
        query: The query.
        schema: Of the whole dataset.
        memory: Bytes it may hold.
    """

    query: Query
    schema: pa.Schema
    memory: int
    where: Evaluator | None = field(init=False)
    outputs: "list[_Column]" = field(init=False)
    result: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        budget = min(BUDGET, self.memory // 4)
        self.where = None
        if self.query.where is not None:
            self.where = Evaluator(self.query.where, self.schema, budget)
            kind = self.where.type
            if not pt.is_boolean(kind) and not pt.is_null(kind):
                raise BadQuery(
                    f"query/where: a truth value is needed, this is {kind}; compare it with something",
                    pointer="/where",
                    reason="type-mismatch",
                )
        self.outputs = _outputs(self.query.columns, self.schema, budget)
        fields = [pa.field(name, kind) for column in self.outputs for name, kind in column.fields]
        names = [f.name for f in fields]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadQuery(
                f"query/columns: the column {twice!r} comes out twice; rename one", pointer="/columns"
            )
        self.result = pa.schema(fields)

    @property
    def cut_columns(self) -> list[str]:
        """Columns that the cut reads."""
        return [] if self.where is None else sorted(self.where.columns)

    @property
    def kept_columns(self) -> list[str]:
        """Columns that the outputs read, without those of the cut."""
        return sorted({name for column in self.outputs for name in column.needs} - set(self.cut_columns))

    def rows_of(self, source: Source, name: str, stats: Stats) -> Iterator[pa.RecordBatch]:
        """The result's batches of one file in order, cut to a sendable size.

        Args:
            source: The open file.
            name: Of the file, for messages.
            stats: Counted up.
        """
        cut, kept = self.cut_columns, self.kept_columns
        held = {f.name for f in source.schema}
        mine = [column for column in (*cut, *kept) if column in held]
        for group in source.groups(mine):
            stats.groups += 1
            if self._skippable(source, group, held):
                stats.groups_skipped += 1
                continue
            stats.rows_read += group.rows
            size = source.size(group, mine)
            if size <= self.memory // 3:
                yield from self._whole(source, group, name, stats)
                continue
            rows = max(int(group.rows * (self.memory / 6) / size), 16)
            self._check_row(size, group, name)
            at = group.start
            for batch in source.stream(group, mine, rows):
                yield from self._select(self._fitted(batch, (*cut, *kept), name), name, at)
                at += batch.num_rows

    def _check_row(self, size: int, group: Group, name: str) -> None:
        if size / max(group.rows, 1) * 16 > self.memory:
            raise LimitExceeded(
                f"{name}: rows of row group {group.index} have about {size // group.rows} bytes each,"
                f" a query may hold {self.memory}; ask for fewer columns"
            )

    def _skippable(self, source: Source, group: Group, held: set[str]) -> bool:
        if self.query.where is None or not group.rows:
            return not group.rows
        return can_skip(self.query.where, lambda c: source.bounds(group, c) if c in held else None)

    def _whole(self, source: Source, group: Group, name: str, stats: Stats) -> Iterator[pa.RecordBatch]:
        held = {f.name for f in source.schema}
        cut = self._fitted(
            source.read(group, [c for c in self.cut_columns if c in held]), self.cut_columns, name, group.rows
        )
        chosen = self._mask(cut, name, group.start)
        if chosen is not None and not len(chosen):
            stats.groups_empty += 1
            return
        kept = self._fitted(
            source.read(group, [c for c in self.kept_columns if c in held]),
            self.kept_columns,
            name,
            group.rows,
        )
        order = [*self.cut_columns, *self.kept_columns]
        columns = dict(zip(order, (*cut.columns, *kept.columns), strict=True))
        yield from self._project(batch_of(columns, order, group.rows), chosen, name, group.start)

    def _select(self, batch: pa.RecordBatch, name: str, at: int) -> Iterator[pa.RecordBatch]:
        yield from self._project(batch, self._mask(batch, name, at), name, at)

    def _mask(self, batch: pa.RecordBatch, name: str, at: int) -> Any:
        """Numbers of the rows that pass; None: all."""
        if self.where is None:
            return None
        where = self.where
        truth = _named(lambda: where.run(batch, lambda n: at + n), name)
        flags = pc.fill_null(truth.cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
        return None if flags.all() else np.flatnonzero(flags)

    def _project(self, batch: pa.RecordBatch, chosen: Any, name: str, at: int) -> Iterator[pa.RecordBatch]:
        if chosen is not None:
            if not len(chosen):
                return
            needed = sorted({n for column in self.outputs for n in column.needs})
            taken = pa.array(chosen)
            columns = {n: batch.column(batch.schema.get_field_index(n)).take(taken) for n in needed}
            batch = batch_of(columns, needed, len(chosen))

        def row(n: int) -> int:
            return at + (n if chosen is None else int(chosen[n]))

        found: dict[str, Any] = {}
        for column in self.outputs:
            found.update(_named(partial(column.run, batch, row), name))
        out = batch_of(found, self.result.names, batch.num_rows)
        if self.result.names:
            out = pa.RecordBatch.from_arrays(out.columns, schema=self.result)
        yield from portions(out)

    def _fitted(
        self, batch: pa.RecordBatch, order: Sequence[str], name: str, rows: int | None = None
    ) -> pa.RecordBatch:
        """The file's columns in the dataset's types; null where the file lacks one."""
        count = batch.num_rows if rows is None else rows
        columns = {}
        for column in order:
            kind = self.schema.field(column).type
            place = batch.schema.get_field_index(column)
            array = pa.nulls(count, kind) if place < 0 else batch.column(place)
            if array.type != kind:
                try:
                    array = array.cast(kind)
                except pa.ArrowInvalid as e:
                    raise CorruptFile(f"{name}: column {column!r} does not fit {kind}: {e}", path=name) from e
            columns[column] = array
        return batch_of(columns, list(order), count)


@dataclass(frozen=True, slots=True)
class _Column:
    """One column spec, bound: what it reads, what it gives."""

    needs: frozenset[str]
    fields: tuple[tuple[str, pa.DataType], ...]
    evaluator: Evaluator | None = None

    def run(self, batch: pa.RecordBatch, row: Callable[[int], int]) -> dict[str, pa.Array]:
        if self.evaluator is None:
            name = self.fields[0][0]
            return {name: batch.column(batch.schema.get_field_index(name))}
        result = self.evaluator.run(batch, row)
        if len(self.fields) == 1 and result.type == self.fields[0][1]:
            return {self.fields[0][0]: result}
        return dict(zip((name for name, _ in self.fields), result.flatten(), strict=True))


def _outputs(specs: tuple[Output, ...] | None, schema: pa.Schema, budget: int) -> list[_Column]:
    if specs is None:
        return [_Column(frozenset({f.name}), ((f.name, f.type),)) for f in schema]
    out = []
    for place, spec in enumerate(specs):
        if spec.program is None:
            if schema.get_field_index(spec.name) < 0:
                raise unknown(spec.name, schema.names, f"query/columns/{place}")
            out.append(_Column(frozenset({spec.name}), ((spec.name, schema.field(spec.name).type),)))
            continue
        if spec.kind == "expression":
            evaluator = Evaluator(spec.program, schema, budget)
            out.append(_Column(frozenset(evaluator.columns), ((spec.name, evaluator.type),), evaluator))
            continue
        out.append(_keep(spec, schema, budget))
    return out


def _keep(spec: Output, schema: pa.Schema, budget: int) -> _Column:
    program = spec.program
    assert program is not None
    last = program.steps[-1]
    step = program.steps[last.args[0]]
    scope: Scope = step.value
    names: dict[str, str] = {}
    more: set[str] = set()
    if scope.collection is not None:
        for variable, (column, inner) in members(scope, schema, every=True).items():
            names[variable] = column if inner is None else f"{scope.collection}_{variable}"
            more.add(column)
    else:
        for variable, arg in zip(scope.fields, step.args, strict=False):
            named = program.steps[arg]
            names[variable] = named.value[-1] if named.op == "col" else variable
    evaluator = Evaluator(program, schema, budget, more)
    fields = tuple((names[f.name], f.type) for f in evaluator.type)
    return _Column(frozenset(evaluator.columns), fields, evaluator)


def _named(work: Callable[[], Any], name: str) -> Any:
    """The result of work on one file; an error about a row names the file as well."""
    try:
        return work()
    except BadQuery as e:
        if "row" in e.detail and "path" not in e.detail:
            raise type(e)(f"{name}: {e.message}", **e.detail, path=name) from e
        raise
