"""uproot-raw: what uproot's ``arrays`` does, asked for by several sub-queries in one request.

Each sub-query selects branches, or computes expressions, of one or more trees, and may cut on events; another
kind copies histograms. Names are checked on the file, the cut's branches are read first, and expressions are
computed on the events that pass.

Source: servicex.md §8.2 and §9 of the project's contracts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import awkward as ak
import numpy as np

from doma.columns.evaluate import Table
from doma.columns.explain import Explained, columns_of, facts
from doma.columns.model import Progress
from doma.columns.query import Tell
from doma.columns.raw_evaluate import Evaluator, Names, across_events
from doma.columns.raw_filter import Filter
from doma.columns.raw_histograms import RootFile
from doma.columns.raw_language import Formula
from doma.columns.raw_request import Part, naming, parse_request
from doma.columns.remote import Bytes
from doma.columns.sink import Sink
from doma.columns.source import HasPaths, Source, Window, open_source
from doma.core.errors import BadQuery, UnknownColumn

LABEL = "treename"
"""The column that says from which tree a row is, where a format knows no trees."""

Trees = dict[str, Source]
"""The trees of a file that were opened, by name."""


@dataclass(frozen=True, slots=True)
class Job:
    """A sub-query on one tree of a file."""

    part: Part
    source: Source
    output: str
    columns: tuple[Formula, ...]
    names: Names
    first: tuple[str, ...]
    """Branches that must be read for every event."""
    rest: tuple[str, ...]
    late: bool
    """Whether columns are computed before the cut: they act across events."""

    def table(self, rows: Window) -> Table:
        """The columns of a step."""
        with naming(self.part.number):
            before = Evaluator(self.names, rows)
            mask = None if self.part.cut is None else before.mask(self.part.cut)
            if self.late or mask is None:
                columns = {f.name: before.column(f) for f in self.columns}
                return Table(columns if mask is None else {n: a[mask] for n, a in columns.items()})
            after = Evaluator(self.names, rows.where(mask))
            return Table({f.name: after.column(f) for f in self.columns})

    def empty(self) -> Table:
        """The columns without rows: their names and types."""
        return self.table(Window(self.source, 0, 0, (self.first, self.rest)))


class UprootRaw:
    """An uproot-raw selection behind the :class:`doma.columns.query.Query` Protocol."""

    def __init__(self, selection: str) -> None:
        self.parts = parse_request(selection)

    @property
    def digest(self) -> str:
        asked = ("uproot-raw", tuple(p.digest for p in self.parts))
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    def check(self, data: Bytes) -> tuple[str, ...]:
        found: dict[str, None] = {}
        trees: Trees = {}
        for part in self.parts:
            for job in _jobs(part, data, trees):
                found |= dict.fromkeys(job.empty().columns)
            if part.histograms is not None:
                RootFile(data)
        return tuple(found)

    def run(self, data: Bytes, sink: Sink, step: int, tell: Tell) -> tuple[str, ...]:
        found: dict[str, None] = {}
        trees: Trees = {}
        done = total = 0
        for part in self.parts:
            for job in _jobs(part, data, trees):
                total += job.source.entries
                empty = _labelled(job.empty(), job, sink)
                found |= dict.fromkeys(empty.columns)
                sink.write(empty, job.output)
                for window in job.source.windows(job.first + job.rest, step, job.first):
                    sink.write(_labelled(job.table(window), job, sink), job.output)
                    done += window.size
                    tell(Progress(done, total, data.taken))
            if part.histograms is not None:
                _copy(part, data, sink)
        return tuple(found)

    def explain(self, data: Bytes | None, step: int) -> Explained:
        """What the query reads and does, without running it on events."""
        from doma.columns.raw_explain import explained

        base = explained(self.parts, self.digest)
        if data is None:
            return base
        trees: Trees = {}
        jobs = [job for part in self.parts for job in _jobs(part, data, trees)]
        first = dict.fromkeys(name for job in jobs for name in job.first)
        rest = dict.fromkeys(name for job in jobs for name in job.rest)
        columns = {c.name: c for job in jobs for c in columns_of(job.empty())}
        return replace(
            base, branches=tuple(first | rest), filters=tuple(first), columns=tuple(columns.values()),
            file=facts(data, [(j.source, j.first + j.rest, j.first) for j in jobs], step),
        )  # fmt: skip


def _jobs(part: Part, data: Bytes, trees: Trees) -> Iterator[Job]:
    """What a sub-query does on each of its trees; a tree that was opened before is read through again."""
    for tree, output in part.trees:
        with naming(part.number):
            source = trees.get(tree) or _source(part, data, tree)
            if source is not None:
                trees[tree] = source
                yield _job(part, data, source, tree, output)


def _source(part: Part, data: Bytes, tree: str) -> Source | None:
    """The tree; None if the file lacks it and may."""
    try:
        return open_source(data, tree)
    except UnknownColumn as e:
        if part.must_exist or e.detail.get("name") != tree:
            raise
        return None


def _job(part: Part, data: Bytes, source: Source, tree: str, output: str) -> Job:
    columns = part.expressions
    if columns is None:
        columns = tuple(Formula(n, n, None, n) for n in _filtered(part, data, source, tree))
    cut = [] if part.cut is None else [part.cut]
    known = set(source.names)
    if isinstance(source, HasPaths):
        texts = set[str]().union(*(f.paths for f in (*cut, *columns, *part.aliases)))
        known |= {t for t in texts if source.path(t) is not None}
    names = Names(source.place, frozenset(known), {f.name: f for f in part.aliases}, part.standard_axis)
    late = bool(cut) and (part.standard_axis or any(map(across_events, (*columns, *part.aliases))))
    read = {
        n: sorted(set().union(*map(names.needs, fs))) for n, fs in (("cut", cut), ("all", (*cut, *columns)))
    }
    first = tuple(read["all"] if late else read["cut"])
    return Job(
        part, source, output, columns, names, first, tuple(n for n in read["all"] if n not in first), late
    )


def _filtered(part: Part, data: Bytes, source: Source, tree: str) -> tuple[str, ...]:
    """The branches that pass the filters."""
    names = source.readable
    if part.names is not None:
        names = tuple(n for n in names if _passes(part.names, n, source))
    if part.types is not None and names:
        types = _types(data, source, tree, names)
        names = tuple(n for n in names if part.types(types.get(n, "")))
    if not names:
        asked = ", ".join(
            f"{k} {f!r}" for k, f in (("filter_name", part.names), ("filter_typename", part.types)) if f
        )
        raise BadQuery(
            f"{source.place}: no branch passes {asked}" if asked else f"{source.place}: no branches"
        )
    return names


def _passes(names: Filter, name: str, source: Source) -> bool:
    """Whether a filter takes a branch by its own name, or by its place with or without a leading slash."""
    path = (source.path(name) if isinstance(source, HasPaths) else None) or name
    return any(map(names, (path.rpartition("/")[2], path, f"/{path}", name)))


def _types(data: Bytes, source: Source, tree: str, names: tuple[str, ...]) -> dict[str, str]:
    if data.read(0, 4) == b"root":
        return RootFile(data).type_names(tree)
    return {n: str(a.type.content) for n, a in source.read(names, 0, 0).items()}


def _labelled(table: Table, job: Job, sink: Sink) -> Table:
    """With the tree's name in each row, where trees are not kept apart."""
    if sink.trees:
        return table
    if LABEL in table.columns:
        raise BadQuery(
            f"sub-query {job.part.number}: a column {LABEL!r} is added in this format; rename yours"
        )
    size = len(next(iter(table.columns.values())))
    text = ak.from_iter([job.output], highlevel=False)
    label = ak.contents.IndexedArray(ak.index.Index64(np.zeros(size, np.int64)), text)
    return Table({**table.columns, LABEL: ak.Array(label)})


def _copy(part: Part, data: Bytes, sink: Sink) -> None:
    assert part.histograms is not None
    with naming(part.number):
        if not sink.trees:
            raise BadQuery("copy_histograms: histograms cannot be stored in parquet; ask for root-file")
        file = RootFile(data)
        for path in file.objects(part.histograms):
            sink.copy(path, file.directory)
