"""Single flight: what is asked a second time while it is being computed is not computed a second time.

Within one process: two services on one database may compute the same at the same time. Each publishes its own
object, the cache keeps the later one, and both are right; a claim row and its lease would cost every file a
transaction more.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Flights:
    """Who computes what, in this process."""

    def __init__(self) -> None:
        self._leaders: dict[str, asyncio.Event] = {}

    async def before(self, key: str, look: Callable[[], Awaitable[T]]) -> T:
        """What ``look`` finds, once nobody computes the same any more or it finds something (is true)."""
        while not (found := await look()) and (leader := self._leaders.get(key)) is not None:
            await leader.wait()
        return found

    def taken(self, key: str) -> bool:
        """Whether somebody computes this."""
        return key in self._leaders

    @contextmanager
    def lead(self, key: str) -> Iterator[None]:
        """Compute this: others wait for the end of the block, whatever it is. Without effect if led."""
        if key in self._leaders:
            yield
            return
        ended = self._leaders[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._leaders[key]
            ended.set()
