"""A store's file as an ordinary Python file, for libraries that know nothing of asyncio.

Such a library runs in a worker thread; each read hops onto the event loop and waits there for the store.
``pyarrow.PythonFile(f)``, ``uproot.open(f)`` and ``io.BufferedReader(f)`` take it.
"""

import asyncio
import io
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from doma.core.errors import BadRequest, TimedOut
from doma.store.protocol import PIECE, Buffer, Reader, Store

T = TypeVar("T")

AHEAD = 256 << 10
"""Bytes read at once when somebody reads on from where the last read ended."""
PATIENCE = 300.0
"""Seconds that one piece may take before the thread gives up."""


class StoreFile(io.RawIOBase):
    """A seekable, read-only file over a :class:`~doma.store.protocol.Reader`.

    One thread at a time may use it, any thread but the loop's own. Closing it closes the reader.
    Errors are those of the reader, raised in the thread.

    Args:
        reader: An open file.
        loop: The running loop that the reader belongs to.
        ahead: Read-ahead in bytes; 0 for none.
    """

    def __init__(self, reader: Reader, loop: asyncio.AbstractEventLoop, *, ahead: int = AHEAD) -> None:
        super().__init__()
        self._reader = reader
        self._loop = loop
        self._ahead = min(ahead, PIECE)
        self._lock = threading.Lock()
        self._position = 0
        self._last = 0
        """Where the last read ended: a read from there is sequential."""
        self._start = 0
        self._kept: memoryview = memoryview(b"")
        """Bytes from ``_start`` on that were read ahead."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._reader.stat.size

    @property
    def name(self) -> str:
        """The path in its store."""
        return self._reader.stat.path

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self.name}: cannot seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, up to the end of the file: never short before it."""
        target = memoryview(buffer).cast("B")
        with self._lock:
            if self.closed:
                raise ValueError(f"{self.name}: the file is closed")
            start = self._position
            stop = min(start + len(target), self.size)
            at = start
            while at < stop:
                piece = self._piece(at, stop)
                target[at - start : at - start + len(piece)] = piece
                at += len(piece)
            self._position = self._last = max(at, start)
            return max(0, at - start)

    def close(self) -> None:
        if not self.closed:
            self._kept = memoryview(b"")
            super().close()
            # At the end of a process the loop may be gone; then there is nothing left to close either.
            if self._loop.is_running():
                asyncio.run_coroutine_threadsafe(self._reader.close(), self._loop)

    def _piece(self, at: int, stop: int) -> memoryview:
        """Some bytes from ``at`` on, at least one and not beyond ``stop``."""
        offset = at - self._start
        if 0 <= offset < len(self._kept):
            return self._kept[offset : offset + stop - at]
        end = min(stop, at + PIECE)
        if at == self._last and end - at < self._ahead:
            end = min(at + self._ahead, self.size)
        data = memoryview(self._wait(self._reader.read(at, end))).cast("B")
        if end > stop:
            self._start, self._kept = at, data
        return data[: stop - at]

    def _wait(self, work: Coroutine[Any, Any, Buffer]) -> Buffer:
        try:
            own = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            own = False
        if own:
            work.close()
            raise BadRequest(f"{self.name}: a StoreFile must be read in a thread, not on the event loop")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(PATIENCE)
        except TimeoutError as e:
            future.cancel()
            raise TimedOut(f"{self.name}: nothing came from the store in {PATIENCE:g} s; try again") from e
        except CancelledError as e:
            raise TimedOut(f"{self.name}: the event loop stopped while the file was read") from e


async def open_file(store: Store, path: str, *, ahead: int = AHEAD) -> StoreFile:
    """A file for worker threads; raises what ``store.open`` raises."""
    return StoreFile(await store.open(path), asyncio.get_running_loop(), ahead=ahead)
