"""Who may transfer now and who waits: so many at once for each token issuer and each remote host.

Source: rule W72 of the storage contract.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from doma.core.errors import TooManyRequests

RETRY = 60.0
"""Seconds after which a client that found the queue full may come again."""


class Turns:
    """A queue in which who cannot run does not hold up those behind.

    Args:
        per_issuer, per_host: Transfers at once.
        waiting: Transfers in the queue at most.
    """

    def __init__(self, per_issuer: int, per_host: int, waiting: int) -> None:
        self._most = (per_issuer, per_host)
        self._waiting = waiting
        self._running: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._queue: deque[tuple[tuple[str, str], asyncio.Future[None]]] = deque()

    def check(self, issuer: str, host: str) -> None:
        """Raises TooManyRequests when there is no room to wait either."""
        if len(self._queue) >= self._waiting and not self._free((issuer, host)):
            raise TooManyRequests(
                f"copy with {host}: {len(self._queue)} transfers wait already; come again later",
                retry_after=RETRY,
            )

    def would_wait(self, issuer: str, host: str) -> bool:
        """Whether a transfer would have to queue just now."""
        return not self._free((issuer, host))

    @asynccontextmanager
    async def turn(self, issuer: str, host: str) -> AsyncIterator[None]:
        """Wait for one's turn, and hold it."""
        who = (issuer, host)
        if self._free(who):
            self._add(who, 1)
        else:
            ready = asyncio.get_running_loop().create_future()
            place = (who, ready)
            self._queue.append(place)
            try:
                await ready  # whoever sets it has counted us
            except BaseException:  # a cancellation, too: undone, and raised on
                if ready.done() and not ready.cancelled():
                    self._add(who, -1)
                    self._next()
                else:
                    self._queue.remove(place)
                raise
        try:
            yield
        finally:
            self._add(who, -1)
            self._next()

    def _free(self, who: tuple[str, str]) -> bool:
        return all(
            running[name] < most for running, name, most in zip(self._running, who, self._most, strict=True)
        )

    def _add(self, who: tuple[str, str], number: int) -> None:
        for running, name in zip(self._running, who, strict=True):
            running[name] += number
            if not running[name]:
                del running[name]

    def _next(self) -> None:
        """Let those in that may run now, first come, first served."""
        for place in tuple(self._queue):
            if not place[1].done() and self._free(place[0]):
                self._queue.remove(place)
                self._add(place[0], 1)
                place[1].set_result(None)
