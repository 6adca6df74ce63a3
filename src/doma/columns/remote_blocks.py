"""Reading ahead: small reads of a remote file come out of blocks, a few of which are kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from doma.core.errors import CorruptFile

BLOCK = 128 << 10
"""Read-ahead of single small reads."""
BLOCKS = 32
"""Kept of one file."""


class Blocks:
    """The youngest blocks of one version of a file; safe for several threads.

    Args:
        url: For messages.
        size: Of the file.
        fetch: Gives exactly ``[start, stop)``.
    """

    def __init__(self, url: str, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._url, self._size, self._fetch = url, size, fetch
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, start: int, stop: int) -> bytes:
        """Exactly ``[start, stop)``. Raises CorruptFile: that is not all within the file."""
        if not 0 <= start <= stop <= self._size:
            raise CorruptFile(f"{self._url}: bytes {start}-{stop} lie beyond its end ({self._size} bytes)")
        if start == stop:
            return b""
        if stop - start > BLOCK:
            return self._fetch(start, stop)
        first, last = start // BLOCK, (stop - 1) // BLOCK
        data = b"".join(self._block(i) for i in range(first, last + 1))
        return data[start - first * BLOCK : stop - first * BLOCK]

    def keep(self, number: int, data: bytes) -> None:
        """Take over a block that came by itself."""
        with self._lock:
            self._kept[number] = data
            while len(self._kept) > BLOCKS:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget them."""
        with self._lock:
            self._kept.clear()

    def _block(self, number: int) -> bytes:
        with self._lock:
            data = self._kept.get(number)
            if data is not None:
                self._kept.move_to_end(number)
                return data
        data = self._fetch(number * BLOCK, min(self._size, (number + 1) * BLOCK))
        self.keep(number, data)
        return data
