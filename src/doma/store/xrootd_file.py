"""One file open at a root:// server, and the reader over it.

Bytes are read as pages behind CRC32C where the server can, and a page that arrives damaged is asked for again
once. With each read goes a question for the state of the open file: one that was rewritten in place
meanwhile ends in an error and never in a mix. A server keeps an open file through a rename or delete, so a
reader goes on with the old content.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from doma.core.errors import CorruptFile, DomaError, OriginFailed, PreconditionFailed, StorageUnavailable
from doma.net.xroot_client import Plea, XrootClient
from doma.net.xroot_frames import (
    P_HANDLE,
    P_OPEN,
    P_PGWRITE,
    P_READ,
    P_STAT,
    P_WRITE,
    RETRY,
    Code,
    Open,
    Status,
)
from doma.net.xroot_pages import PageTarget, corrections, interleaved
from doma.net.xroot_session import Session
from doma.net.xroot_sinks import Fill, Gather, Pages
from doma.net.xroot_text import StatLine, stat_line, with_cgi
from doma.store.protocol import Buffer, Stat
from doma.store.writing import check_span

HANDLE = 4
_STAT_AT = 12
"""Where the stat line begins in the answer to an open."""
ANSWER_TIME = 60.0
WRITE_TIME = 120.0
SYNC_TIME = 300.0
"""Seconds for which nothing may come while a server writes to a disk or a tape buffer."""


def version_of(line: StatLine) -> str:
    """What tells one content from another: device and inode, size, modification time in seconds.

    root:// has no ETag. A replaced file is another inode, so replacements differ; a file rewritten in
    place within one second, to the same size, looks unchanged.
    """
    return f"{line.id & (1 << 64) - 1:x}-{line.size:x}-{line.modified:x}"


class OpenFile:
    """A handle at one server.

    Args:
        client: To ask with.
        path: At the server, for messages.
        session: Where it is open.
        handle: 4 bytes.
        line: What the file was when it was opened.
    """

    def __init__(
        self, client: XrootClient, path: str, session: Session, handle: bytes, line: StatLine
    ) -> None:
        self._client = client
        self._path = path
        self._session = session
        self._handle = handle
        self._closed = False
        self._same = bytearray()
        """The last answer that meant "unchanged"."""
        self.line = line
        session.files += 1

    @property
    def has_pages(self) -> bool:
        """Whether what is written is checked page by page."""
        return self._session.pages

    async def read(self, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes from ``start``.

        Raises:
            PreconditionFailed: the file was changed in place. CorruptFile: a page stays damaged.
        """
        got, bad = await self._read(start, into, 0)
        if got != len(into):
            raise changed(self._path)
        for offset, length in bad:
            page = into[offset - start : offset - start + length]
            got, still = await self._read(offset, page, RETRY)
            if still or got != length:
                raise CorruptFile(
                    f"{self._path}: the page at {offset} comes from {self._session.name} with a wrong"
                    " checksum, twice; ask its operator to look at the disk"
                )

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, page by page under checksums if the server can; pages that arrived damaged go again."""
        again = [(offset, memoryview(data))]
        for flags in (0, RETRY):
            bad: list[tuple[int, memoryview]] = []
            for at, piece in again:
                if not self.has_pages:
                    head = P_WRITE.pack(self._handle, at, 0)
                    await self._ask("write", Code.WRITE, head, bytes(piece), patience=WRITE_TIME)
                    continue
                head = P_PGWRITE.pack(self._handle, at, 0, flags)
                found = await self._ask(
                    "write", Code.PGWRITE, head, interleaved(at, piece), patience=WRITE_TIME
                )
                wrong = corrections(found, at, len(piece))
                bad += [(where, piece[where - at : where - at + size]) for where, size in wrong]
            again = bad
            if not again:
                return
        raise OriginFailed(f"{self._path}: {self._session.name} received pages with wrong checksums, twice")

    async def sync(self) -> None:
        """Make what was written durable."""
        await self._ask("sync", Code.SYNC, P_HANDLE.pack(self._handle), patience=SYNC_TIME)

    async def close(self) -> None:
        """Give it up. Idempotent; a lost connection has closed it already."""
        with suppress(DomaError):
            await self.finish()

    async def finish(self) -> None:
        """Close it as :meth:`close` does, but raise what goes wrong: the last word on what was written."""
        if self._closed:
            return
        self._closed = True
        self._session.files -= 1
        await self._ask("close", Code.CLOSE, P_HANDLE.pack(self._handle), patience=SYNC_TIME)

    async def _read(self, start: int, into: memoryview, flags: int) -> tuple[int, list[tuple[int, int]]]:
        """One read and the state of the file after it: bytes that came, and which pages are damaged."""
        session, what = self._session, f"{self._path}: read"
        connection = session.connection
        head = P_READ.pack(self._handle, start, len(into))
        put_off = 0.0
        while True:
            now = Gather()
            sink: Pages | Fill
            if session.pages:
                sink = Pages(PageTarget(into, start))
                read = connection.start(Code.PGREAD, head, bytes((0, flags)), sink, ANSWER_TIME)
            else:
                sink = Fill(into)
                read = connection.start(Code.READ, head, b"", sink, ANSWER_TIME)
            look = connection.start(Code.STAT, P_STAT.pack(0, self._handle), b"", now, ANSWER_TIME)
            try:
                answer = await connection.finish(read)
                looked = await connection.finish(look)
            finally:
                connection.leave(read)
                connection.leave(look)
            if Status.WAIT not in {answer.status, looked.status}:
                break
            waits = answer if answer.status == Status.WAIT else looked
            put_off = await self._client.pause(what, waits, put_off)
        self._client.judge(what, answer, session)
        self._client.judge(what, looked, session)
        if now.data != self._same:
            if version_of(line_of(bytes(now.data))) != version_of(self.line):
                raise changed(self._path)
            self._same = now.data
        return (sink.pages.got, sink.pages.bad) if isinstance(sink, Pages) else (sink.got, [])

    async def _ask(
        self, what: str, code: int, body: bytes, data: bytes = b"", patience: float = ANSWER_TIME
    ) -> bytes:
        plea = Plea(f"{self._path}: {what}", code, lambda *_: (body, data), patience=patience)
        return await self._client.ask_at(self._session, plea)


async def open_file(
    client: XrootClient, path: str, token: str | None, options: Open, *, mode: int = 0, cgi: str = ""
) -> OpenFile:
    """Open a file at whichever server has it or takes it.

    Args:
        client: To ask with.
        path: At the server.
        token: Of the user.
        options: ``RETSTAT`` is added.
        mode: Of a new file.
        cgi: To stand behind the path.

    Raises:
        NotFound; Conflict for a directory, with servers that tell.
    """
    body = P_OPEN.pack(mode, options | Open.RETSTAT, 0)
    plea = Plea(
        f"{path}: open",
        Code.OPEN,
        lambda _, more: (body, with_cgi(path, cgi, more)),
        repeatable=not options & Open.NEW,
        patience=SYNC_TIME,
    )
    told, session = await client.ask(plea, token)
    if len(told) <= _STAT_AT:
        raise OriginFailed(f"{path}: {session.name} does not say what it opened")
    return OpenFile(client, path, session, told[:HANDLE], line_of(told[_STAT_AT:]))


class XrootdReader:
    """One version of one remote file.

    Args:
        file: Open.
        stat: Of the version.
        again: Opens it anew, after its connection was lost.
    """

    def __init__(self, file: OpenFile, stat: Stat, again: Callable[[], Awaitable[OpenFile]]) -> None:
        self._file = file
        self._stat = stat
        self._again = again
        self._one = asyncio.Lock()

    @property
    def stat(self) -> Stat:
        return self._stat

    async def read(self, start: int, stop: int) -> Buffer:
        check_span(self._stat, start, stop)
        if start == stop:
            return b""
        into = memoryview(bytearray(stop - start))
        file = self._file
        try:
            await file.read(start, into)
        except StorageUnavailable:
            await (await self._opened_again(file)).read(start, into)
        return into

    async def close(self) -> None:
        await self._file.close()

    async def _opened_again(self, lost: OpenFile) -> OpenFile:
        """Another handle on the same version; many readers of one that was lost share it."""
        async with self._one:
            if self._file is lost:
                await lost.close()
                file = await self._again()
                if version_of(file.line) != self._stat.version:
                    await file.close()
                    raise changed(self._stat.path)
                self._file = file
            return self._file


def changed(path: str) -> PreconditionFailed:
    """What a reader raises when its version is gone."""
    return PreconditionFailed(f"{path}: the file changed at its source while it was read; open it again")


def line_of(data: bytes) -> StatLine:
    """The stat line in an answer. Raises OriginFailed."""
    return stat_line(data.partition(b"\0")[0].decode("latin-1"))
