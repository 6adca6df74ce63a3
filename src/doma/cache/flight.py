"""One request to an origin that is under way, and the memory that all of them may take."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from doma.cache.extents import PAGE, Run
from doma.cache.lanes import Turn
from doma.store.protocol import Buffer

AHEAD_SHARE = 0.25
"""The part of the memory budget that read-ahead may hold."""
ORIGIN_SHARE = 0.5
"""The part of it that one origin may hold."""


class Budget:
    """Bytes that running fetches may hold in memory.

    One origin gets at most the half and what is read ahead at most a quarter: one that stalls leaves the
    others enough for fetches and for read-ahead (O2).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._ahead = 0
        self._by: Counter[str] = Counter()

    def take(self, origin: str, amount: int, *, ahead: bool = False) -> bool:
        """Reserve bytes if there are so many."""
        if self.used + amount > self.limit or (ahead and self._ahead + amount > self.limit * AHEAD_SHARE):
            return False
        if self._by[origin] and self._by[origin] + amount > self.limit * ORIGIN_SHARE:
            return False
        self.used += amount
        self._by[origin] += amount
        self._ahead += amount * ahead
        return True

    def give(self, origin: str, amount: int, *, ahead: bool = False) -> None:
        """Return bytes."""
        self.used -= amount
        self._ahead -= amount * ahead
        self._by[origin] -= amount
        if not self._by[origin]:
            del self._by[origin]


class Flight:
    """Pages on their way; ``task`` ends when they are on disk."""

    __slots__ = (
        "by", "claims", "come", "data", "give_back", "kept", "landing", "run", "task", "turn", "wanted",
    )  # fmt: skip

    def __init__(self, run: Run, by: str, asked: Iterable[Run], *, urgent: bool) -> None:
        self.run = run
        self.by = by
        self.turn = Turn(by, urgent=urgent)
        self.wanted = 0
        self.kept = False
        """Whether its bytes are on disk, or about to be."""
        self.landing = False
        """The bytes are here and only have to be written: no use in stopping any more."""
        loop = asyncio.get_running_loop()
        self.come: asyncio.Future[Buffer] = loop.create_future()
        """Its bytes as soon as they are here: for a reader that goes on reading."""
        self.data: asyncio.Future[Buffer] = loop.create_future()
        """Its bytes: once they are on disk, or the disk takes longer than the origin took."""
        self.give_back: Callable[[], None] | None = None
        """Returns its memory."""
        self.task: asyncio.Task[None]
        # A page that somebody asked for is claimed as a miss once; all later readers of it had a hit.
        self.claims = bytearray(b"\1" * (run[1] - run[0]))
        for first, last in asked:
            a, b = max(first, run[0]) - run[0], min(last, run[1]) - run[0]
            if a < b:
                self.claims[a:b] = bytes(b - a)

    def view(self, start: int, stop: int, *, soon: bool) -> memoryview | None:
        """The bytes of it in ``[start, stop)`` from ``start`` on, if they have come; not empty.

        Args:
            start: First byte.
            stop: End.
            soon: They need not be on disk yet.
        """
        base = self.run[0] * PAGE
        if not base <= start < self.run[1] * PAGE or not _good(self.come if soon else self.data):
            return None
        return memoryview(self.come.result())[start - base : stop - base]

    def give(self, data: Buffer) -> None:
        """Let those who wait have the bytes. Idempotent."""
        for future in (self.come, self.data):
            if not future.done():
                future.set_result(data)

    def ended(self, task: asyncio.Task[None]) -> None:
        """Tell those who wait for bytes that there will be none."""
        for future in (self.come, self.data):
            if future.done():
                continue
            if task.cancelled():
                future.cancel()
            elif (error := task.exception()) is not None:
                future.set_exception(error)
                future.exception()  # nobody may be left to hear it

    def unasked(self) -> list[Run]:
        """The runs that nobody has asked for yet."""
        out, base, at = [], self.run[0], 0
        while (first := self.claims.find(1, at)) >= 0:
            at = self.claims.find(0, first)
            at = len(self.claims) if at < 0 else at
            out.append((base + first, base + at))
        return out

    def claim(self, run: Run) -> int:
        """How many pages of this run nobody counted yet."""
        a, b = max(run[0], self.run[0]) - self.run[0], min(run[1], self.run[1]) - self.run[0]
        if a >= b:
            return 0
        fresh = self.claims.count(0, a, b)
        self.claims[a:b] = b"\1" * (b - a)
        return fresh


def _good(future: asyncio.Future[Buffer]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
