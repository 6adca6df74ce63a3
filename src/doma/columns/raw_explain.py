"""An uproot-raw selection in words: what each sub-query reads and does."""

from collections.abc import Iterable, Iterator

from doma.columns.explain import Column, Explained, FileFacts, Step
from doma.columns.raw_request import Part
from doma.columns.remote import Bytes
from doma.columns.source import Source

Planned = tuple[Source, tuple[str, ...], tuple[str, ...], dict[str, str]]
"""A tree, its branches that filters need, the other ones, and its output columns with their types."""


def explained(parts: tuple[Part, ...], digest: str) -> Explained:
    """Sub-queries, explained without a file."""
    trees = [t for p in parts for t in p.trees]
    steps = tuple(s for p in parts for s in _steps(p))
    first, out = trees[0] if trees else (None, "")
    return Explained("uproot-raw", digest, first, out, None, (), steps)


def with_file(base: Explained, data: Bytes, jobs: Iterable[Planned], step: int) -> Explained:
    """The same, with what a file tells; several trees are summed up."""
    places: list[str] = []
    columns: dict[str, str] = {}
    first: dict[str, None] = {}
    rest: dict[str, None] = {}
    entries = compressed = uncompressed = filters = windows = 0
    for source, early, late, types in jobs:
        places.append(source.place)
        first |= dict.fromkeys(early)
        rest |= dict.fromkeys(late)
        columns |= types
        entries += source.entries
        packed, unpacked = source.sizes((*early, *late))
        compressed, uncompressed = compressed + packed, uncompressed + unpacked
        filters += source.sizes(early)[0]
        windows += sum(1 for _ in source.windows((*early, *late), step, early))
    place = "; ".join(dict.fromkeys(places)) or data.url
    return Explained(
        base.codegen, base.digest, base.tree, base.tree_out, (*first, *(n for n in rest if n not in first)),
        tuple(first), base.steps, tuple(Column(n, t) for n, t in columns.items()),
        FileFacts(data.url, place, entries, data.size, compressed, uncompressed, filters, windows),
    )  # fmt: skip


def _steps(part: Part) -> Iterator[Step]:
    for tree, out in part.trees:
        renamed = "" if tree == out else f", as {out!r}"
        need = "the file fails without it" if part.must_exist else "skipped where it is missing"
        yield Step(0, f"{part.number}. the events of tree {tree!r}{renamed}; {need}")
    if part.trees:
        for alias in part.aliases:
            yield Step(1, f"{alias.name} stands for {alias.text}")
        if part.cut is not None:
            yield Step(1, f"where {part.cut.text}")
        if part.expressions is not None:
            yield from (Step(1, f"column {f.text}") for f in part.expressions)
        else:
            asked = [f"{k} {f!r}" for k, f in (("name", part.names), ("type", part.types)) if f is not None]
            yield Step(1, "every branch" + (f" of {' and '.join(asked)}" if asked else ""))
        if part.standard_axis:
            yield Step(1, "functions have awkward's own default axis")
    if part.histograms is not None:
        yield Step(0, f"{part.number}. copies of the objects {part.histograms!r}")
