"""Files of an endpoint as plain seekable file objects, for libraries that read synchronously.

Whoever opens runs in a thread of its own, never on the event loop.
"""

import asyncio
import io
import os
from collections.abc import Callable, Coroutine
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from doma.core.errors import CorruptFile, TimedOut
from doma.store.protocol import CanPeek, Hot, Reader, Stat, Store

T = TypeVar("T")
TIMEOUT = 60.0


class Opener(Protocol):
    """Synchronous access to the files of one endpoint; safe to call from several threads."""

    def stat(self, path: str) -> Stat:
        """Raises NotFound."""

    def list(self, path: str) -> list[Stat]:
        """Children of a directory. Raises NotFound, Conflict for a file."""

    def open(self, path: str) -> tuple[BinaryIO, Stat]:
        """One version of a file. Raises NotFound, Conflict for a directory."""


class StoreOpener:
    """Any store: local files by their descriptor, everything else through the event loop.

    Args:
        store: Where the bytes live.
        loop: The running loop that the store belongs to.
        timeout: Seconds for one call to the store.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, timeout: float = TIMEOUT) -> None:
        self._store = store
        self._loop = loop
        self._timeout = timeout

    def stat(self, path: str) -> Stat:
        return self._wait(self._store.stat(path), path)

    def list(self, path: str) -> list[Stat]:
        async def collect() -> list[Stat]:
            return [child async for child in self._store.list(path)]

        return self._wait(collect(), path)

    def open(self, path: str) -> tuple[BinaryIO, Stat]:
        hot = self._wait(self._peek(path), path)
        if hot is None or not _by_descriptor(hot):
            reader = self._wait(self._store.open(path), path)
            # Opening may have made the file hot.
            hot = self._wait(self._peek(path), path)
            if hot is None or hot.stat.version != reader.stat.version or not _by_descriptor(hot):
                return _through_loop(reader, self._loop), reader.stat
            self._wait(reader.close(), path)
        return cast("BinaryIO", io.BufferedReader(LocalFile(hot), 64 << 10)), hot.stat

    async def _peek(self, path: str) -> Hot | None:
        # On the loop: what a store keeps for its fast path is not made for other threads.
        return self._store.peek(path) if isinstance(self._store, CanPeek) else None

    def _wait(self, work: Coroutine[Any, Any, T], path: str) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._timeout)
        except TimeoutError as e:
            future.cancel()
            raise TimedOut(f"{path}: the store did not answer in {self._timeout:g} s; try again") from e


def _through_loop(reader: Reader, loop: asyncio.AbstractEventLoop) -> BinaryIO:
    from doma.store.filelike import StoreFile

    return cast("BinaryIO", StoreFile(reader, loop))


def _by_descriptor(hot: Hot) -> bool:
    return hot.fileno(0, hot.stat.size) is not None


class LocalFile(io.RawIOBase):
    """A file with a descriptor, read at positions: several readers share it without a common offset."""

    def __init__(self, hot: Hot) -> None:
        self._hot: Hot | None = hot
        self._size = hot.stat.size
        self._name = hot.stat.path
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = min(len(view), self._size - self._at)
        if count <= 0 or self._hot is None:
            return 0
        descriptor = self._hot.fileno(self._at, self._at + count)
        if descriptor is None:
            raise CorruptFile(f"{self._name}: gone while it was read; ask again")
        got = os.preadv(descriptor, [view[:count]], self._at)
        if got <= 0:
            raise CorruptFile(f"{self._name}: shorter than its {self._size} bytes; upload it again")
        self._at += got
        return got

    def close(self) -> None:
        self._hot = None
        super().close()


class Counted(io.RawIOBase):
    """A file that tells how many bytes were read from it, and stops when its query is cancelled."""

    def __init__(self, file: BinaryIO, count: Callable[[int], None]) -> None:
        self._file = file
        self.count = count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.count(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
