"""Readers of what is not kept, and the end of what takes longer than a client waits.

Source: cache contract F3, O5, O10.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from doma.cache.fetch import Context
from doma.cache.freshness import patience
from doma.cache.hot import Seen
from doma.cache.lanes import Turn
from doma.cache.origins import caller
from doma.core.errors import TimedOut
from doma.monitor.opens import Cached
from doma.store.protocol import Buffer, Reader, Stat


class PassReader:
    """An origin's reader, counted: for what may not be kept (``no-store``, ``private``, a broken disk)."""

    def __init__(self, inner: Reader, stat: Stat, seen: Seen, context: Context, origin: str) -> None:
        self._inner = inner
        self._origin = origin
        self._stat = stat
        self._seen = seen
        self._context = context
        context.passing[self] = origin
        self._patience = patience.get()
        self.cached = Cached()

    @property
    def stat(self) -> Stat:
        return self._stat

    @property
    def headers(self) -> Mapping[str, str]:
        """Answer headers: nothing of it is kept here."""
        return self._seen.headers("BYPASS")

    async def read(self, start: int, stop: int) -> Buffer:
        async with (
            in_time(self._stat.path, self._patience),
            self._context.lanes.slot(self._origin, Turn(caller())),
        ):
            data = await self._inner.read(start, stop)
        self.cached.bypass += len(data)
        self._context.counters.bypass += len(data)
        self._context.counters.origin += len(data)
        return data

    async def close(self) -> None:
        self._context.passing.pop(self, None)
        await self._inner.close()


@asynccontextmanager
async def in_time(path: str, seconds: float) -> AsyncIterator[None]:
    """End what takes longer than the client waits (O5). Raises TimedOut."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as e:
        raise TimedOut(
            f"{path}: the origin gave nothing within the {seconds:g} s that the client waits; try later",
            path=path,
        ) from e
