"""Pages of the root:// protocol: 4 KiB of a file each, every one behind its CRC32C. No I/O.

Pages are aligned in the file: a range that begins inside a page has a short first page, and its last may be
short too. An answer to pgread or pgwrite has the status 4007, 24 bytes of its own under a CRC, then data.

Source: xrootd's ``XProtocol.hh`` (``ServerResponseBody_Status``, ``…_pgRead``, ``…_pgWrite``,
``…_pgWrCSE``); §7 of the project's root:// contract.
"""

from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

from doma.core.errors import BadRequest, OriginFailed
from doma.net.xroot_frames import ANSWER, Status

PAGE = 4096
CRC = Struct(">I")
UNIT = PAGE + CRC.size
"""A page with its checksum."""
STATUS = Struct(">IHBB4xiq")
"""CRC32C of the rest, stream, request - 3000, kind, bytes that follow, offset in the file."""
FINAL, PARTIAL, PROGRESS = 0, 1, 2
"""Kinds of such an answer."""
_ERRORS = Struct(">Ihh")
_OFFSET = Struct(">q")
MOST_ERRORS = 128
"""Pages that a server may want corrected of one pgwrite."""

Buffer = bytes | bytearray | memoryview


class PageHead(NamedTuple):
    """The 24 bytes of an answer with status 4007."""

    stream: int
    request: int
    kind: int
    length: int
    """Bytes that follow, checksums included."""
    offset: int


def page_lead(stream: int, request: int, kind: int, offset: int, length: int) -> bytes:
    """What goes before ``length`` bytes of interleaved pages."""
    rest = STATUS.pack(0, stream, request - 3000, kind, length, offset)[CRC.size :]
    return ANSWER.pack(stream, Status.STATUS, STATUS.size) + CRC.pack(crc32c(rest)) + rest


def page_answer(stream: int, request: int, kind: int, offset: int, data: bytes = b"") -> bytes:
    """A whole answer, or a part of one: ``data`` as :func:`interleaved` makes it."""
    return page_lead(stream, request, kind, offset, len(data)) + data


def page_head(data: bytes | memoryview, at: int = 0) -> PageHead:
    """Read 24 bytes behind an answer's head.

    Raises:
        OriginFailed: the checksum is wrong, or a number is one that cannot be.
    """
    crc, stream, request, kind, length, offset = STATUS.unpack_from(data, at)
    if crc32c(data[at + CRC.size : at + STATUS.size]) != crc:
        raise OriginFailed("the head of an answer with pages has a wrong checksum")
    if length < 0 or offset < 0 or kind > PROGRESS:
        raise OriginFailed(f"an answer of {length} bytes of pages, kind {kind}, at {offset}")
    return PageHead(stream, request + 3000, kind, length, offset)


