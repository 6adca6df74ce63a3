"""Baskets of plain branches decoded: unpacked, checked, put together as one array.

Source: ROOT's TKey and TBasket headers; the blocks of ``core/zip``.
"""

import lzma
import struct
from collections.abc import Sequence
from typing import Any

import awkward as ak
import cramjam
import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from doma.columns.cursor import Odd
from doma.columns.ttree import Branch
from doma.core.errors import CorruptFile, LimitExceeded

MOST = 256 << 20
"""Bytes of one basket."""
_KEY, _BASKET = struct.Struct(">ihiIhh"), struct.Struct(">Hiiii")
_Z_ERROR: Any = zlib_ng.error  # its stub takes the class for an instance
Part = bytes | memoryview
Ints = npt.NDArray[np.int64]


def decoded(branch: Branch, first: int, parts: Sequence[Part | None], start: int, stop: int) -> ak.Array:
    """Entries ``[start, stop)`` of a branch.

    Args:
        branch: The branch.
        first: Number of the first basket among the parts.
        parts: Baskets as stored, without a gap; None for one whose values do not matter.
        start: First entry.
        stop: Behind the last.

    Raises:
        CorruptFile: without a place; the caller knows it. LimitExceeded: a basket without bound.
        Odd: a form for uproot.
    """
    borders = branch.entries[first : first + len(parts) + 1]
    cuts = np.clip(borders, start, stop) - borders[0]
    rows = np.diff(borders)
    spans = [(int(cuts[i] - s), int(cuts[i + 1] - s)) for i, s in enumerate((borders - borders[0])[:-1])]
    if not branch.jagged:
        return _flat(branch, parts, rows, spans, stop - start)
    return _jagged(branch, parts, rows, spans, stop - start)


def _flat(
    branch: Branch, parts: Sequence[Part | None], rows: Ints, spans: list[tuple[int, int]], size: int
) -> ak.Array:
    out = np.zeros(size, branch.kind.newbyteorder("="))
    at = 0
    for part, count, (low, high) in zip(parts, rows, spans, strict=True):
        if part is not None:
            data, border, _ = _unpacked(part, int(count))
            if border != count * branch.kind.itemsize:
                raise CorruptFile(f"a basket has {border} bytes for {count} entries")
            out[at : at + high - low] = np.frombuffer(data, branch.kind, count)[low:high]
        at += high - low
    return ak.Array(ak.contents.NumpyArray(out))


def _jagged(
    branch: Branch, parts: Sequence[Part | None], rows: Ints, spans: list[tuple[int, int]], size: int
) -> ak.Array:
    offsets = np.zeros(size + 1, np.int64)
    pieces: list[Any] = []
    at = total = 0
    for part, count, (low, high) in zip(parts, rows, spans, strict=True):
        here = offsets[at + 1 : at + 1 + high - low]
        if part is None:
            here[:] = total
        elif high > low:
            data, border, header = _unpacked(part, int(count))
            places = _places(data, border, header, int(count), 1 if branch.header else branch.kind.itemsize)
            if branch.header:
                data, places = _members(branch, data, places[low : high + 1])
                low, high = 0, high - low
            begin, end = int(places[low]), int(places[high])
            here[:] = places[low + 1 : high + 1]
            here += total - begin
            pieces.append(np.frombuffer(data, branch.kind, end - begin, begin * branch.kind.itemsize))
            total += end - begin
        at += high - low
    content = np.empty(total, branch.kind.newbyteorder("="))
    np.concatenate(pieces, out=content) if pieces else None
    return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), ak.contents.NumpyArray(content)))


def _places(data: Part, border: int, header: int, count: int, width: int) -> npt.NDArray[np.int32]:
    """(count + 1,) first value of each entry of a basket."""
    if len(data) == border and count:
        raise Odd  # the counts are another branch's values
    found = np.empty(count + 1, np.int32)
    found[:count] = np.frombuffer(data, ">i4", count, border + 4)
    found -= header
    found[count] = border
    odd = count and np.bitwise_or.reduce(found) & (width - 1)
    if count and (odd or found[0] != 0 or (found[1:] < found[:-1]).any()):
        raise CorruptFile("the offsets of a basket do not fit its values")
    found >>= width.bit_length() - 1  # widths are powers of two
    return found


