"""One file from question to Parquet: open, check names, evaluate step by step, write. Runs in a worker."""

import time
from collections.abc import Callable
from pathlib import Path

import awkward as ak

from doma.columns.evaluate import Table, run
from doma.columns.model import Outcome, Task
from doma.columns.plan import Plan, compile_text
from doma.columns.remote import open_bytes
from doma.columns.sink import ParquetSink
from doma.columns.source import Source, Window, check_names, open_source


def execute(task: Task, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Run a task.

    Raises:
        DomaError: what is wrong with the query or the file; no output is left then.
    """
    begun = clock()
    plan = compile_text(task.selection)
    data = open_bytes(task.url, task.token, task.ca_file, task.allow)
    try:
        if data.version and data.version in task.known:
            return Outcome(data.version, cached=True, read=data.taken, seconds=clock() - begun)
        source = open_source(data, plan.tree)
        names = source.names if plan.branches is None else plan.branches
        check_names(source, names)
        empty = run(plan, Window(source, 0, 0, (plan.first, tuple(n for n in names if n not in plan.first))))
        rows = size = 0
        if task.output:
            rows, size = _written(plan, source, names, empty, task)
        return Outcome(data.version, False, rows, size, data.taken, clock() - begun, tuple(empty.columns))
    finally:
        data.close()


def _written(plan: Plan, source: Source, names: tuple[str, ...], empty: Table, task: Task) -> tuple[int, int]:
    totals: list[Table] = []
    with ParquetSink(Path(task.output), empty) as sink:
        for window in source.windows(names, task.step, plan.first):
            table = run(plan, window)
            if table.total:
                totals.append(table)
            else:
                sink.write(table)
        if empty.total:
            sink.write(_combined([empty, *totals]))
        return sink.rows, sink.close()


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
