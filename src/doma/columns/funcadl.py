"""func_adl queries on a file: names checked, evaluated window by window, reductions combined at the end."""

import awkward as ak

from doma.columns.evaluate import Table, run
from doma.columns.model import Progress
from doma.columns.plan import compile_text
from doma.columns.query import Tell
from doma.columns.remote import Bytes
from doma.columns.sink import Sink
from doma.columns.source import Source, Window, check_names, open_source


class FuncAdl:
    """A func_adl selection (qastle text) behind the :class:`doma.columns.query.Query` Protocol."""

    def __init__(self, selection: str) -> None:
        self.plan = compile_text(selection)

    @property
    def digest(self) -> str:
        return self.plan.digest

    def check(self, data: Bytes) -> tuple[str, ...]:
        return tuple(self._begun(data)[2].columns)

    def run(self, data: Bytes, sink: Sink, step: int, tell: Tell) -> tuple[str, ...]:
        source, names, empty = self._begun(data)
        totals: list[Table] = []
        done = 0
        if not empty.total:
            sink.write(empty)
        for window in source.windows(names, step, self.plan.first):
            table = run(self.plan, window)
            if table.total:
                totals.append(table)
            else:
                sink.write(table)
            done += window.size
            tell(Progress(done, source.entries, data.taken))
        if empty.total:
            sink.write(_combined([empty, *totals]))
        return tuple(empty.columns)

    def _begun(self, data: Bytes) -> tuple[Source, tuple[str, ...], Table]:
        """The source, the names to read, and the output without rows."""
        plan = self.plan
        source = open_source(data, plan.tree)
        names = source.names if plan.branches is None else plan.branches
        check_names(source, names)
        groups = (plan.first, tuple(n for n in names if n not in plan.first))
        return source, names, run(plan, Window(source, 0, 0, groups))


def _combined(tables: list[Table]) -> Table:
    """One row from the rows of all steps: counts and sums add up, extremes compare."""
    kind = tables[0].total
    (name,) = tables[0].columns
    merged = ak.concatenate([t.columns[name] for t in tables])
    match kind:
        case "Max":
            return Table({name: ak.max(merged, keepdims=True, mask_identity=True)}, kind)
        case "Min":
            return Table({name: ak.min(merged, keepdims=True, mask_identity=True)}, kind)
        case _:
            return Table({name: ak.sum(merged, keepdims=True, mask_identity=False)}, kind)
