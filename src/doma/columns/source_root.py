"""ROOT files as columns: plain TTrees by our own reader, everything else by uproot."""

import queue
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cramjam
import numpy as np
import numpy.typing as npt
import uproot
from uproot.source.chunk import Chunk
from uproot.source.chunk import Source as UprootSource
from uproot.source.futures import TrivialFuture

from doma.columns.baskets import decoded
from doma.columns.fetch import Fetcher
from doma.columns.near import did_you_mean, near
from doma.columns.plain import taken
from doma.columns.remote import Bytes
from doma.columns.source import Columns, Index, Source, Window, cuts
from doma.columns.ttree import Branch, Odd, PlainTree
from doma.core.errors import BadQuery, CorruptFile, DomaError, LimitExceeded, UnknownColumn

TTREES = ("TTree", "TNtuple", "TNtupleD", "TChain")
TREES = (*TTREES, "ROOT::RNTuple")
LISTED = 256 << 20
"""Bytes of the list of branches."""
BROKEN = (
    ValueError, OSError, LookupError, TypeError, AttributeError, NotImplementedError, AssertionError,
    RuntimeError, ArithmeticError, EOFError, MemoryError, struct.error, zlib.error,
    cramjam.DecompressionError, uproot.deserialization.DeserializationError,
    uproot.interpretation.objects.CannotBeAwkward, uproot.interpretation.identify.UnknownInterpretation,
)  # fmt: skip
"""What uproot raises on damaged bytes: it has no family of its own."""


def open_root(data: Bytes, name: str | None) -> Source:
    """The tree or ntuple of a file; None: the only one.

    Raises:
        CorruptFile: not readable. UnknownColumn: no such tree. BadQuery: several, and none is named.
    """
    fetcher = Fetcher(data)
    handler = type("BoundSource", (_RootBytes,), {"fetcher": fetcher})
    with _translated(data.url):
        file = uproot.open({data.url: None}, handler=handler, object_cache=None, array_cache=None)
        classes = {k: c for k, c in file.classnames(cycle=False).items() if c in TREES}
    name = _named(data.url, classes, name)
    place = f"{data.url}, tree {name!r}"

    def whole() -> RootSource:
        with _translated(place):
            return RootSource(place, file[name])

    if classes[name.split(";")[0]] in TTREES:
        with _translated(place):
            try:
                return PlainSource(place, fetcher, _listed(file.key(name)), whole)
            except Odd:
                pass
    else:
        from doma.columns.source_ntuple import NtupleSource

        with _translated(place):
            try:
                return NtupleSource(place, fetcher, file[name], whole)
            except Odd:
                pass
    return whole()


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


def _listed(key: Any) -> PlainTree:
    if key.fObjlen > LISTED:
        raise LimitExceeded(f"the list of branches has {key.fObjlen} bytes, at most {LISTED} are read")
    chunk, _ = key.get_uncompressed_chunk_cursor()
    return PlainTree(bytes(chunk.raw_data), key.fKeylen)


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


