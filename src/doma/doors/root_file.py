"""A file that is open for reading over root://: one version, who may read it, and what was read.

What began on a version ends on it or fails. A token is looked at again at every request.

Source: §6 of the project's root:// contract; cases F12 and C13 of the cache contract.
"""

from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import time
from typing import Any, cast

from doma.auth.model import Verb, bearer
from doma.auth.verifier import Verifier
from doma.cache.freshness import Control, control, patience
from doma.core.errors import Conflict, DomaError, Unauthenticated
from doma.doors import root_stat, root_write
from doma.doors.root_call import Call, Session, Target
from doma.monitor.opens import Opened
from doma.net.xroot_errors import IS_DIRECTORY, refusal
from doma.net.xroot_frames import P_HANDLE, P_OPEN, Open
from doma.net.xroot_pages import paged
from doma.store.protocol import PIECE, Buffer, CanPeek, Reader

MORE_STAT = 4
"""In the second field of an open's options: the long stat line is wanted."""
PATIENCE = 50.0
"""Seconds that an origin may take: clients give up a stream on which nothing came for 60."""
WRITING = Open.DELETE | Open.NEW | Open.UPDATE | Open.APPEND | Open.WRITE_ONLY


class ReadFile:
    """One version of one file, open for reading."""

    __slots__ = ("_verifier", "epoch", "expires", "hot", "observer", "opened", "pages", "reader",
                 "seconds", "size", "stat", "stored", "target", "told", "view")  # fmt: skip

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
        self.seconds = 0.0
        """Of the reads that the door was not told of yet."""
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
                self.hot.cached, self.hot.single = self.opened.cached, False

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
            if view is not None:
                return view
            try:
                return await self.reader.read(start, stop)
            except DomaError as e:
                self.opened.outcome = f"error:{e.code}"
                raise
        whole = bytearray(stop - start)
        for at in range(start, stop, PIECE):
            end = min(at + PIECE, stop)
            whole[at - start : end - start] = await self.read(at, end)
        return whole

    async def read_pages(self, start: int, stop: int) -> list[Buffer]:
        """The same, each page behind its checksum: the stored one, if any."""
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


async def open_file(call: Call) -> bytes:
    """Answer an open: for writing in :mod:`doma.doors.root_write`."""
    _, asked, more = P_OPEN.unpack(call.body)
    options = Open(asked)
    if options & WRITING:
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
    if not (options & Open.RETSTAT or more & MORE_STAT):
        return handle
    return handle + bytes(8) + (await root_stat.line_of(target, reader.stat)).encode() + b"\0"


async def close_file(call: Call) -> bytes:
    """Answer a close; the handle is gone even if it fails."""
    (handle,) = P_HANDLE.unpack(call.body)
    file = call.file(handle)
    del call.session.files[handle]
    await file.close()
    return b""