def _members(branch: Branch, data: Part, places: npt.NDArray[np.int32]) -> tuple[Part, npt.NDArray[np.int32]]:
    """The members of vectors without what stands before each vector, and the first member of each."""
    begin, end = int(places[0]), int(places[-1])
    sizes = np.diff(places) - branch.header
    if len(sizes) and int(sizes.min()) < 0:
        raise Odd
    raw = np.frombuffer(data, np.uint8, end - begin, begin)
    heads = (places[:-1] - begin)[:, None] + np.arange(branch.header, dtype=np.int32)
    counts = np.ascontiguousarray(raw[heads[:, -4:]]).view(">u4").ravel()
    if (counts.astype(np.int64) * branch.kind.itemsize != sizes).any():
        raise Odd  # vectors of another form
    held = np.ones(end - begin, np.bool_)
    held[heads] = False
    found = np.zeros(len(places), np.int32)
    np.cumsum(counts, out=found[1:])
    return raw[held].data, found


def _unpacked(part: Part, count: int) -> tuple[Part, int, int]:
    """What a basket holds, where its values end, and the size of its header."""
    try:
        size, _, whole, _, header, _ = _KEY.unpack_from(part)
        _, _, _, entries, last = _BASKET.unpack_from(part, header - _BASKET.size - 1)
    except struct.error as e:
        raise CorruptFile("a basket has no header") from e
    border = last - header
    if size != len(part) or entries != count or not 0 <= header <= size or not 0 <= border <= whole:
        raise CorruptFile("the header of a basket contradicts the tree")
    if whole > MOST:
        raise LimitExceeded(f"a basket has {whole} bytes, at most {MOST} fit; rewrite the file")
    body = memoryview(part)[header:]
    return (body if len(body) == whole else unzipped(body, whole)), border, header


def unzipped(body: memoryview, whole: int) -> Part:
    """The blocks of a compressed object, joined."""
    blocks: list[Any] = []
    at = done = 0
    while at < len(body):
        head = bytes(body[at : at + 9])
        if len(head) < 9:
            raise CorruptFile("a basket ends within a block")
        size = int.from_bytes(head[3:6], "little")
        plain = int.from_bytes(head[6:9], "little")
        data = body[at + 9 : at + 9 + size]
        at, done = at + 9 + size, done + plain
        if len(data) != size or done > whole:
            raise CorruptFile("the blocks of a basket do not fit its size")
        block = _block(head[:2], data, plain)
        if len(block) != plain:
            raise CorruptFile("a block of a basket has another size than it says")
        blocks.append(block)
    if done != whole:
        raise CorruptFile(f"a basket unpacks to {done} of {whole} bytes")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _block(method: bytes, data: memoryview, size: int) -> Part:
    try:
        match method:
            case b"ZL":
                inflate = zlib_ng.decompressobj()
                found = inflate.decompress(data, size + 1)
                return found if inflate.eof else b""  # the checksum comes last
            case b"ZS":
                plain = bytearray(size)
                return memoryview(plain)[: cramjam.zstd.decompress_into(data, plain)]
            case b"XZ":
                xz = lzma.LZMADecompressor(memlimit=MOST)
                found = xz.decompress(data, size + 1)
                return found if xz.eof else b""
            case b"L4":
                import xxhash

                if xxhash.xxh64(data[8:]).digest() != data[:8]:
                    raise CorruptFile("the checksum of a block differs")
                plain = bytearray(size)
                return memoryview(plain)[: cramjam.lz4.decompress_block_into(data[8:], plain)]
            case _:
                raise Odd
    except (_Z_ERROR, lzma.LZMAError, cramjam.DecompressionError) as e:
        raise CorruptFile(f"a block cannot be unpacked: {str(e)[:100]}") from e