class RootSource:
    """A TTree or RNTuple by uproot."""

    def __init__(self, place: str, tree: Any) -> None:
        self.place, self._tree = place, tree
        self._is_tree = hasattr(tree, "branches")
        # Listing the keys of an ntuple of 2,000 fields, and reading by name, takes uproot seconds; its top
        # fields are at hand, and each can be read by itself.
        self._fields: dict[str, Any] = {} if self._is_tree else {f.name: f for f in tree.fields}
        self.names = tuple(dict.fromkeys(tree.keys(full_paths=False) if self._is_tree else self._fields))
        self.entries = int(tree.num_entries)

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        if not names:
            return {}
        with _translated(f"{self.place}, entries {start}-{stop}"):
            if self._is_tree:
                found = self._tree_arrays(set(names), start, stop)
            else:
                found = {
                    n: self._fields[n].array(entry_start=start, entry_stop=stop)
                    for n in names
                    if n in self._fields
                }
        lost = set(names) - set(found)
        if lost:
            raise BadQuery(
                f"{self.place}: the branch {min(lost)!r} has a type that cannot be read as a column"
            )
        if any(len(a) != stop - start for a in found.values()):
            raise CorruptFile(f"{self.place}: a branch has another number of entries than the tree")
        return {n: found[n] if keep is None else found[n][keep - start] for n in names}

    def _tree_arrays(self, wanted: set[str], start: int, stop: int) -> Columns:
        taken: set[str] = set()

        def pick(branch: Any) -> bool:
            first = branch.name in wanted and branch.name not in taken
            if first:
                taken.add(branch.name)
            return first

        picked = {k: b for k, b in self._tree.iteritems(recursive=True) if pick(b)}
        chosen = {b.cache_key for b in picked.values()}
        arrays = self._tree.arrays(
            filter_branch=lambda b: b.cache_key in chosen, entry_start=start, entry_stop=stop, how=dict
        )
        # Of split branches uproot's keys differ between the two calls, but not in their last part.
        return {(picked[k].name if k in picked else str(k).rpartition("/")[2]): a for k, a in arrays.items()}

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        size = self.sizes(names)[1] / max(self.entries, 1)
        for start, stop in cuts(self.entries, int(step / max(size, 1e-9)), self._borders()):
            yield Window(self, start, stop, groups)

    @property
    def readable(self) -> tuple[str, ...]:
        """The columns that can be read; of split branches the parts."""
        if not self._is_tree:
            return self.names
        branches = {b.name: b for b in reversed(list(self._tree.itervalues(recursive=True)))}
        return tuple(n for n in self.names if _is_readable(branches[n]))

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        wanted = set(names)
        if self._is_tree:
            chosen = [b for b in self._tree.itervalues(recursive=True) if b.name in wanted]
            return sum(b.compressed_bytes for b in chosen), sum(b.uncompressed_bytes for b in chosen)
        # An ntuple's page sizes are not summed by uproot: four values of four bytes are what a field has.
        return 0, 20 * self.entries * len(names)

    def _borders(self) -> Index | None:
        if self._is_tree:
            return None
        return np.array([int(c.num_first_entry) for c in self._tree.cluster_summaries], np.int64)


def _is_readable(branch: Any) -> bool:
    try:
        branch.interpretation.awkward_form(branch.file)
    except BROKEN:
        return False
    return not branch.branches


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """What uproot raises on damaged bytes, as ours."""
    try:
        yield
    except (DomaError, Odd):
        raise
    except RecursionError as e:
        raise CorruptFile(f"{place}: not readable as ROOT: it is nested without end") from e
    except BROKEN as e:
        cause: BaseException | None = e
        while cause is not None:
            if isinstance(cause, DomaError):
                raise cause from e
            cause = cause.__cause__
        text = " ".join(str(e).split())[:300] or type(e).__name__
        raise CorruptFile(f"{place}: not readable as ROOT: {text}") from e


class _RootBytes(UprootSource):  # type: ignore[misc]
    """Our bytes as uproot wants them."""

    fetcher: Fetcher

    def __init__(self, file_path: str, **options: Any) -> None:
        super().__init__()
        self._file_path, self._num_bytes = file_path, self.fetcher.data.size
        self._closed = False

    def chunk(self, start: int, stop: int) -> Any:
        # uproot asks for a generous first chunk, also of a small file.
        stop = min(stop, self.fetcher.data.size)
        return Chunk(self, start, stop, TrivialFuture(self.fetcher.data.read(start, stop)))

    def chunks(self, ranges: list[tuple[int, int]], notifications: "queue.Queue[Any]") -> list[Any]:
        made = []
        for (start, stop), part in zip(ranges, self.fetcher.read(ranges), strict=True):
            chunk = Chunk(self, start, stop, TrivialFuture(part))
            made.append(chunk)
            notifications.put(chunk)
        return made

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> "_RootBytes":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self.fetcher.close()
