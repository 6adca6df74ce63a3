"""Fetches what a :class:`doma.cache.foresight.Foresight` says will be wanted, while the object is read.

Source: cache contract §9.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from doma.cache.extents import Run, joined, pages_of, pieces
from doma.cache.flight import Flight

AT_ONCE = 4
"""Flights of one object that nobody asked for."""
FORGET = 10.0
"""Seconds without a read after which nothing more is fetched for the object."""
_MOST = 4096
"""Runs that may wait."""


class Prefetcher:
    """What is still to be fetched ahead of one version of one object.

    Args:
        ahead: Starts to fetch what is missing of a run and holds the flights.
        release: Gives a flight up.
    """

    def __init__(self, ahead: Callable[[Run], list[Flight]], release: Callable[[Flight], None]) -> None:
        self._ahead = ahead
        self._release = release
        self._runs: deque[Run] = deque(maxlen=_MOST)
        self._pump: asyncio.Task[None] | None = None
        self._read = 0.0

    def read(self) -> None:
        """Somebody reads the object now."""
        self._read = asyncio.get_running_loop().time()

    def add(self, spans: Sequence[tuple[int, int]]) -> None:
        """Fetch these byte ranges when nothing better is to be done."""
        for run in joined((pages_of(start, stop) for start, stop in spans), gap=1):
            self._runs.extend(pieces(run))
        if self._runs and (self._pump is None or self._pump.done()):
            self._pump = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Fetch nothing more."""
        self._runs.clear()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        held: list[Flight] = []
        try:
            while held or self._runs:
                if loop.time() - self._read >= FORGET:
                    self._runs.clear()
                while self._runs and len(held) < AT_ONCE:
                    held += self._ahead(self._runs.popleft())
                if held:
                    await asyncio.wait([f.task for f in held], return_when=asyncio.FIRST_COMPLETED)
                    held = self._finished(held)
        finally:
            for flight in held:
                self._release(flight)

    def _finished(self, held: Iterable[Flight]) -> list[Flight]:
        left = []
        for flight in held:
            if flight.task.done():
                self._release(flight)
            else:
                left.append(flight)
        return left
