"""An uproot-raw selection in words: what each sub-query reads and does."""

from collections.abc import Iterator

from doma.columns.explain import Explained, Step
from doma.columns.raw_request import Part


def explained(parts: tuple[Part, ...], digest: str) -> Explained:
    """Sub-queries, explained without a file."""
    trees = [t for p in parts for t in p.trees]
    steps = tuple(s for p in parts for s in _steps(p))
    first, out = trees[0] if trees else (None, "")
    return Explained("uproot-raw", digest, first, out, None, (), steps)


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
