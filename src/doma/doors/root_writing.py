"""A file that is written by root://: it lands as a PUT does, but its bytes come only about in their order.

What runs ahead (several streams, a damaged page that comes again) waits in memory, at most :data:`AHEAD`
bytes. Each byte comes once.

Source: §7 of the project's root:// contract; rules W42-W46 of the storage contract.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from doma.auth.model import bearer
from doma.core.errors import (
    ChecksumMismatch,
    DomaError,
    PreconditionFailed,
    TooManyRequests,
    Unsupported,
    WrongSize,
)
from doma.doors.landing import Landing
from doma.doors.root_call import Session, Target
from doma.monitor.opens import Observer, Opened
from doma.net.xroot_errors import BAD_ARGUMENT, EXISTS, refusal
from doma.store.protocol import PIECE, Buffer, Stat

AHEAD = 64 << 20
"""Bytes of one file that may wait for those before them: eight requests of xrdcp."""
MOST_AHEAD = 4096
"""Pieces of them."""
ROOM = 256 << 20
"""Bytes of all files together that may wait so."""
LARGEST = 1 << 62
"""Bytes of a file."""


class _Room:
    """What waits in this process."""

    used = 0


class Writing:
    """A file open for writing.

    Args:
        target: Where it will stand, and who writes.
        landing: Open.
        size: Bytes announced.
        session: Whose it is.
        exclusive: Nothing may stand there.
    """

    def __init__(
        self, target: Target, landing: Landing, size: int | None, session: Session, *, exclusive: bool
    ) -> None:
        self.target = target
        self.opened = Opened(
            session.client(target.identity), target.shown, size or 0, writing=True, since=time.time()
        )
        self._observer: Observer | None = None
        self._landing = landing
        self._size = size
        self._exclusive = exclusive
        self._at = 0
        self._ahead: dict[int, memoryview] = {}
        self._held = 0
        """Their bytes."""
        self._bad: dict[int, int] = {}
        """Offset and length of damaged pages that have not come again."""
        self._turn = asyncio.Lock()
        self._failed: DomaError | None = None

    @property
    def stat(self) -> Stat:
        """What has come of it so far."""
        return Stat(self.target.path, self._at, f"upload-{id(self)}", self.opened.since)

    def begun(self, observer: Observer | None) -> None:
        """Tell that it was opened, and later that it was closed."""
        self._observer = observer
        if observer is not None:
            observer.opened(self.opened)

    async def write(self, offset: int, data: Buffer, bad: list[tuple[int, int]] | None = None) -> None:
        """Take bytes; after a failure nothing is taken any more, and nothing published.

        Args:
            offset: Where they belong.
            data: The caller does not change them any more.
            bad: Offset and length of damaged pages among them, which will come again.

        Raises:
            BadRequest, WrongSize, Unsupported, StorageFull: the upload is over.
            TooManyRequests: too much waits elsewhere; nothing was taken, send it again.
        """
        async with self._in_turn():
            self._must_be_sound()
            if offset > self._at and _Room.used + len(data) > ROOM:
                raise TooManyRequests(
                    f"{self.target.shown}: too many writes come out of order", retry_after=1
                )
            try:
                self._check(offset, len(data))
                await self._take(offset, memoryview(data), bad or [])
            except DomaError as e:
                await self._fail(e)
                raise

    async def settle(self, size: int | None = None) -> None:
        """Wait until all that came is taken; with a size, see that it is so long.

        Raises:
            Unsupported: it is not, and the upload is over.
        """
        async with self._in_turn():
            self._must_be_sound()
            if size is not None and (size != self._at or self._ahead):
                error = Unsupported(
                    f"{self.target.shown}: a file that is written cannot be cut or stretched; write it anew"
                )
                await self._fail(error)
                raise error

    async def close(self) -> None:
        """Verify and publish.

        Raises:
            DomaError: nothing was published, and nothing is left.
        """
        async with self._in_turn():
            try:
                self._must_be_sound()
                self._check_whole()
                await self._landing.commit()
                self.opened.outcome = "complete"
            except PreconditionFailed as e:
                self.opened.outcome = f"error:{e.code}"
                if not self._exclusive:
                    raise
                raise refusal(EXISTS, e.message) from e
            except DomaError as e:
                self.opened.outcome = f"error:{e.code}"
                raise
            finally:
                await self._end()
                self._tell_closed(forced=False)

    async def drop(self) -> None:
        """Leave no trace."""
        async with self._in_turn():
            with suppress(DomaError):
                await self._end()
            self._tell_closed(forced=True)

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        """One act at a time, in the name of whoever opened the file: an origin takes the caller's token."""
        async with self._turn:
            who = self.target.identity
            bearer.set(self.target.token if who is not None and not who.only else None)
            yield

    def _tell_closed(self, *, forced: bool) -> None:
        self.opened.outcome = self.opened.outcome or "partial"
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.closed(self.opened, forced=forced)

    def _must_be_sound(self) -> None:
        if self._failed is not None:
            raise self._failed

    async def _fail(self, error: DomaError) -> None:
        self._failed = error
        await self._end()

    async def _end(self) -> None:
        self._ahead.clear()
        self._keep(-self._held)
        await self._landing.abort("given up")

    def _check(self, offset: int, length: int) -> None:
        shown = self.target.shown
        if not 0 <= offset <= LARGEST - length:
            raise refusal(BAD_ARGUMENT, f"{shown}: {length} bytes at {offset} do not lie in a file")
        if self._size is not None and offset + length > self._size:
            raise WrongSize(
                f"{shown}: bytes up to {offset + length} came, {self._size} were announced;"
                " nothing was published"
            )

    async def _take(self, offset: int, data: memoryview, bad: list[tuple[int, int]]) -> None:
        self.opened.writes.add(len(data))
        at = offset
        for where, length in bad:
            self._bad[where] = length
            self._hold(at, data[at - offset : where - offset])
            at = where + length
        self._hold(at, data[at - offset :])
        while (due := self._ahead.pop(self._at, None)) is not None:
            self._keep(-len(due))
            await self._append(due)
        self._bad = {where: length for where, length in self._bad.items() if where >= self._at}
        waiting = len(self._ahead) + len(self._bad)
        if waiting > MOST_AHEAD or self._held > AHEAD:
            raise Unsupported(
                f"{self.target.shown}: bytes from {self._at} on are missing while later ones come;"
                " write from the first byte to the last"
            )

    def _hold(self, offset: int, data: memoryview) -> None:
        """Keep bytes until it is their turn, which may be at once."""
        if not data:
            return
        if offset < self._at or offset in self._ahead:
            raise Unsupported(
                f"{self.target.shown}: the byte {offset} came before; files are written once, in order:"
                " make it locally, then copy it"
            )
        self._ahead[offset] = data
        self._keep(len(data))

    def _keep(self, more: int) -> None:
        self._held += more
        _Room.used += more

    async def _append(self, data: memoryview) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            if not self._landing.feed(piece):
                await self._landing.write(piece)
            else:
                await asyncio.sleep(0)  # Others want to be served between two pieces.
        self._at += len(data)

    def _check_whole(self) -> None:
        shown = self.target.shown
        if self._bad:
            raise ChecksumMismatch(
                f"{shown}: {len(self._bad)} damaged pages did not come again, the first at {min(self._bad)};"
                " nothing was published"
            )
        if self._ahead:
            raise WrongSize(f"{shown}: bytes from {self._at} on did not come; nothing was published")
