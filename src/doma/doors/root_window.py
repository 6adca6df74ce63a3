"""A bound on what may be held at once, for many who want some of it."""

import asyncio
from collections import deque


class Window:
    """So many bytes may be held at once; who wants more waits, in order."""

    __slots__ = ("_free", "_limit", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes, at most the whole window, may be held."""
        size = min(size, self._limit)
        if not self._waiting and size <= self._free:
            self._free -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            self.give(size if turn.done() and not turn.cancelled() else 0)  # whoever is behind may fit
            raise

    def give(self, size: int) -> None:
        """Say that they are gone."""
        self._free += min(size, self._limit)
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if size > self._free:
                    return
                self._free -= size
                turn.set_result(None)
            self._waiting.popleft()
