"""ROOT files as columns: plain TTrees and RNTuples by our own readers, everything else by uproot.

uproot is imported where it is needed: of a file with plain TTrees alone it reads nothing.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from doma.columns.baskets import decoded
from doma.columns.cursor import Odd
from doma.columns.directory import listing, loaded
from doma.columns.fetch import Fetcher
from doma.columns.near import did_you_mean, near
from doma.columns.plain import taken
from doma.columns.remote import Bytes
from doma.columns.source import Columns, Index, Source, Window, cuts
from doma.columns.ttree import Branch, PlainTree
from doma.core.errors import BadQuery, DomaError, LimitExceeded, UnknownColumn

if TYPE_CHECKING:
    from doma.columns.source_uproot import RootSource

TTREES = ("TTree", "TNtuple", "TNtupleD", "TChain")
TREES = (*TTREES, "ROOT::RNTuple")
LISTED = 256 << 20
"""Bytes of the list of branches."""


def open_root(data: Bytes, name: str | None) -> Source:
    """The tree or ntuple of a file; None: the only one.

    Raises:
        CorruptFile: not readable. UnknownColumn: no such tree. BadQuery: several, and none is named.
    """
    fetcher = Fetcher(data)
    try:
        return _plain(fetcher, name)
    except Odd:
        return _by_uproot(fetcher, name)


def _plain(fetcher: Fetcher, name: str | None) -> Source:
    """A TTree without uproot. Raises Odd: it takes that."""
    keys = listing(fetcher)
    tree = _named(fetcher.data.url, {k: v.kind for k, v in keys.items() if v.kind in TREES}, name)
    if tree not in keys or keys[tree].kind not in TTREES:
        raise Odd
    return _plain_source(
        fetcher, tree, keys[tree].size, keys[tree].header, lambda: loaded(fetcher, keys[tree])
    )


def _by_uproot(fetcher: Fetcher, name: str | None) -> Source:
    from doma.columns.source_uproot import translated, uproot_file

    with translated(fetcher.data.url):
        file = uproot_file(fetcher)
        classes = {k: c for k, c in file.classnames(cycle=False).items() if c in TREES}
    tree = _named(fetcher.data.url, classes, name)
    with translated(_place(fetcher, tree)):
        try:
            if classes[tree.split(";")[0]] in TTREES:
                key = file.key(tree)
                return _plain_source(
                    fetcher,
                    tree,
                    key.fObjlen,
                    key.fKeylen,
                    lambda: bytes(key.get_uncompressed_chunk_cursor()[0].raw_data),
                )
            from doma.columns.source_ntuple import NtupleSource

            return NtupleSource(_place(fetcher, tree), fetcher, file[tree], lambda: _whole(fetcher, tree))
        except Odd:
            return _whole(fetcher, tree)


def _plain_source(
    fetcher: Fetcher, name: str, size: int, header: int, content: Callable[[], bytes]
) -> "PlainSource":
    if size > LISTED:
        raise LimitExceeded(f"the list of branches has {size} bytes, at most {LISTED} are read")
    tree = PlainTree(content(), header)
    return PlainSource(_place(fetcher, name), fetcher, tree, lambda: _whole(fetcher, name))


def _whole(fetcher: Fetcher, name: str) -> "RootSource":
    from doma.columns.source_uproot import RootSource, translated, uproot_file

    place = _place(fetcher, name)
    with translated(place):
        return RootSource(place, uproot_file(fetcher)[name])


def _place(fetcher: Fetcher, name: str) -> str:
    return f"{fetcher.data.url}, tree {name!r}"


def _named(url: str, classes: dict[str, str], name: str | None) -> str:
    trees = list(classes)
    # Clients write the text 'None' when no tree was named.
    if name is None or (name == "None" and name not in trees):
        if len(trees) != 1:
            listed = f"it has {', '.join(trees[:8])}; name one" if trees else "it has no tree"
            raise (BadQuery if trees else UnknownColumn)(f"{url}: the query names no tree, and {listed}")
        return trees[0]
    if name.split(";")[0] not in classes:
        tail = did_you_mean(name, trees) if trees else "the file has no trees at all"
        raise UnknownColumn(f"{url}: there is no tree {name!r}; {tail}", name=name, near=near(name, trees))
    return name


class PlainSource:
    """A TTree of plain branches; what is not plain among them is read by uproot, which is opened then."""

    def __init__(
        self, place: str, fetcher: Fetcher, tree: PlainTree, whole: "Callable[[], RootSource]"
    ) -> None:
        self.place, self.names, self.entries = place, tree.names, int(tree.entries)
        self._fetcher, self._tree, self._open = fetcher, tree, whole
        self._known: dict[str, Branch | None] = {}
        self._whole: RootSource | None = None
        self._edges: dict[str, tuple[int, memoryview]] = {}

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        plain = {n: b for n in names if (b := self._branch(n)) is not None}
        wanted = {n: _wanted(b, start, stop, keep) for n, b in plain.items()}
        parts = self._parts(plain, wanted)
        out: Columns = {}
        for name, branch in plain.items():
            first = wanted[name][0]
            stored = parts.pop(name)
            self._remember(name, branch, first, stored, stop)
            try:
                data = decoded(branch, first, stored, start, stop)
            except Odd:
                self._known[name] = None
                continue
            except DomaError as e:
                raise type(e)(f"{self.place}, branch {name!r} from entry {start}: {e.message}") from e
            out[name] = data if keep is None else taken(data, keep - start)
        rest = tuple(n for n in names if n not in out)
        if rest:
            out |= self._uproot().read(rest, start, stop, keep)
        return {n: out[n] for n in names}

    def path(self, name: str) -> str | None:
        """Where a branch is, whatever it is called; None: there is none."""
        found = self._tree.path(name)
        return self._uproot().path(name) if found is None and self._tree.nested and "/" in name else found

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        branches = {n: b for n in names if (b := self._branch(n)) is not None}
        size = sum(self._size(n) for n in names) / max(self.entries, 1)
        common: Index | None = None
        for branch in branches.values():
            common = branch.entries if common is None else np.intersect1d(common, branch.entries)
        spans = list(cuts(self.entries, int(step / max(size, 1e-9)), common))
        ahead = {n: branches[n] for n in (first or names) if n in branches}
        for i, (start, stop) in enumerate(spans):
            if i + 1 < len(spans):
                self._begin(ahead, *spans[i + 1])
            yield Window(self, start, stop, groups)

    @property
    def readable(self) -> tuple[str, ...]:
        """The columns that can be read."""
        if all(self._branch(n) is not None for n in self.names):
            return self.names
        return self._uproot().readable

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        known = [b for n in names if (b := self._branch(n)) is not None]
        odd = tuple(n for n in names if self._branch(n) is None)
        packed, plain = self._uproot().sizes(odd) if odd else (0, 0)
        return packed + sum(int(b.sizes.sum()) for b in known), plain + sum(b.bytes for b in known)

    def _size(self, name: str) -> int:
        branch = self._branch(name)
        if branch is None:
            return 64 * self.entries
        # Of members the evaluator keeps an index of eight bytes each.
        wide = branch.bytes * 8 // min(branch.kind.itemsize, 8) + 8 * self.entries
        return wide if branch.jagged else branch.bytes

    def _branch(self, name: str) -> Branch | None:
        if name not in self._known:
            try:
                self._known[name] = self._tree.branch(name)
            except Odd:
                self._known[name] = None
        return self._known[name]

    def _uproot(self) -> "RootSource":
        self._whole = self._whole or self._open()
        return self._whole

    def _begin(self, branches: dict[str, Branch], start: int, stop: int) -> None:
        self._fetcher.ahead(
            (int(b.seeks[i]), int(b.seeks[i] + b.sizes[i]))
            for b in branches.values()
            for i in range(*_overlap(b, start, stop))
            if b.seeks[i]
        )

    def _parts(
        self, plain: dict[str, Branch], wanted: dict[str, tuple[int, npt.NDArray[np.bool_]]]
    ) -> dict[str, list[memoryview | None]]:
        """The stored baskets by branch; None for those that are not needed."""
        ranges, places = [], []
        parts: dict[str, list[memoryview | None]] = {}
        for name, branch in plain.items():
            first, needed = wanted[name]
            parts[name] = [None] * len(needed)
            for i in np.flatnonzero(needed).tolist():
                if name in self._edges and self._edges[name][0] == first + i:
                    parts[name][i] = self._edges[name][1]
                    continue
                low, size = int(branch.seeks[first + i]), int(branch.sizes[first + i])
                if not low:
                    inside = branch.inside[first + i - len(branch.seeks)]
                    parts[name][i] = memoryview(inside)
                    continue
                ranges.append((low, low + size))
                places.append((name, i))
        for (name, i), block in zip(places, self._fetcher.read(ranges), strict=True):
            parts[name][i] = block
        return parts

    def _remember(
        self, name: str, branch: Branch, first: int, stored: list[memoryview | None], stop: int
    ) -> None:
        """Keep the basket that the next window begins with."""
        self._edges.pop(name, None)
        last = first + len(stored)
        if stored and (part := stored[-1]) is not None and branch.entries[last] > stop:
            self._edges[name] = last - 1, memoryview(bytes(part))


def _overlap(branch: Branch, start: int, stop: int) -> tuple[int, int]:
    """First and behind last of the baskets that hold some of the entries."""
    if start >= stop:
        return 0, 0
    low = int(np.searchsorted(branch.entries, start, "right")) - 1
    return low, int(np.searchsorted(branch.entries, stop, "left"))


def _wanted(branch: Branch, start: int, stop: int, keep: Index | None) -> tuple[int, npt.NDArray[np.bool_]]:
    """The first basket of a range, and which of its baskets hold entries that are kept."""
    low, high = _overlap(branch, start, stop)
    if keep is None:
        return low, np.ones(high - low, np.bool_)
    return low, np.diff(np.searchsorted(keep, branch.entries[low : high + 1])) > 0
