"""Reading over root://: read, readv, pgread.

What is hot, checked and allowed is answered inside the receive callback (:data:`AT_ONCE`); everything else
in parts, each read when there is room for it.

Source: §6 and §7 of the project's root:// contract.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, cast

from doma.core.errors import BadRequest
from doma.doors.root_call import Call, Session
from doma.doors.root_file import ReadFile
from doma.net.xroot_errors import BAD_ARGUMENT, IO_ERROR, NO_MEMORY, TOO_LONG, refusal
from doma.net.xroot_frames import (
    ANSWER,
    P_READ,
    P_READV,
    RETRY,
    SEGMENT,
    Code,
    Status,
    segments,
)
from doma.net.xroot_pages import FINAL, PAGE, PARTIAL, framed, page_lead, paged
from doma.store.protocol import Buffer

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

# At once, inside the receive callback. False: the slow side answers, and knows all cases.


def _read_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    began = perf_counter()
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
    connection.door.touch(file, began)
    return True


def _pages_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    began = perf_counter()
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
    connection.door.touch(file, began)
    return True


def _readv_now(
    connection: "RootConnection", session: Session, stream: int, body: bytes, data: memoryview
) -> bool:
    """Of one file, as nearly all are."""
    began = perf_counter()
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
    views = file.views(spans) if total <= MOST_SEGMENT else None
    if views is None:
        return False
    parts: list[Buffer] = [ANSWER.pack(stream, 0, total + len(vector))]
    for at, view in zip(range(0, len(vector), SEGMENT.size), views, strict=True):
        parts += (vector[at : at + SEGMENT.size], view)
    out.write(parts)
    file.opened.segments.extend([length for _, length, _ in asked])
    file.opened.readvs.add(total)
    connection.door.touch(file, began)
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
    began = perf_counter()
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
            while start < stop and not out.closing:
                end = min((start // PAGE) * PAGE + PART, stop)
                await out.room()
                await _part(out, call, file, start, end, last=end == stop, pages=pages)
                start = end
    connection.door.touch(file, began)


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
    began = perf_counter()
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
    async with out.turn:
        at = 0
        while at < len(asked) and not out.closing:
            end, size = at + 1, asked[at][1]
            while end < len(asked) and size + asked[end][1] <= GROUP:
                size += asked[end][1]
                end += 1
            await out.room()
            await _group(out, call, asked[at:end], size, last=end == len(asked))
            at = end
    _count_vector(connection, call.session, asked, began)


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


def _count_vector(
    connection: "RootConnection", session: Session, asked: list[tuple[bytes, int, int]], began: float
) -> None:
    """Count a readv: for each file its elements and their bytes."""
    lengths: dict[bytes, list[int]] = {}
    for handle, length, _ in asked:
        lengths.setdefault(handle, []).append(length)
    for handle, sizes in lengths.items():
        file = session.files.get(handle)
        if isinstance(file, ReadFile):
            file.opened.segments.extend(sizes)
            file.opened.readvs.add(sum(sizes))
            connection.door.touch(file, began)
