"""Writing to a root:// server: a hidden temporary beside the name, a few pieces in flight.

Pages travel behind CRC32C where the server can, and those that arrive damaged are sent again. The temporary
lies in the directory of the name, since a token may cover no other.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from doma.core.errors import Conflict
from doma.store.protocol import Buffer, Stat
from doma.store.writing import Tally
from doma.store.xrootd_file import OpenFile

CHUNK = 1 << 20
"""Bytes of one write request; a multiple of the page."""
IN_FLIGHT = 4
"""Write requests under way: hides the way to the server, bounds memory."""


class XrootdUpload:
    """An :class:`~doma.store.protocol.Upload`.

    Args:
        tally: Counts and judges what passes.
        file: The temporary, open for writing.
        publish: Verifies and publishes it, given our checksums.
        discard: Removes it and the directories made for it.
    """

    def __init__(
        self,
        tally: Tally,
        file: OpenFile,
        publish: Callable[[dict[str, str]], Awaitable[Stat]],
        discard: Callable[[], Awaitable[None]],
    ) -> None:
        self._tally = tally
        self._file = file
        self._publish = publish
        self._discard = discard
        self._buffer = bytearray()
        self._offset = 0
        self._flying: deque[asyncio.Task[None]] = deque()
        self._over = False
        self._broken = False
        self._last: asyncio.Task[Stat] | None = None

    async def write(self, data: Buffer) -> None:
        self._must_be_open()
        self._tally.expect(len(data))
        view = memoryview(data).cast("B")
        if self._tally.slow:
            await asyncio.to_thread(self._tally.add, view)
        else:
            self._tally.add(view)
        try:
            while len(self._buffer) + len(view) >= CHUNK:
                room = CHUNK - len(self._buffer)
                piece = bytes(view[:room]) if not self._buffer else bytes(self._buffer) + view[:room]
                view = view[room:]
                self._buffer.clear()
                await self._send(piece)
        except BaseException:  # a cancellation, too: undone, and raised on
            self._broken = True  # Some of it may be there: nothing may follow.
            raise
        self._buffer += view

    async def commit(self) -> Stat:
        self._must_be_open()
        # Shielded: a caller that gives up cannot leave a publication half judged.
        self._last = asyncio.create_task(self._commit())
        return await asyncio.shield(self._last)

    async def abort(self) -> None:
        if self._last is not None:
            await asyncio.wait([self._last])
        if self._over:
            return
        self._over = True
        for task in self._flying:
            task.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        await self._discard()

    async def _commit(self) -> Stat:
        try:
            sums = self._tally.finish()
            if self._buffer:
                await self._send(bytes(self._buffer))
            while self._flying:
                await self._flying.popleft()
            stat = await self._publish(sums)
        except BaseException:  # a cancellation, too: undone, and raised on
            self._last = None
            await self.abort()
            raise
        self._over = True
        return stat

    async def _send(self, piece: bytes) -> None:
        """Put a piece on its way; raises what became of an earlier one."""
        while len(self._flying) >= IN_FLIGHT:
            await self._flying.popleft()
        self._flying.append(asyncio.create_task(self._file.write(self._offset, piece)))
        self._offset += len(piece)

    def _must_be_open(self) -> None:
        if self._over or self._broken or self._last is not None:
            raise Conflict(f"{self._tally.path}: this upload is over; begin a new one")
