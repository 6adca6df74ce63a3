"""Where the bytes of a root:// answer go. No I/O."""

from typing import Protocol

from doma.core.errors import LimitExceeded, OriginFailed
from doma.net.xroot_pages import PageTarget

SMALL = 64 << 10
"""Bytes of answers that are no files: errors, redirects and the like."""


class Sink(Protocol):
    """Takes the parts of one answer."""

    def begin(self, size: int) -> None:
        """A part comes. Raises OriginFailed if it is more than was asked for."""

    def feed(self, data: memoryview) -> int:
        """Take bytes from the front, valid during the call only; how many were used."""


class Gather:
    """Keeps an answer of unknown length.

    Args:
        most: Bytes.
    """

    __slots__ = ("_most", "data")

    def __init__(self, most: int = SMALL) -> None:
        self._most = most
        self.data = bytearray()

    def begin(self, size: int) -> None:
        if len(self.data) + size > self._most:
            raise LimitExceeded(f"an answer of more than {self._most} bytes; ask for less at once")

    def feed(self, data: memoryview) -> int:
        self.data += data
        return len(data)


class Fill:
    """A buffer that the file's bytes are received into."""

    __slots__ = ("got", "target")

    def __init__(self, target: memoryview) -> None:
        self.target = target
        self.got = 0

    def begin(self, size: int) -> None:
        if size > len(self.target) - self.got:
            raise OriginFailed(f"more than the {len(self.target)} bytes asked for")

    def feed(self, data: memoryview) -> int:
        stop = self.got + len(data)
        self.target[self.got : stop] = data
        self.got = stop
        return len(data)


class Pages:
    """A buffer for pages, which come under heads of their own."""

    __slots__ = ("feed", "pages")

    def __init__(self, pages: PageTarget) -> None:
        self.pages = pages
        self.feed = pages.feed

    def begin(self, size: int) -> None:
        if size:
            raise OriginFailed("plain bytes where pages were asked for")


class Drop:
    """Takes whatever comes for a caller that left."""

    def begin(self, size: int) -> None:
        pass

    def feed(self, data: memoryview) -> int:
        return len(data)
