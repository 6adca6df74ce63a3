"""Reading over root://: open, read, readv, pgread, close.

What is hot, checked and allowed is answered inside the receive callback (:data:`AT_ONCE`); everything else
in parts, each read when there is room for it. A file handle is one version of a file: what began on it ends
on it or fails. A token is looked at again at every request.

Source: §6 and §7 of the project's root:// contract; cases F12 and C13 of the cache contract.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from time import time
from typing import TYPE_CHECKING, Any, cast

from doma.auth.model import Verb, bearer
from doma.auth.verifier import Verifier
from doma.cache.freshness import Control, control, patience
from doma.core.errors import BadRequest, Conflict, DomaError, Unauthenticated
from doma.doors import root_stat
from doma.doors.root_call import Call, Session, Target
from doma.monitor.opens import Opened
from doma.net.xroot_errors import (
    BAD_ARGUMENT,
    IO_ERROR,
    IS_DIRECTORY,
    NO_MEMORY,
    TOO_LONG,
    refusal,
)
from doma.net.xroot_frames import (
    ANSWER,
    P_HANDLE,
    P_OPEN,
    P_READ,
    P_READV,
    RETRY,
    SEGMENT,
    Code,
    Open,
    Status,
    segments,
)
from doma.net.xroot_pages import FINAL, PAGE, PARTIAL, framed, page_lead, paged
from doma.store.protocol import PIECE, Buffer, CanPeek, Reader

if TYPE_CHECKING:
    from doma.doors.root_connection import RootConnection

PART = 1 << 20
"""Bytes of a file in one part of a long answer."""
MOST_SEGMENT = 2097136
"""Bytes of one element of a readv (``readv_ior_max``)."""
MOST_SEGMENTS = 1024
MOST_ASKED = MOST_SEGMENTS * SEGMENT.size
MOST_VECTOR = 2 << 30
GROUP = 2 << 20
"""Bytes of a readv that are answered in one part, unless one element has more."""
PATIENCE = 50.0
"""Seconds that an origin may take: clients give up a stream on which nothing came for 60."""
WRITING = Open.DELETE | Open.NEW | Open.UPDATE | Open.APPEND | Open.WRITE_ONLY


class ReadFile:
    """One version of one file, open for reading."""

    __slots__ = ("_verifier", "epoch", "expires", "hot", "observer", "opened", "pages", "reader", "size",
                 "stat", "stored", "target", "told", "view")  # fmt: skip

    def __init__(self, target: Target, reader: Reader, session: Session, verifier: Verifier) -> None:
        self.target, self.reader, self.stat = target, reader, reader.stat
        self.size = reader.stat.size
        self.observer = session.observer
        self._verifier = verifier
        self.expires = target.identity.expires if target.identity is not None else inf
        self.epoch = verifier.epoch
        self.opened = Opened(
            session.client(target.identity), target.shown, self.size, writing=False, since=time(),
            cached=getattr(reader, "cached", None),
        )  # fmt: skip
        self.told = (0, 0)
        """Reads and bytes that the door has been told of."""
        self.stored: Callable[[int, int, Buffer], Buffer] | None = getattr(reader, "interleaved", None)
        """Gives bytes that were read with their stored checksums."""
        self.hot: Any = None
        self.view: Callable[[int, int], memoryview | None] = _nothing
        self.pages: Callable[[int, int], memoryview | None] = _nothing
        self.warm()

    def warm(self) -> None:
        """Look whether the store has this version at hand."""
        store = self.target.endpoint.store
        hot = store.peek(self.target.path) if isinstance(store, CanPeek) else None
        if hot is not None and hot.stat.version == self.stat.version:
            self.hot, self.view = hot, hot.view
            self.pages = getattr(hot, "interleaved", _nothing)
            if hasattr(hot, "cached"):
                hot.cached = self.opened.cached

    def views(self, spans: list[tuple[int, int]]) -> list[memoryview] | None:
        """Several ranges, if all are at hand."""
        many = getattr(self.hot, "views", None)
        if many is not None:
            return cast("list[memoryview] | None", many(spans))
        found: list[memoryview] = []
        for start, stop in spans:
            view = self.view(start, stop)
            if view is None:
                return None
            found.append(view)
        return found

    def good(self) -> bool:
        """Whether the token with which it was opened still counts, as far as can be said at once."""
        return time() < self.expires and self.epoch == self._verifier.epoch

    async def permit(self) -> None:
        """Raise Unauthenticated or InvalidToken if it no longer counts."""
        identity = self.target.identity
        if time() >= self.expires:
            raise Unauthenticated(
                f"{self.target.shown}: the token of {identity} has expired; open the file with a new one"
            )
        if self.epoch != self._verifier.epoch and identity is not None:
            await self._verifier.verify(self.target.token, macaroons=True)
        self.epoch = self._verifier.epoch
        bearer.set(self.target.token if identity is not None and not identity.only else None)

    async def read(self, start: int, stop: int) -> Buffer:
        """The bytes ``[start, stop)``, which the file has."""
        if stop - start <= PIECE:
            view = self.view(start, stop)
            return await self.reader.read(start, stop) if view is None else view
        whole = bytearray(stop - start)
        for at in range(start, stop, PIECE):
            end = min(at + PIECE, stop)
            whole[at - start : end - start] = await self.read(at, end)
        return whole

    async def read_pages(self, start: int, stop: int) -> list[Buffer]:
        """The same, at most :data:`PART` of them, each page behind its checksum: the stored one, if any."""
        ready = self.pages(start, stop)
        if ready is not None:
            return [ready]
        data = await self.read(start, stop)
        return paged(start, data) if self.stored is None else [self.stored(start, stop, data)]

    def doubt(self, start: int, stop: int) -> None:
        """The client got damaged pages: compare them with their checksums again before they are sent."""
        doubt = getattr(self.reader, "doubt", None)
        if doubt is not None:
            doubt(start, stop)

    def first(self) -> None:
        """Note when the first bytes went out."""
        if not self.opened.first_byte:
            self.opened.first_byte = max(1e-6, time() - self.opened.since)

    async def close(self) -> None:
        await self._end(forced=False)

    async def drop(self) -> None:
        with suppress(DomaError):
            await self._end(forced=True)

    async def _end(self, *, forced: bool) -> None:
        opened = self.opened
        if not opened.outcome:
            whole = opened.reads.total + opened.readvs.total >= self.size
            opened.outcome = "complete" if whole else "partial"
        self.hot, self.view, self.pages = None, _nothing, _nothing
        if self.observer is not None:
            self.observer.closed(opened, forced=forced)
        await self.reader.close()


def _nothing(start: int, stop: int) -> memoryview | None:
    return None


# Open and close.


async def open_file(call: Call) -> bytes:
    """Answer an open: for writing in :mod:`doma.doors.root_write`."""
    _, asked, _ = P_OPEN.unpack(call.body)
    options = Open(asked)
    if options & WRITING:
        from doma.doors import root_write

        return await root_write.open(call)
    target = await call.target()
    target.endpoint.gate.decide(target.identity, Verb.READ, target.path)
    patience.set(PATIENCE)
    if options & Open.REFRESH:
        control.set(Control.REFRESH)
    try:
        reader = await target.endpoint.store.open(target.path)
    except Conflict as e:
        if (await target.endpoint.store.stat(target.path)).is_dir:
            raise refusal(IS_DIRECTORY, f"{target.path}: is a directory; list it instead") from e
        raise
    control.set(Control.NORMAL)
    file = ReadFile(target, reader, call.session, call.site.verifier)
    try:
        handle = call.session.put(file)
    except DomaError:
        await reader.close()
        raise
    if call.session.observer is not None:
        call.session.observer.opened(file.opened)
    if not options & Open.RETSTAT:
        return handle
    return handle + bytes(8) + (await root_stat.line_of(target, reader.stat)).encode() + b"\0"


async def close_file(call: Call) -> bytes:
    """Answer a close; the handle is gone even if it fails."""
    (handle,) = P_HANDLE.unpack(call.body)
    file = call.file(handle)
    del call.session.files[handle]
    await file.close()
    return b""


# At once, inside the receive callback. False: the slow side answers, and knows all cases.


def _read_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    handle, start, length = P_READ.unpack(body)
    file = session.files.get(handle)
    if type(file) is not ReadFile or not file.good() or start < 0:
        return False
    out = connection if not data or not data[0] else session.streams.get(data[0])
    stop = start + length
    if stop > file.size:
        stop = file.size
    if out is None or out.blocked or start >= stop:
        return False
    view = file.view(start, stop)
    if view is None:
        return False
    out.write((ANSWER.pack(stream, 0, stop - start), view))
    file.opened.reads.add(stop - start)
    connection.door.touch(file)
    return True


def _pages_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    handle, start, length = P_READ.unpack(body)
    file = session.files.get(handle)
    if type(file) is not ReadFile or not file.good() or start < 0 or length > PART:
        return False
    if len(data) > 1 and data[1] & RETRY:
        return False
    out = connection if not data or not data[0] else session.streams.get(data[0])
    stop = min(start + length, file.size)
    if out is None or out.blocked or start >= stop:
        return False
    pages = file.pages(start, stop)
    if pages is not None:
        parts: list[Buffer] = [pages]
    else:
        view = file.view(start, stop) if file.stored is None else None
        if view is None:
            return False
        parts = paged(start, view)
    out.write((page_lead(stream, Code.PGREAD, FINAL, start, framed(start, stop - start)), *parts))
    file.opened.reads.add(stop - start)
    connection.door.touch(file)
    return True


def _readv_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    """Of one file, as nearly all are."""
    out = connection if not body[15] else session.streams.get(body[15])
    if out is None or out.blocked or len(data) % SEGMENT.size or not 0 < len(data) <= MOST_ASKED:
        return False
    vector = bytes(data)
    asked = list(SEGMENT.iter_unpack(vector))
    handle = asked[0][0]
    file = session.files.get(handle)
    if type(file) is not ReadFile or not file.good():
        return False
    size, spans, total = file.size, [], 0
    for other, length, start in asked:
        if other != handle or start < 0 or length <= 0 or start + length > size:
            return False
        spans.append((start, start + length))
        total += length
    views = file.views(spans) if total <= GROUP else None
    if views is None:
        return False
    parts: list[Buffer] = [ANSWER.pack(stream, 0, total + len(vector))]
    for at, view in zip(range(0, len(vector), SEGMENT.size), views, strict=True):
        parts += (vector[at : at + SEGMENT.size], view)
    out.write(parts)
    file.opened.segments.extend([length for _, length, _ in asked])
    file.opened.readvs.add(total)
    connection.door.touch(file)
    return True


AT_ONCE: dict[int, Callable[["RootConnection", Session, int, bytes, memoryview], bool]] = {
    Code.READ: _read_now,
    Code.PGREAD: _pages_now,
    Code.READV: _readv_now,
}


# In parts.


async def _read(connection: "RootConnection", call: Call) -> None:
    await _in_parts(connection, call, pages=False)


async def _pgread(connection: "RootConnection", call: Call) -> None:
    await _in_parts(connection, call, pages=True)


async def _in_parts(connection: "RootConnection", call: Call, *, pages: bool) -> None:
    handle, start, length = P_READ.unpack(call.body)
    file = _readable(call, handle)
    await file.permit()
    out = _stream(connection, call.session, call.data[0] if len(call.data) else 0)
    if start < 0 or length < 0 or (pages and not length):
        raise BadRequest(f"{file.target.path}: read of {length} bytes at {start}; send numbers above 0")
    stop = min(start + length, file.size)
    if start >= stop:
        out.write([_head(call, start, start, last=True, pages=pages)])
        return
    file.opened.reads.add(stop - start)
    if pages and len(call.data) > 1 and call.data[1] & RETRY:
        file.doubt(start, stop)
    if stop - start <= PART:
        await _part(out, call, file, start, stop, last=True, pages=pages)
    else:
        async with out.turn:
            while start < stop:
                end = min((start // PAGE) * PAGE + PART, stop)
                await out.room()
                await _part(out, call, file, start, end, last=end == stop, pages=pages)
                start = end
    connection.door.touch(file)


async def _part(
    out: "RootConnection", call: Call, file: ReadFile, start: int, stop: int, *, last: bool, pages: bool
) -> None:
    size = stop - start
    await out.window.take(size)
    try:
        parts = await file.read_pages(start, stop) if pages else [await file.read(start, stop)]
        await out.room()
        out.write([_head(call, start, stop, last=last, pages=pages), *parts])
    finally:
        out.window.give(size)


def _head(call: Call, start: int, stop: int, *, last: bool, pages: bool) -> bytes:
    if pages:
        kind = FINAL if last else PARTIAL
        return page_lead(call.stream, Code.PGREAD, kind, start, framed(start, stop - start))
    return ANSWER.pack(call.stream, Status.OK if last else Status.OKSOFAR, stop - start)


async def _readv(connection: "RootConnection", call: Call) -> None:
    (path_id,) = P_READV.unpack(call.body)
    out = _stream(connection, call.session, path_id)
    if len(call.data) > MOST_ASKED:
        raise refusal(TOO_LONG, f"readv: at most {MOST_SEGMENTS} elements are taken; send several requests")
    asked = segments(bytes(call.data), MOST_SEGMENTS)
    if sum(length for _, length, _ in asked) + len(call.data) > MOST_VECTOR:
        raise refusal(NO_MEMORY, f"readv: more than {MOST_VECTOR} bytes; send several requests")
    for handle, length, start in asked:
        file = _readable(call, handle)
        if length > MOST_SEGMENT:
            raise refusal(
                NO_MEMORY, f"{file.target.path}: Single readv transfer is too large; at most {MOST_SEGMENT}"
            )
        if start + length > file.size:
            raise refusal(IO_ERROR, f"{file.target.path}: readv past EOF, which is at {file.size}")
    for handle in {handle for handle, _, _ in asked}:
        await _readable(call, handle).permit()
    _count_vector(connection, call.session, asked)
    async with out.turn:
        at = 0
        while at < len(asked):
            end, size = at + 1, asked[at][1]
            while end < len(asked) and size + asked[end][1] <= GROUP:
                size += asked[end][1]
                end += 1
            await out.room()
            await _group(out, call, asked[at:end], size, last=end == len(asked))
            at = end


async def _group(
    out: "RootConnection", call: Call, asked: list[tuple[bytes, int, int]], size: int, *, last: bool
) -> None:
    """Read some elements side by side, so that a store can fetch them together, and send them."""
    await out.window.take(size)
    try:
        reads = [_readable(call, handle).read(start, start + length) for handle, length, start in asked]
        found = await asyncio.gather(*reads)
        status = Status.OK if last else Status.OKSOFAR
        parts: list[Buffer] = [ANSWER.pack(call.stream, status, size + SEGMENT.size * len(asked))]
        for segment, data in zip(asked, found, strict=True):
            parts += (SEGMENT.pack(*segment), data)
        await out.room()
        out.write(parts)
    finally:
        out.window.give(size)


ANSWERS: dict[int, Callable[["RootConnection", Call], Awaitable[None]]] = {
    Code.READ: _read,
    Code.PGREAD: _pgread,
    Code.READV: _readv,
}


def _readable(call: Call, handle: bytes) -> ReadFile:
    file = call.file(handle)
    if not isinstance(file, ReadFile):
        raise refusal(
            BAD_ARGUMENT, f"{file.target.path}: is open for writing; close it, then open it to read"
        )
    return file


def _stream(connection: "RootConnection", session: Session, path_id: int) -> "RootConnection":
    found = session.streams.get(path_id) if path_id else connection
    if found is None:
        raise refusal(BAD_ARGUMENT, f"path id {path_id}: no such stream is bound to this session")
    return cast("RootConnection", found)


def _count_vector(connection: "RootConnection", session: Session, asked: Any) -> None:
    """Count a readv: for each file its elements and their bytes."""
    totals: dict[bytes, int] = {}
    for handle, length, _ in asked:
        cast("ReadFile", session.files[handle]).opened.segments.add(length)
        totals[handle] = totals.get(handle, 0) + length
    for handle, total in totals.items():
        file = cast("ReadFile", session.files[handle])
        file.opened.readvs.add(total)
        connection.door.touch(file)