def framed(offset: int, size: int) -> int:
    """Bytes on the wire of ``size`` bytes from ``offset``, with their checksums.

    >>> framed(4095, 2), framed(0, 0)
    (10, 0)
    """
    return size + CRC.size * (-(-(offset % PAGE + size) // PAGE) if size else 0)


def interleaved(offset: int, data: Buffer) -> bytes:
    """Each page behind its checksum, as pgread and pgwrite carry them.

    Args:
        offset: Of the first byte in the file.
        data: Its bytes.
    """
    return b"".join(paged(offset, data))


def paged(offset: int, data: Buffer) -> list[Buffer]:
    """The same without a copy: checksum, page, checksum, page …, for a write that gathers."""
    view, pack = memoryview(data), CRC.pack
    parts: list[Buffer] = []
    first = PAGE - offset % PAGE
    for at in (0, *range(first, len(view), PAGE)) if len(view) else ():
        page = view[at : at + PAGE] if at else view[:first]
        parts += (pack(crc32c(page)), page)
    return parts


class PageTarget:
    """Takes interleaved pages apart into a buffer and checks each.

    Args:
        target: As long as what was asked for; a file that ends earlier leaves its rest alone.
        offset: Of its first byte in the file.
    """

    __slots__ = ("_left", "_offset", "_target", "bad", "got")

    def __init__(self, target: memoryview, offset: int) -> None:
        self._target = target
        self._offset = offset
        self._left = 0
        self.got = 0
        """Bytes of the file so far, good and bad."""
        self.bad: list[tuple[int, int]] = []
        """Offset in the file and length of each page that has a wrong checksum."""

    def begin(self, offset: int, length: int) -> None:
        """A part of ``length`` bytes comes, which begins at an offset of the file.

        Raises:
            OriginFailed: it does not continue what came, or is more than was asked for.
        """
        size = self._size(offset, length)
        if offset != self._offset + self.got or size > len(self._target) - self.got:
            raise OriginFailed(f"pages of {length} bytes at {offset}, which were not asked for")
        self._left = length

    def feed(self, data: memoryview) -> int:
        """Take whole pages from the front; how many bytes were used. Less than a page is left alone."""
        at, stop = 0, len(data)
        while self._left:
            where = self._offset + self.got
            unit = min(UNIT - where % PAGE, self._left)
            if at + unit > stop:
                break
            if unit == UNIT and (whole := min(stop - at, self._left) // UNIT) > 1:
                self._run(data, at, whole)
                unit *= whole
            else:
                self._page(where, data[at : at + unit])
            at += unit
            self._left -= unit
        return at

    def _run(self, data: memoryview, at: int, pages: int) -> None:
        """Whole pages in a row: what a long read consists of."""
        target, to, read = self._target, self.got, CRC.unpack_from
        for start in range(at, at + pages * UNIT, UNIT):
            page = data[start + 4 : start + UNIT]
            if crc32c(page) != read(data, start)[0]:
                self._note(self._offset + to, PAGE)
            target[to : to + PAGE] = page
            to += PAGE
        self.got = to

    def _page(self, where: int, unit: memoryview) -> None:
        page = unit[CRC.size :]
        if crc32c(page) != CRC.unpack_from(unit)[0]:
            self._note(where, len(page))
        self._target[self.got : self.got + len(page)] = page
        self.got += len(page)

    def _note(self, offset: int, length: int) -> None:
        self.bad.append((offset, length))

    def _size(self, offset: int, length: int) -> int:
        """Bytes of the file in ``length`` bytes on the wire; each page needs a checksum and a byte."""
        first = UNIT - offset % PAGE
        if length <= first:
            size, rest = length - CRC.size if length else 0, 0
        else:
            whole, rest = divmod(length - first, UNIT)
            size = first - CRC.size + whole * PAGE + max(0, rest - CRC.size)
        if (length and length <= CRC.size) or 0 < rest <= CRC.size:
            raise OriginFailed(f"pages of {length} bytes, whose last has no data")
        return size


def separated(offset: int, data: Buffer) -> tuple[memoryview, list[tuple[int, int]]]:
    """The bytes of interleaved pages, and offset and length of those with a wrong checksum; for a server.

    Args:
        offset: Of the first byte in the file.
        data: The pages; where they can be written to, their bytes are moved together in place.

    Raises:
        BadRequest: the last page has no data.

    >>> found, bad = separated(4090, interleaved(4090, b"0123456789"))
    >>> bytes(found), bad
    (b'0123456789', [])
    """
    source = memoryview(data)
    into = memoryview(bytearray(len(data))) if source.readonly else source
    target = PageTarget(into, offset)
    try:
        target.begin(offset, len(data))
    except OriginFailed as e:
        raise BadRequest(f"pgwrite: {e.message}") from e
    target.feed(source)
    return into[: target.got], target.bad


def corrections(body: bytes, offset: int, size: int) -> list[tuple[int, int]]:
    """Which pages of a pgwrite a server wants again: offset and length of each.

    Args:
        body: What follows the head of its answer; empty: none.
        offset: Of the pgwrite.
        size: Its bytes.

    Raises:
        OriginFailed: the list is damaged or names what was not written.
    """
    if not body:
        return []
    if len(body) < _ERRORS.size or (len(body) - _ERRORS.size) % _OFFSET.size:
        raise OriginFailed(f"a list of bad pages of {len(body)} bytes")
    crc, _, _ = _ERRORS.unpack_from(body)
    if crc32c(body[CRC.size :]) != crc:
        raise OriginFailed("a list of bad pages with a wrong checksum")
    found = []
    for (at,) in _OFFSET.iter_unpack(body[_ERRORS.size :]):
        if not offset <= at < offset + size or (at % PAGE and at != offset):
            raise OriginFailed(f"a list of bad pages names {at}, which was not written")
        found.append((at, min(PAGE - at % PAGE, offset + size - at)))
    return found


def error_list(bad: list[tuple[int, int]]) -> bytes:
    """What :func:`corrections` reads; for a server."""
    if not bad:
        return b""
    rest = _ERRORS.pack(0, bad[0][1], bad[-1][1])[CRC.size :]
    rest += b"".join(_OFFSET.pack(at) for at, _ in bad)
    return CRC.pack(crc32c(rest)) + rest
