"""RNTuples as columns: plain fields by our own reader, everything else by uproot, opened on demand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import tee, zip_longest
from typing import Any

import numpy as np

from doma.columns.cursor import Odd
from doma.columns.fetch import Fetcher, Range
from doma.columns.ntuple import Column, Field, Page, PlainNtuple, assembled, joined
from doma.columns.plain import taken
from doma.columns.source import Columns, Index, Source, Window, cuts
from doma.core.errors import CorruptFile, LimitExceeded

Pages = dict[tuple[int, int], list[Page]]
"""By column and cluster."""


class NtupleSource:
    """An RNTuple.

    Raises:
        Odd: it is one for uproot. CorruptFile.
    """

    def __init__(self, place: str, fetcher: Fetcher, model: Any, whole: Callable[[], Source]) -> None:
        self.place, self._fetcher, self._open = place, fetcher, whole
        with _telling(place):
            self._ntuple = PlainNtuple(model, fetcher)
        # Only now: a field that lies in itself keeps uproot busy for ever.
        self._numbers = {f.name: int(f.field_id) for f in model.fields}
        self.names = self.readable = tuple(self._numbers)
        self._borders = self._ntuple.entries
        self.entries = int(self._borders[-1])
        self._known: dict[str, Field | None] = {}
        self._whole: Source | None = None

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        clusters = self._overlap(start, stop)
        fields, pages = self._pages(names, clusters, keep)
        parts = self._parts(pages)
        rows = np.diff(self._borders)[clusters.start : clusters.stop]
        begin = int(self._borders[clusters.start]) if clusters else start
        out: Columns = {}
        for name, field in fields.items():

            def column(c: Column, i: int) -> Any:
                key = c.number, clusters[i]
                return joined(c, pages[key], parts[key]) if key in pages else None

            try:
                with _telling(f"{self.place}, field {name!r} from entry {start}"):
                    data = assembled(field, rows, column)
            except Odd:
                self._known[name] = None
                continue
            whole = (start, stop) == (begin, begin + len(data))
            out[name] = taken(data, keep - begin) if keep is not None else (
                data if whole else data[start - begin : stop - begin]
            )  # fmt: skip
        rest = tuple(n for n in names if n not in out)
        if rest:
            out |= self._uproot().read(rest, start, stop, keep)
        return {n: out[n] for n in names}

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        size = self.sizes(names)[1] / max(self.entries, 1)
        spans, following = tee(cuts(self.entries, int(step / max(size, 1e-9)), self._borders))
        next(following, None)
        for (start, stop), after in zip_longest(spans, following):
            if after:
                _, pages = self._pages(first or names, self._overlap(*after), None)
                self._fetcher.ahead(_range(p) for held in pages.values() for p in held)
            yield Window(self, start, stop, groups)

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        fields, pages = self._pages(names, self._overlap(0, self.entries), None)
        widths = {c.number: c.kind.itemsize for f in fields.values() for c in f.columns}
        # Lists are read with an index of eight bytes for each of their members.
        inner = {f.values.number for f in fields.values() if f.ends is not None}
        packed = plain = 0
        for (number, _), held in pages.items():
            packed += sum(p.stop - p.start for p in held)
            plain += sum(p.count for p in held) * (8 if number in inner else widths[number])
        odd = tuple(n for n in names if n not in fields)
        more = self._uproot().sizes(odd) if odd else (0, 0)
        return packed + more[0], plain + more[1]

    def _field(self, name: str) -> Field | None:
        if name not in self._known:
            try:
                self._known[name] = self._ntuple.field(self._numbers[name])
            except Odd:
                self._known[name] = None
        return self._known[name]

    def _uproot(self) -> Source:
        self._whole = self._whole or self._open()
        return self._whole

    def _overlap(self, start: int, stop: int) -> range:
        """The clusters that hold some of the entries."""
        if start >= stop:
            return range(0)
        low = int(np.searchsorted(self._borders, start, "right")) - 1
        return range(low, int(np.searchsorted(self._borders, stop, "left")))

    def _pages(
        self, names: tuple[str, ...], clusters: range, keep: Index | None
    ) -> tuple[dict[str, Field], Pages]:
        """The plain fields, and their pages in clusters that hold entries which are kept."""
        wanted = [
            c for c in clusters if keep is None or len(_within(keep, self._borders[c], self._borders[c + 1]))
        ]
        fields: dict[str, Field] = {}
        found: Pages = {}
        for name in names:
            field = self._field(name)
            if field is None:
                continue
            try:
                with _telling(f"{self.place}, field {name!r}"):
                    found |= {(c.number, i): self._ntuple.pages(c, i) for c in field.columns for i in wanted}
                    self._check_counts(field.columns[0].number, found, wanted)
                fields[name] = field
            except Odd:
                self._known[name] = None
        return fields, found

    def _check_counts(self, number: int, pages: Pages, clusters: list[int]) -> None:
        """See that a field has a value or a list for each entry, before any memory is taken for these."""
        for i in clusters:
            count, rows = sum(p.count for p in pages[number, i]), self._borders[i + 1] - self._borders[i]
            if count != rows:
                raise CorruptFile(f"a cluster has {count} values or lists for {rows} entries")

    def _parts(self, pages: Pages) -> dict[tuple[int, int], list[memoryview]]:
        """The stored pages."""
        blocks = iter(self._fetcher.read([_range(p) for held in pages.values() for p in held]))
        return {key: [next(blocks) for _ in held] for key, held in pages.items()}


@contextmanager
def _telling(place: str) -> Iterator[None]:
    """Say where it is that something is wrong."""
    try:
        yield
    except (CorruptFile, LimitExceeded) as e:
        raise type(e)(f"{place}: {e.message}") from e


def _range(page: Page) -> Range:
    return page.start, page.stop + 8 * page.checked


def _within(keep: Index, start: int, stop: int) -> Index:
    return keep[np.searchsorted(keep, start) : np.searchsorted(keep, stop)]
