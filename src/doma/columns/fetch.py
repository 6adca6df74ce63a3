"""Byte ranges of an input: merged, fetched side by side, some of them before they are needed."""

import io
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from doma.columns.remote import Bytes

GAP = 64 << 10
"""Ranges nearer than this are fetched in one request …"""
PIECE = 8 << 20
"""… of at most this size."""
CONNECTIONS = 4

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Ranges as fewer, larger ones; each lies whole in one of them.

    >>> merged([(0, 10), (20, 30), (1000000, 1000010)])
    [(0, 30), (1000000, 1000010)]
    """
    out: list[Range] = []
    for start, stop in sorted(ranges):
        if out and start - out[-1][1] <= GAP and stop - out[-1][0] <= PIECE:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        elif not (out and stop <= out[-1][1]):
            out.append((start, stop))
    return out


class Fetcher:
    """Reads ranges of one input."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self._local = data.url.startswith("file:")
        self._pool: ThreadPoolExecutor | None = None
        # Of the window that is being read, and of the next.
        self._ahead: list[dict[Range, Future[bytes]]] = []

    def ahead(self, ranges: Iterable[Range]) -> None:
        """Begin to fetch what is asked for soon, and forget what was fetched ahead two calls ago."""
        if not self._local:
            self._ahead = [*self._ahead[-1:], self._begun(merged(ranges))]

    def read(self, ranges: list[Range]) -> list[memoryview]:
        """The bytes of some ranges."""
        ready = {r: f for held in self._ahead for r, f in held.items()}
        lacking = merged(r for r in ranges if _around(r, ready) is None)
        if self._local or (len(lacking) <= 1 and self._pool is None):
            blocks = {r: self.data.read(*r) for r in lacking}
        else:
            begun = self._begun(lacking)
            blocks = {r: f.result() for r, f in begun.items()}
        out = []
        for start, stop in ranges:
            place = _around((start, stop), ready)
            if place is not None:
                block = ready[place].result()
            else:
                place = _around((start, stop), blocks)
                assert place is not None
                block = blocks[place]
            out.append(memoryview(block)[start - place[0] : stop - place[0]])
        return out

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _begun(self, ranges: list[Range]) -> dict[Range, "Future[bytes]"]:
        if ranges and self._pool is None:
            self._pool = ThreadPoolExecutor(CONNECTIONS, "input")
        return {r: self._pool.submit(self.data.read, *r) for r in ranges} if self._pool is not None else {}


def _around(wanted: Range, blocks: Iterable[Range]) -> Range | None:
    return next((b for b in blocks if b[0] <= wanted[0] and wanted[1] <= b[1]), None)


class FileLike(io.RawIOBase):
    """Our bytes as a Python file for pyarrow."""

    def __init__(self, data: Bytes) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._data.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._data.size if size is None or size < 0 else min(self._data.size, self._at + size)
        data = self._data.read(self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data
