"""ROOT files as columns by uproot: split branches, strings, fixed sizes, and whatever else is not plain."""

import queue
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

import cramjam
import numpy as np
import uproot
import xxhash
from uproot.source.chunk import Chunk
from uproot.source.chunk import Source as UprootSource
from uproot.source.futures import TrivialFuture

from doma.columns.baskets import unzipped
from doma.columns.branches import Branches
from doma.columns.cursor import Odd
from doma.columns.fetch import Fetcher
from doma.columns.source import Columns, Index, Window, cuts
from doma.core.errors import BadQuery, CorruptFile, DomaError, LimitExceeded

BROKEN = (
    ValueError, OSError, LookupError, TypeError, AttributeError, NotImplementedError, AssertionError,
    RuntimeError, StopIteration, ArithmeticError, EOFError, MemoryError, struct.error, zlib.error,
    cramjam.DecompressionError, uproot.deserialization.DeserializationError,
    uproot.interpretation.objects.CannotBeAwkward, uproot.interpretation.identify.UnknownInterpretation,
)  # fmt: skip
"""What uproot raises on damaged bytes: it has no family of its own."""


ROOM = 1 << 30
"""Bytes that uproot may unpack for one reading: entries of branches, or what opening a tree takes."""


def _inflated(
    chunk: Any, cursor: Any, context: Any, packed: int, whole: int, block_info: Any = None
) -> Chunk:
    """What uproot unpacks of our files, by :func:`unzipped`: block by block, none larger than it says."""
    if not isinstance(chunk.source, _RootBytes):
        return _by_uproot(chunk, cursor, context, packed, whole, block_info)
    place = cursor.index
    body = memoryview(cursor.bytes(chunk, packed, context)).cast("B")
    try:
        chunk.source.take(whole)
        return Chunk.wrap(chunk.source, np.frombuffer(unzipped(body, whole), np.uint8))
    except (Odd, CorruptFile, LimitExceeded) as e:
        kind, text = (
            (CorruptFile, "its method is not known here") if isinstance(e, Odd) else (type(e), str(e))
        )
        raise kind(f"{chunk.source.file_path}: packed bytes at {place}: {text}") from e


# uproot's own lets zlib and xz unpack a block to any size before it looks at what the block said, and can be
# given no other; files that are not ours it unpacks as before.
_by_uproot = uproot.compression.decompress
vars(_inflated).update(vars(_by_uproot))  # its hooks
uproot.compression.decompress = _inflated


def uproot_file(fetcher: Fetcher) -> Any:
    """Our bytes as a file of uproot's."""
    handler = type("BoundSource", (_RootBytes,), {"fetcher": fetcher})
    return uproot.open({fetcher.data.url: None}, handler=handler, object_cache=None, array_cache=None)


class RootSource:
    """A TTree or RNTuple by uproot."""

    def __init__(self, place: str, tree: Any) -> None:
        self.place, self._tree = place, tree
        self._branches = Branches(place, tree) if hasattr(tree, "branches") else None
        # Listing the keys of an ntuple of 2,000 fields, and reading by name, takes uproot seconds; its top
        # fields are at hand, and each can be read by itself.
        self._fields: dict[str, Any] = {} if self._branches else {f.name: f for f in tree.fields}
        self.names = self._branches.names if self._branches else tuple(self._fields)
        self.entries = int(tree.num_entries)
        if self.entries < 0:
            raise CorruptFile(f"{place}: it says that it has {self.entries} entries")
        if not self._branches:  # uproot checks no checksums of pages, nor whether they are too large
            tree.file.source.pages = {
                p.locator.offset: (p.has_checksum, (p.num_elements * record.nbits + 7) // 8)
                for cluster in tree.page_link_list
                for column, record in zip(cluster, tree.column_records, strict=False)
                for p in column.pages
            }

    def read(self, names: tuple[str, ...], start: int, stop: int, keep: Index | None = None) -> Columns:
        if not names:
            return {}
        with translated(f"{self.place}, entries {start}-{stop}"):
            self._tree.file.source.left = ROOM
            if self._branches:
                found = self._branches.arrays(names, start, stop)
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

    def path(self, name: str) -> str | None:
        """Where a branch is, whatever it is called; None: there is none."""
        if self._branches:
            return self._branches.path(name)
        return name if name in self._fields else None

    def windows(self, names: tuple[str, ...], step: int, first: tuple[str, ...] = ()) -> Iterator[Window]:
        groups = (first, tuple(n for n in names if n not in first))
        size = self.sizes(names)[1] / max(self.entries, 1)
        for start, stop in cuts(self.entries, int(step / max(size, 1e-9)), self._borders()):
            yield Window(self, start, stop, groups)

    @property
    def readable(self) -> tuple[str, ...]:
        """The columns that can be read; of split branches the parts."""
        if not self._branches:
            return self.names
        return tuple(n for n in self.names if _is_readable(self._branches.find(n)))

    def sizes(self, names: tuple[str, ...]) -> tuple[int, int]:
        if self._branches:
            return self._branches.sizes(names)
        # An ntuple's page sizes are not summed by uproot: four values of four bytes are what a field has.
        return 0, 20 * self.entries * len(names)

    def _borders(self) -> Index | None:
        if self._branches:
            return None
        with translated(self.place):
            return np.array([int(c.num_first_entry) for c in self._tree.cluster_summaries], np.int64)


def _is_readable(branch: Any) -> bool:
    try:
        branch.interpretation.awkward_form(branch.file)
    except BROKEN:
        return False
    return not branch.branches


@contextmanager
def translated(place: str) -> Iterator[None]:
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
        text = ""
        with suppress(*BROKEN):  # to say what is wrong uproot shows things that are broken
            text = " ".join(str(e).split())[:300]
        raise CorruptFile(f"{place}: not readable as ROOT: {text or type(e).__name__}") from e


class _RootBytes(UprootSource):  # type: ignore[misc]
    """Our bytes as uproot wants them."""

    fetcher: Fetcher
    pages: Mapping[int, tuple[bool, int]] = MappingProxyType({})
    """By their first byte whether a checksum follows, and the size of their values."""

    def __init__(self, file_path: str, **options: Any) -> None:
        super().__init__()
        self._file_path, self._num_bytes = file_path, self.fetcher.data.size
        self._closed = False
        self.left = ROOM

    def take(self, size: int) -> None:
        """Count what is to be unpacked; raises LimitExceeded where it gets too much."""
        self.left -= size
        if self.left < 0:
            raise LimitExceeded(
                f"what is read at once would unpack to more than {ROOM} bytes; ask for fewer branches"
            )

    def chunk(self, start: int, stop: int) -> Any:
        # uproot asks for a generous first chunk, also of a small file.
        stop = min(stop, self.fetcher.data.size)
        checked, most = self.pages.get(start, (False, stop - start))
        if stop - start > most:
            raise CorruptFile(f"{self.fetcher.data.url}: the page at byte {start} is larger than its values")
        if not checked:
            return Chunk(self, start, stop, TrivialFuture(self.fetcher.data.read(start, stop)))
        data = self.fetcher.data.read(start, min(stop + 8, self.fetcher.data.size))
        if xxhash.xxh3_64_intdigest(data[:-8]) != int.from_bytes(data[-8:], "little"):
            raise CorruptFile(f"{self.fetcher.data.url}: the checksum of the page at byte {start} differs")
        return Chunk(self, start, stop, TrivialFuture(data[:-8]))

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
