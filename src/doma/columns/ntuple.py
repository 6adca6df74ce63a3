"""Plain fields of RNTuples straight from their pages: the page lists of asked columns only, pages by range.

*Plain* is a field of one column of numbers, or a list of such. Everything else is left to uproot, which also
reads header and footer; so this module refuses (:class:`Odd`) rather than guesses.

Source: ROOT's "RNTuple Binary Format Specification" 1.0: page list envelope, page locations, columns.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import xxhash

from doma.columns.baskets import MOST, unzipped
from doma.columns.cursor import Odd
from doma.columns.fetch import Fetcher
from doma.core.errors import CorruptFile, LimitExceeded

Ints = npt.NDArray[np.int64]
Part = bytes | memoryview

HEADER, FOOTER, PAGELIST = 1, 2, 3
_ENVELOPES = {HEADER: "header", FOOTER: "footer", PAGELIST: "page list"}
_DEEP = 100
"""Fields within fields; uproot goes through them by recursion."""
_KINDS = {
    0: "?", 3: "i1", 4: "u1", 5: "<i2", 6: "<u2", 7: "<i4", 8: "<u4", 9: "<i8", 10: "<u8",
    12: "<f4", 13: "<f8", 0x18: "<f4", 0x19: "<f8", 0x12: "<u2", 0x14: "<u4", 0x16: "<u8",
    0x11: "<i2", 0x13: "<i4", 0x15: "<i8",
}  # fmt: skip
"""Types of columns of numbers."""
_INDICES = {0x0E: "<u4", 0x0F: "<u8", 0x1A: "<u4", 0x1B: "<u8"}
_ZIGZAG = {0x11, 0x13, 0x15}
_SPLIT = _ZIGZAG | {0x12, 0x14, 0x16, 0x18, 0x19, 0x1A, 0x1B}
"""Bytes of equal weight lie together."""
_DELTA = {0x1A, 0x1B}
_LEAF, _LIST, _PROJECTED = 0, 1, 2
_FRAME, _SUMMARY, _PAGE = struct.Struct("<qI"), struct.Struct("<qQQ"), struct.Struct("<iiQ")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a field."""

    number: int
    type: int
    kind: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A plain field: its values, and where lists end if it has lists."""

    values: Column
    ends: Column | None

    @property
    def columns(self) -> tuple[Column, ...]:
        """All of them."""
        return (self.values,) if self.ends is None else (self.ends, self.values)


@dataclass(frozen=True, slots=True)
class Page:
    """Where values lie in the file."""

    count: int
    start: int
    stop: int
    checked: bool
    """A checksum follows."""


class PlainNtuple:
    """Fields and clusters of an ntuple.

    Args:
        model: uproot's ntuple, of which header and footer are used.
        fetcher: The file.

    Raises:
        Odd: there is more to it. CorruptFile.
    """

    def __init__(self, model: Any, fetcher: Fetcher) -> None:
        self._model, self._fetcher = model, fetcher
        self._columns: dict[int, list[Column | None]] = {}
        self._children: dict[int, list[int]] = {}
        borders = [0]
        self._lists: list[tuple[bytes, list[int]]] = []
        try:
            self._check_frames()
            self._schema()
            for group in model.footer.cluster_group_records:
                self._group(group.page_list_link, borders)
        except struct.error as e:
            raise CorruptFile("its header, footer or page list ends too early") from e
        if borders[-1] >> 56:
            raise CorruptFile(f"it says that it has {borders[-1]} entries")
        self.entries: Ints = np.array(borders, np.int64)
        """(clusters + 1,) First entry of each cluster, and the end."""

    def field(self, number: int) -> Field:
        """A field by its number. Raises Odd: it is not plain."""
        record = self._model.field_records[number]
        inner = self._children.get(number, [])
        if record.struct_role == _LEAF and not inner:
            return Field(self._column(number, _KINDS), None)
        if record.struct_role != _LIST or len(inner) != 1 or self._children.get(inner[0]):
            raise Odd
        if self._model.field_records[inner[0]].struct_role != _LEAF:
            raise Odd
        return Field(self._column(inner[0], _KINDS), self._column(number, _INDICES))

    def pages(self, column: Column, cluster: int) -> list[Page]:
        """The pages of a column in a cluster. Raises Odd: of a form for uproot. CorruptFile."""
        data, places = self._lists[cluster]
        if column.number >= len(places):
            raise Odd
        at = places[column.number]
        size, count = _FRAME.unpack_from(data, at)
        if size >= 0 or count * _PAGE.size + 20 > -size:
            raise Odd
        found = []
        for i in range(count):
            values, length, start = _PAGE.unpack_from(data, at + _FRAME.size + i * _PAGE.size)
            if length < 0:
                raise Odd
            if start + length + 8 * (values < 0) > self._fetcher.data.size:
                raise CorruptFile(f"a page lies at byte {start}, behind the end of the file")
            if length > _stored(column, abs(values)):
                raise CorruptFile("a page is larger than its values")
            found.append(Page(abs(values), start, start + length, values < 0))
        total = sum(p.count for p in found)
        if total * column.kind.itemsize > MOST:
            raise LimitExceeded(f"a column of a cluster has {total} values, too many; rewrite the file")
        (first,) = struct.unpack_from("<q", data, at + _FRAME.size + count * _PAGE.size)
        if first < 0:
            raise Odd
        return found

    def _column(self, field: int, kinds: dict[int, str]) -> Column:
        record = self._model.field_records[field]
        if record.flags == _PROJECTED and record.source_field_id is not None:
            field = record.source_field_id
            record = self._model.field_records[field]
        found = self._columns.get(field, [])
        if record.flags or len(found) != 1 or found[0] is None or found[0].type not in kinds:
            raise Odd
        return found[0]

    def _check_frames(self) -> None:
        """See that header and footer are whole: uproot goes through them as long as they say."""
        for kind, name in ((HEADER, "Header"), (FOOTER, "Footer")):
            start, size, whole = (self._model.member(f + name) for f in ("fSeek", "fNBytes", "fLen"))
            data = self._envelope(kind, start, size, whole)
            at = 16 if kind == HEADER else 32  # the footer has a checksum and a record frame first
            for _ in range(3 if kind == HEADER else 0):
                at += 4 + int(struct.unpack_from("<I", data, at)[0])
            for _ in range(4 if kind == HEADER else 6):
                if at < len(data) - 8:
                    _, at = _frames(data, at)

    def _schema(self) -> None:
        """Columns by field, and fields by parent."""
        for c in self._model.column_records:
            kind = np.dtype(_KINDS.get(c.type) or _INDICES.get(c.type) or "V0")
            if kind.itemsize and c.nbits != (1 if kind == np.bool_ else 8 * kind.itemsize):
                raise CorruptFile(f"its column {c.idx} of type {c.type:#x} has values of {c.nbits} bits")
            plain = kind.itemsize and not c.repr_idx and not c.first_element_index
            self._columns.setdefault(c.field_id, []).append(Column(c.idx, c.type, kind) if plain else None)
        parents = [f.parent_field_id for f in self._model.field_records]
        for i, f in enumerate(self._model.field_records):
            if parents[i] != i:
                self._children.setdefault(parents[i], []).append(i)
            above = i
            for _ in range(_DEEP):
                if max(parents[above], f.source_field_id or 0) >= len(parents):
                    raise CorruptFile(f"its field {i} refers to a field that it does not have")
                if parents[above] == above:
                    break
                above = parents[above]
            else:
                raise CorruptFile(f"its field {i} lies in itself, or within more than {_DEEP} others")

    def _envelope(self, kind: int, start: int, size: int, whole: int) -> bytes:
        """A part of the description, unpacked and checked."""
        name = _ENVELOPES[kind]
        if whole > MOST:
            raise LimitExceeded(f"its {name} has {whole} bytes, at most {MOST} are read")
        if not 0 < size <= whole or start + size > self._fetcher.data.size:
            raise CorruptFile(f"its {name} of {size} bytes at byte {start} is not in the file")
        (part,) = self._fetcher.read([(start, start + size)])
        data = bytes(part if size == whole else unzipped(part, whole))
        (head,) = struct.unpack_from("<Q", data, 0)
        if head & 0xFFFF != kind or head >> 16 != len(data):
            raise CorruptFile(f"its {name} has another size than it says")
        if xxhash.xxh3_64_intdigest(data[:-8]) != int.from_bytes(data[-8:], "little"):
            raise CorruptFile(f"the checksum of its {name} differs")
        return data

    def _group(self, link: Any, borders: list[int]) -> None:
        """The page lists of a group of clusters."""
        data = self._envelope(PAGELIST, link.locator.offset, link.locator.num_bytes, link.env_uncomp_size)
        summaries, at = _frames(data, 16)
        clusters, _ = _frames(data, at)
        if len(clusters) != len(summaries):
            raise CorruptFile("its page list has another number of clusters than it says")
        self._lists += [(data, _frames(data, place)[0]) for place in clusters]
        for place in summaries:
            _, first, count = _SUMMARY.unpack_from(data, place)
            if first != borders[-1] or count >> 56:
                raise Odd
            borders.append(first + count)


def _frames(data: bytes, at: int) -> tuple[list[int], int]:
    """Where the members of a list frame begin, and where the frame ends."""
    size, count = _FRAME.unpack_from(data, at)
    end = at - size
    if size >= 0 or end > len(data) or count > -size:
        raise CorruptFile("a list in its description is damaged")
    at += _FRAME.size
    found = []
    for _ in range(count):
        found.append(at)
        (inner,) = struct.unpack_from("<q", data, at)
        at += abs(inner)
        if abs(inner) < 8 or at > end:
            raise CorruptFile("a list in its description is damaged")
    return found, end


def joined(column: Column, pages: list[Page], parts: Sequence[Part]) -> npt.NDArray[Any]:
    """The values of a column in a cluster. Raises CorruptFile."""
    out = np.empty(sum(p.count for p in pages), column.kind)
    at = 0
    for page, part in zip(pages, parts, strict=True):
        out[at : at + page.count] = _values(column, page, part)
        at += page.count
    return out


def _stored(column: Column, count: int) -> int:
    """Bytes of values before compression."""
    return (count + 7) // 8 if column.kind == np.bool_ else count * column.kind.itemsize


def _values(column: Column, page: Page, part: Part) -> npt.NDArray[Any]:
    whole = _stored(column, page.count)
    stored = memoryview(part)[: page.stop - page.start]
    if page.checked and xxhash.xxh3_64_intdigest(stored) != int.from_bytes(part[-8:], "little"):
        raise CorruptFile("the checksum of a page differs")
    data = stored if len(stored) == whole else unzipped(stored, whole)
    if column.kind == np.bool_:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=page.count, bitorder="little")
        return bits.view(np.bool_)
    found: npt.NDArray[Any] = np.frombuffer(data, column.kind, page.count)
    if column.type in _SPLIT:
        bytes_ = np.frombuffer(data, np.uint8).reshape(column.kind.itemsize, page.count)
        found = np.ascontiguousarray(bytes_.T).view(column.kind).reshape(page.count)
    if column.type in _ZIGZAG:
        found = (found.view(f"<u{column.kind.itemsize}") >> 1).view(column.kind) ^ -(found & 1)
    return np.cumsum(found, dtype=column.kind) if column.type in _DELTA else found


def assembled(
    field: Field, rows: Ints, columns: Callable[[Column, int], npt.NDArray[Any] | None]
) -> ak.Array:
    """The entries of consecutive clusters.

    Args:
        field: What is read.
        rows: (clusters,) Entries of each.
        columns: Gives the values of a column in the i-th of the clusters; None: they do not matter.

    Raises:
        CorruptFile: numbers of values contradict each other.
    """
    total = int(rows.sum())
    pieces: list[npt.NDArray[Any]] = []
    offsets = np.zeros(total + 1, np.int64)
    at = held = 0
    for i, count in enumerate(rows.tolist()):
        values = columns(field.values, i)
        size = count
        if field.ends is not None:
            ends = columns(field.ends, i)
            here = offsets[at + 1 : at + 1 + count]
            if ends is not None:
                if len(ends) != count:
                    raise CorruptFile(f"a cluster has {len(ends)} lists for {count} entries")
                here[:] = ends
                if count and ((here[1:] < here[:-1]).any() or here[0] < 0):
                    raise CorruptFile("the ends of lists are not in order")
            size = int(here[-1]) if count else 0
            here += held
        if values is None:
            values = np.zeros(size, field.values.kind)
        if len(values) != size:
            raise CorruptFile(f"a cluster has {len(values)} values where {size} belong")
        pieces.append(values)
        held, at = held + size, at + count
    data = np.concatenate(pieces) if pieces else np.zeros(0, field.values.kind)
    content = ak.contents.NumpyArray(data)
    if field.ends is None:
        return ak.Array(content)
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), content))
