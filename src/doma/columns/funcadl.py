"""func_adl queries on a file: names checked, evaluated window by window, totals made at the end."""

from collections.abc import Iterator

import awkward as ak

from doma.columns.evaluate import Table, run
from doma.columns.explain import Explained, facts
from doma.columns.model import Progress
from doma.columns.plan import compile_text
from doma.columns.query import Tell
from doma.columns.remote import Bytes
from doma.columns.sequences import extreme
from doma.columns.sink import TREE, Sink
from doma.columns.source import Source, Window, check_names, open_source


class FuncAdl:
    """A func_adl selection (qastle text) behind the :class:`doma.columns.query.Query` Protocol."""

    def __init__(self, selection: str) -> None:
        self.plan = compile_text(selection)

    @property
    def digest(self) -> str:
        return self.plan.digest

    @property
    def tree_out(self) -> str:
        """Name of the tree in ROOT output."""
        return self.plan.tree_out or TREE

    def check(self, data: Bytes) -> tuple[str, ...]:
        return tuple(self._begun(data)[2].columns)

    def run(self, data: Bytes, sink: Sink, step: int, tell: Tell) -> tuple[str, ...]:
        source, names, empty = self._begun(data)
        tables = self._tables(source, names, data, step, tell)
        if self.plan.pick is not None:
            sink.write(_picked(empty, tables, self.plan.pick), self.tree_out)
        elif empty.total:
            sink.write(_combined([*self._seed(empty), empty, *tables]), self.tree_out)
        else:
            sink.write(empty, self.tree_out)
            for table in tables:
                sink.write(table, self.tree_out)
        return tuple(empty.columns)

    def explain(self, data: Bytes | None, step: int) -> Explained:
        """What the query reads and does, without running it on events."""
        from doma.columns.explain_plan import explained

        if data is None:
            return explained(self.plan, self.digest, self.tree_out)
        source, names, empty = self._begun(data)
        file = facts(data, [(source, names, self.plan.first)], step)
        return explained(self.plan, self.digest, self.tree_out, empty, file)

    def _tables(
        self, source: Source, names: tuple[str, ...], data: Bytes, step: int, tell: Tell
    ) -> Iterator[Table]:
        done = 0
        for window in source.windows(names, step, self.plan.first):
            yield run(self.plan, window)
            done += window.size
            tell(Progress(done, source.entries, data.taken))

    def _seed(self, empty: Table) -> list[Table]:
        """What a total starts from, as a row like the others."""
        if self.plan.seed is None:
            return []
        return [Table({name: ak.Array([self.plan.seed]) for name in empty.columns}, empty.total)]

    def _begun(self, data: Bytes) -> tuple[Source, tuple[str, ...], Table]:
        """The source, the names to read, and the output without rows."""
        plan = self.plan
        source = open_source(data, plan.tree, plan)
        names = source.readable if plan.branches is None else plan.branches
        check_names(source, names)
        groups = (plan.first, tuple(n for n in names if n not in plan.first))
        return source, names, run(plan, Window(source, 0, 0, groups))


def _combined(tables: list[Table]) -> Table:
    """One row from the rows of all steps: counts and sums add up, extremes compare."""
    kind = tables[0].total
    (name,) = tables[0].columns
    merged = ak.concatenate([t.columns[name] for t in tables])
    match kind:
        case "Max" | "Min":
            return Table({name: extreme(kind, merged, axis=None, keepdims=True)}, kind)
        case "Any" | "Contains":
            return Table({name: ak.any(merged, keepdims=True, mask_identity=False)}, kind)
        case "All":
            return Table({name: ak.all(merged, keepdims=True, mask_identity=False)}, kind)
        case _:
            total = ak.sum(merged, keepdims=True, mask_identity=False)
            return Table({name: ak.values_astype(total, merged.layout.form.type.primitive)}, kind)


def _picked(empty: Table, tables: Iterator[Table], index: int) -> Table:
    """One row of all: from the front, or the last one; missing if there are too few."""
    kept: Table | None = None
    before = 0
    for table in tables:
        size = _rows(table)
        if index < 0 and size:
            kept = _row(table, size - 1)
        elif before <= index < before + size:
            return _row(table, index - before)
        before += size
    if kept is not None:
        return kept
    return Table({name: ak.pad_none(column, 1, axis=0) for name, column in empty.columns.items()})


def _rows(table: Table) -> int:
    return len(next(iter(table.columns.values())))


def _row(table: Table, at: int) -> Table:
    """One row, of a type that may be missing, as a shorter file would have it."""
    return Table({n: ak.pad_none(c[at : at + 1], 1, axis=0) for n, c in table.columns.items()})
