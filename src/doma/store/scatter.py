"""Writing one file in parts at once, in any order: several streams of one copy.

Each part has its own adler32; those of all parts, in order, give that of the file.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from doma.core.checksum import combine_adler32, hasher
from doma.core.errors import WrongSize
from doma.store.pace import SLOW
from doma.store.protocol import PIECE, Buffer
from doma.store.writing import Tally

if TYPE_CHECKING:
    from doma.store.upload import Temporary


class FilePart:
    """The bytes ``[start, stop)`` of a file, appended to in order."""

    def __init__(self, temporary: "Temporary", pool: Executor, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.at = start
        """Where the next byte goes."""
        self.adler = hasher("adler32")
        self._temporary = temporary
        self._pool = pool
        self._threaded = False

    def feed(self, data: memoryview) -> bool:
        if self._threaded or len(data) > PIECE:
            return False
        began = time.perf_counter()
        self._place(data)
        self._threaded = time.perf_counter() - began > SLOW
        return True

    async def write(self, data: Buffer) -> None:
        if not self.feed(memoryview(data)):
            await asyncio.get_running_loop().run_in_executor(self._pool, self._place, data)

    def _place(self, data: Buffer) -> None:
        if self.at + len(data) > self.stop:
            raise WrongSize(
                f"{self._temporary.path}: more came than the bytes {self.start} to {self.stop} of this part"
            )
        self._temporary.place(data, self.at)
        self.adler.update(data)
        self.at += len(data)


class _Fixed:
    """A checksum that is known."""

    def __init__(self, value: str) -> None:
        self._value = value

    def update(self, data: Buffer) -> None:
        raise AssertionError("nothing follows")

    def hexdigest(self) -> str:
        return self._value


def join(tally: Tally, parts: Sequence[FilePart]) -> None:
    """Tell the tally what all parts have brought together.

    Raises:
        WrongSize: they do not lie side by side from the first byte to the last, or one is not full.
    """
    value, at = "00000001", 0
    for part in sorted(parts, key=lambda part: (part.start, part.stop)):
        if part.start != at or part.at != part.stop:
            raise WrongSize(f"{tally.path}: bytes are missing after the first {at}; nothing was published")
        value = combine_adler32(value, part.adler.hexdigest(), part.stop - part.start)
        at = part.stop
    tally.written = at
    tally.learn({"adler32": _Fixed(value)})
