"""Writing a file of a :class:`~doma.store.file.FileStore`: temporary, verified, published in one rename."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

from doma.core.errors import Conflict, Unsupported, WrongSize
from doma.store.oserrors import translated
from doma.store.pace import QUICK, SLOW
from doma.store.protocol import PIECE, Buffer, Stat
from doma.store.quota import Held
from doma.store.scatter import FilePart, join
from doma.store.writing import Tally


class Temporary:
    """The hidden file of one upload. Every call may block; one caller at a time.

    Args:
        folder: Descriptor of the directory that it is in.
        name: Its name there.
        fd: Descriptor to write with, owned from now on.
        path: Where it is to be published.
        held: Bytes that are set aside for it.
    """

    def __init__(self, folder: int, name: str, fd: int, path: str, held: Held) -> None:
        self.folder = folder
        self.name = name
        self.fd = fd
        self.path = path
        self._held = held
        self._lock = threading.Lock()
        self._open = True

    @property
    def replaces(self) -> int:
        """Bytes of the file that stood under the name at the beginning."""
        return self._held.credit

    def append(self, tally: Tally, data: Buffer) -> None:
        """Write all of it at the end, and tally it."""
        with self._lock, translated(self.path):
            if not self._open:
                raise Conflict(f"{self.path}: this upload is over; begin a new one")
            tally.expect(len(data))
            if tally.size is None:
                self._held.cover(tally.written + len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(self.fd, view) :]
            tally.add(data)

    def place(self, data: Buffer, at: int) -> None:
        """Write all of it at an offset."""
        with self._lock, translated(self.path):
            if not self._open:
                raise Conflict(f"{self.path}: this upload is over; begin a new one")
            view = memoryview(data)
            while view:
                count = os.pwrite(self.fd, view, at)
                view, at = view[count:], at + count

    def publish(self, place: Callable[["Temporary"], Stat]) -> Stat:
        """Let ``place`` move it to where it belongs; gone afterwards, also if that failed."""
        with self._lock:
            if not self._open:
                raise Conflict(f"{self.path}: this upload is over; begin a new one")
            try:
                return place(self)
            finally:
                self._end()

    def discard(self) -> None:
        """Leave no trace. Idempotent."""
        with self._lock:
            if self._open:
                self._end()

    def keep(self) -> None:
        """Close it and leave it where it is. Idempotent."""
        with self._lock:
            if self._open:
                self._open = False
                self._held.end()
                os.close(self.fd)

    def _end(self) -> None:
        self._open = False
        self._held.end()
        try:
            # After a rename the name is gone already; after link() it is a second name of the published file.
            with suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self.folder)
        finally:
            os.close(self.fd)


class FileUpload:
    """An :class:`~doma.store.protocol.Upload` that also takes bytes synchronously (``CanFeed``)."""

    def __init__(
        self,
        temporary: Temporary,
        tally: Tally,
        pool: Executor,
        place: Callable[["FileUpload", Temporary], Stat],
        done: Callable[["FileUpload", Stat | None], None],
        if_version: str | None,
        if_absent: bool,
    ) -> None:
        self.tally = tally
        self.if_version = if_version
        self.if_absent = if_absent
        self.named = ""
        """The client's id of it."""
        self.inline = False
        """Its end is quick enough for the event loop."""
        self._temporary = temporary
        self._pool = pool
        self._place = place
        self._done = done
        self._threaded = tally.slow
        self._broken = False
        self._scattered: list[FilePart] = []
        self._over = False

    @property
    def missing(self) -> int:
        """Announced bytes that have not come yet: they are kept free on the disk."""
        here = sum(part.at - part.start for part in self._scattered) or self.tally.written
        return max(0, (self.tally.size or 0) - here)

    def tag(self, upload: str) -> None:
        self.named = upload

    def part(self, start: int, stop: int) -> FilePart:
        if self.tally.written or not self.tally.only_adler:
            raise Unsupported(
                f"{self.tally.path}: only adler32 can be verified of parts; write it in one stream"
            )
        if self.tally.size is None or not 0 <= start <= stop <= self.tally.size:
            raise WrongSize(f"{self.tally.path}: bytes {start} to {stop} do not lie in the announced size")
        self._scattered.append(FilePart(self._temporary, self._pool, start, stop))
        return self._scattered[-1]

    def feed(self, data: memoryview) -> bool:
        if self._threaded or len(data) > PIECE:
            return False
        began = time.perf_counter()
        self._append(data)
        self._threaded = time.perf_counter() - began > SLOW
        return True

    async def write(self, data: Buffer) -> None:
        if not self.feed(memoryview(data)):
            await asyncio.get_running_loop().run_in_executor(self._pool, self._write, data)

    async def commit(self) -> Stat:
        if self.inline and not self._threaded and not self.tally.late:
            stat = None
            try:
                stat = self._commit()
            finally:
                self._finish(stat)
            return stat
        loop = asyncio.get_running_loop()
        # Shielded: a caller that gives up cannot leave a publication half judged.
        work = loop.run_in_executor(self._pool, self._commit)
        try:
            stat = await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(
                lambda w: self._finish(None if w.cancelled() or w.exception() else w.result())
            )
            raise
        except BaseException:  # a cancellation, too: undone, and raised on
            self._finish(None)
            raise
        self._finish(stat)
        return stat

    async def abort(self) -> None:
        if not self._over:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._temporary.discard)
            self._finish(None)

    def _append(self, data: Buffer) -> None:
        try:
            self._temporary.append(self.tally, data)
        except BaseException:  # a cancellation, too: undone, and raised on
            self._broken = True  # Some of it may be in the file: nothing may follow.
            raise

    def _write(self, data: Buffer) -> None:
        began = time.perf_counter()
        self._append(data)
        self._threaded = self.tally.slow or time.perf_counter() - began > QUICK

    def _commit(self) -> Stat:
        if self._broken:
            self._temporary.discard()
            raise Conflict(f"{self.tally.path}: an earlier write of this upload failed; begin a new one")
        try:
            if self._scattered:
                join(self.tally, self._scattered)
        except WrongSize:
            self._temporary.discard()
            raise
        return self._temporary.publish(lambda temporary: self._place(self, temporary))

    def _finish(self, stat: Stat | None) -> None:
        if not self._over:
            self._over = True
            self._done(self, stat)


def move(temporary: Temporary, name: str, folder: int, *, exclusively: bool) -> None:
    """Give a finished temporary its name.

    Args:
        temporary: Written and synced.
        name: The last component.
        folder: Descriptor of its directory.
        exclusively: Fail with ``FileExistsError`` if something is there: ``link`` decides that atomically,
            also against programs that do not know our locks.
    """
    source = temporary.folder
    if exclusively:
        try:
            os.link(temporary.name, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as e:
            if e.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
                raise
        else:
            return
    os.rename(temporary.name, name, src_dir_fd=source, dst_dir_fd=folder)
