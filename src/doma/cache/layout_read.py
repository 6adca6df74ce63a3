"""Reads the layout of a TTree, an RNTuple or a Parquet file out of its metadata, never an entry.

Runs in the helper process (:mod:`doma.cache.layout_child`): a second of work for a wide file, and a hostile
one may do anything to the libraries used here. Reads only what is needed: no tail is guessed.

Source: cache contract §9; RNTuple binary format 1.0, "Page Locations"; Parquet format, "File Format".
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from doma.cache.layout import MOST_COLUMNS, MOST_EXTENTS, Layout, Span, compose
from doma.core.errors import CorruptFile, LimitExceeded

_RNTUPLES = ("ROOT::RNTuple", "ROOT::Experimental::RNTuple")
_TREES = ("TTree", "TNtuple", "TNtupleD")
_MOST_TREES = 100
_LARGE = 0x02
"""Type of a locator with a length of 64 bits."""
_FOOTER = 256 << 20


class Absent(Exception):
    """Bytes that are not here yet; any of ``spans`` helps."""

    def __init__(self, *spans: Span) -> None:
        super().__init__(f"bytes {spans} are not here")
        self.spans = spans


class Metadata(Protocol):
    """A file of which only some bytes can be read."""

    size: int
    used: list[Span]
    """What was read."""

    def file(self) -> BinaryIO:
        """The same as a file object."""

    def take(self, start: int, stop: int) -> bytes:
        """Raises Absent, as reads of the file object do."""


def read_layout(source: Metadata) -> Layout:
    """The layout of a file.

    Raises:
        Absent: more bytes are needed.
        CorruptFile: it has no columns that can be found.
        LimitExceeded: it has too many.
    """
    magic = source.take(0, 4)
    if magic == b"PAR1":
        return _parquet(source)
    if magic == b"root":
        return _root(source)
    raise CorruptFile("neither a ROOT nor a Parquet file; its columns are not known")


class _Extents:
    """Names and extents as they are found."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.parts: list[npt.NDArray[np.int64]] = []
        self._count = 0

    def column(self, tree: str, name: str) -> int:
        if len(self.names) >= MOST_COLUMNS:
            raise LimitExceeded(f"more than {MOST_COLUMNS} columns; nothing is fetched ahead")
        self.names.append((tree, name))
        return len(self.names) - 1

    def add(self, column: int, starts: Any, lengths: Any, clusters: Any) -> None:
        """Extents of one column in the order of clusters; those that touch in one cluster become one."""
        part = np.empty((len(starts), 4), np.int64)
        part[:, 0], part[:, 1], part[:, 2], part[:, 3] = starts, lengths, column, clusters
        first = np.ones(len(part), bool)
        first[1:] = (part[1:, 0] != part[:-1, 0] + part[:-1, 1]) | (part[1:, 3] != part[:-1, 3])
        if len(part):
            joined = part[first]
            joined[:, 1] = np.add.reduceat(part[:, 1], np.flatnonzero(first))
            part = joined
        self._count += len(part)
        if self._count > MOST_EXTENTS:
            raise LimitExceeded(f"more than {MOST_EXTENTS} extents; nothing is fetched ahead")
        self.parts.append(part)

    def layout(self, source: Metadata, waits: list[Span]) -> Layout:
        extents = np.concatenate(self.parts) if self.parts else np.empty((0, 4), np.int64)
        return compose(source.size, self.names, extents, source.used, waits)


def _parquet(source: Metadata) -> Layout:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tail = source.take(max(0, source.size - 8), source.size)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > min(_FOOTER, source.size - 12):
        raise CorruptFile("the Parquet footer is cut or encrypted; its columns are not known")
    footer = source.take(source.size - 8 - length, source.size)
    meta = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
    found = _Extents()
    groups = [meta.row_group(n) for n in range(meta.num_row_groups)]
    for leaf in range(meta.num_columns):
        chunks = [group.column(leaf) for group in groups]
        column = found.column("", chunks[0].path_in_schema if chunks else meta.schema.column(leaf).path)
        found.add(
            column,
            [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in chunks],
            [c.total_compressed_size for c in chunks],
            range(len(chunks)),
        )
    return found.layout(source, [])


