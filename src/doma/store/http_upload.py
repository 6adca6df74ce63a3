"""Writing to an HTTP server: one PUT whose last bytes are held back until the commit.

The server publishes when it has the whole body. So that nothing is visible before :meth:`HttpUpload.commit`,
the last piece (or, with unknown size, the final chunk) is sent only then; an abort closes the connection in
the middle, and a sane server publishes nothing (rule W44 of the storage contract).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from doma.core.errors import Conflict, DomaError
from doma.net.client import Response
from doma.store.protocol import Buffer, Stat
from doma.store.writing import Tally

WAITING = 2
"""Pieces (of 1 MiB) that may wait for a slow server."""

Send = Callable[[AsyncIterator[bytes]], Awaitable[Response]]
Judge = Callable[[Response, dict[str, str]], Awaitable[Stat]]


class HttpUpload:
    """An :class:`~doma.store.protocol.Upload`.

    Args:
        tally: Counts and judges what passes.
        send: Sends the PUT with a body and gives the answer.
        judge: Turns the answer and our checksums into a Stat, or raises.
    """

    def __init__(self, tally: Tally, send: Send, judge: Judge) -> None:
        self._tally = tally
        self._send = send
        self._judge = judge
        self._pieces: deque[bytes] = deque()
        self._held = b""
        self._complete = False
        self._over = False
        self._wanted = asyncio.Event()
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[Stat] | None = None
        self._sums: dict[str, str] = {}

    async def begin(self) -> None:
        """Send the head and wait until the server wants the body. Raises what the server refuses with."""
        self._task = asyncio.create_task(self._put())
        self._task.add_done_callback(lambda _: self._room.set())
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait({self._task, wanted}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.abort()
            raise
        finally:
            wanted.cancel()
        if self._task.done():
            self._over = True
            self._task.result()
            raise Conflict(f"{self._tally.path}: the server answered without the body; nothing was sent")

    async def write(self, data: Buffer) -> None:
        self._must_be_open()
        self._tally.expect(len(data))
        if not data:
            return
        piece = bytes(data)
        if self._tally.slow:
            await asyncio.to_thread(self._tally.add, piece)
        else:
            self._tally.add(piece)
        if self._held:
            await self._push(self._held)
        self._held = piece

    async def commit(self) -> Stat:
        self._must_be_open()
        try:
            self._sums = self._tally.finish()
            if self._task is None:
                await self.begin_empty()
            assert self._task is not None
            if self._held:
                await self._push(self._held)
            self._complete = True
            self._more.set()
            stat = await self._task
        except BaseException:  # a cancellation, too: undone, and raised on
            await self.abort()
            raise
        self._over = True
        return stat

    async def begin_empty(self) -> None:
        """Send an empty file: there is no byte to hold back, so nothing was sent until now."""
        self._task = asyncio.create_task(self._put())

    async def abort(self) -> None:
        if self._over:
            return
        self._over = True
        self._pieces.clear()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, DomaError):
                await self._task

    def _must_be_open(self) -> None:
        if self._over:
            raise Conflict(f"{self._tally.path}: this upload is over; begin a new one")

    async def _push(self, piece: bytes) -> None:
        """Queue a piece, waiting for room; if the server has given up meanwhile, raise why."""
        assert self._task is not None
        while len(self._pieces) >= WAITING and not self._task.done():
            self._room.clear()
            await self._room.wait()
        if self._task.done():
            self._over = True
            self._task.result()
            raise Conflict(f"{self._tally.path}: the server answered before it had the whole body")
        self._pieces.append(piece)
        self._more.set()

    async def _put(self) -> Stat:
        return await self._judge(await self._send(self._body()), self._sums)

    async def _body(self) -> AsyncIterator[bytes]:
        self._wanted.set()
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._room.set()
                yield piece
            if self._complete:
                return
            self._more.clear()
            await self._more.wait()