def _root(source: Metadata) -> Layout:
    import uproot

    found = _Extents()
    waits: list[Span] = []
    with uproot.open(source.file(), object_cache=None, array_cache=None) as directory:
        kinds = directory.classnames(recursive=True, cycle=False)
        for name, kind in [pair for pair in kinds.items() if pair[1] in _TREES + _RNTUPLES][:_MOST_TREES]:
            try:
                if kind in _TREES:
                    _tree(found, name, directory[name])
                else:
                    _ntuple(found, name, directory[name])
            except Absent as e:
                waits += e.spans
    if not found.parts:
        if waits:
            raise Absent(*waits)
        raise CorruptFile("the file has no tree and no RNTuple with entries; nothing is fetched ahead")
    return found.layout(source, waits)


def _tree(found: _Extents, name: str, tree: Any) -> None:
    """The baskets of a TTree; clusters begin where most branches begin a basket."""
    rows = []
    for path, branch in tree.iteritems(recursive=True, filter_branch=lambda b: b.num_baskets > 0):
        count = int(branch.member("fWriteBasket"))
        seeks, lengths, entries = (
            np.asarray(branch.member(member))[:count].astype(np.int64)
            for member in ("fBasketSeek", "fBasketBytes", "fBasketEntry")
        )
        there = (seeks > 0) & (lengths > 0)
        rows.append((path, seeks[there], lengths[there], entries[there]))
    begins, counts = np.unique(
        np.concatenate([np.empty(0, np.int64), *(row[3] for row in rows)]), return_counts=True
    )
    borders = begins[counts * 2 > len(rows)]
    for path, seeks, lengths, entries in rows:
        clusters = np.maximum(np.searchsorted(borders, entries, "right") - 1, 0)
        if len(borders) < 2:  # every branch goes its own way
            clusters = np.arange(len(entries))
        found.add(found.column(name, path), seeks, lengths, clusters)


def _ntuple(found: _Extents, name: str, ntuple: Any) -> None:
    """The pages of an RNTuple."""
    paths: list[str] = []
    for number, record in enumerate(ntuple.field_records):
        parent = record.parent_field_id
        paths.append(f"{paths[parent]}.{record.field_name}" if parent < number else record.field_name)
    columns = [found.column(name, paths[record.field_id]) for record in ntuple.column_records]
    pages: list[list[tuple[int, int, int]]] = [[] for _ in columns]
    cluster = 0
    for record in ntuple.footer.cluster_group_records:
        link = record.page_list_link
        chunk, _ = ntuple.read_locator(link.locator, link.env_uncomp_size)
        for clusters in _clusters(bytes(chunk.raw_data)):
            for column, links in zip(pages, clusters, strict=False):
                column.extend((start, length, cluster) for start, length in links)
            cluster += 1
    for number, column in zip(columns, pages, strict=True):
        starts, lengths, of = np.array(column, np.int64).reshape(-1, 3).T
        found.add(number, starts, lengths, of)


def _clusters(envelope: bytes) -> Iterator[list[list[Span]]]:
    """Of each cluster, for each column, the pages as (offset, length) of a page list envelope."""
    at = 16  # type and length, checksum of the header
    at += -_signed(envelope, at) if _signed(envelope, at) < 0 else _signed(envelope, at)  # cluster summaries
    count = _items(envelope, at)
    at += 12
    for _ in range(count):
        columns, end = [], at - _signed(envelope, at)
        inner, number = at + 12, _items(envelope, at)
        for _ in range(number):
            columns.append(list(_pages(envelope, inner)))
            inner -= _signed(envelope, inner)
        yield columns
        at = end


def _pages(envelope: bytes, at: int) -> Iterator[Span]:
    count = _items(envelope, at)
    at += 12
    for _ in range(count):
        _, length, offset = struct.unpack_from("<iiQ", envelope, at)
        at += 16
        if length < 0:
            if -length >> 24 != _LARGE:
                raise CorruptFile("an RNTuple page lies outside the file; its columns are not known")
            length, offset = offset, struct.unpack_from("<Q", envelope, at)[0]
            at += 8
        if length < 1 << 62 and offset < 1 << 62:
            yield offset, length


def _signed(envelope: bytes, at: int) -> int:
    """Size of a frame; negative for a list."""
    size: int = struct.unpack_from("<q", envelope, at)[0]
    if not 0 < abs(size) <= len(envelope) - at:
        raise CorruptFile("an RNTuple page list is damaged; its columns are not known")
    return size


def _items(envelope: bytes, at: int) -> int:
    """Number of items of a list frame."""
    count: int = struct.unpack_from("<I", envelope, at + 8)[0]
    if _signed(envelope, at) >= 0 or count > len(envelope):
        raise CorruptFile("an RNTuple page list is damaged; its columns are not known")
    return count
