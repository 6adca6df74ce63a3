"""Open readers at the origins: opened once for any number that wait, kept for the next range.

A reader belongs to one version and one caller: what a token may open says nothing about another token.
"""

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from doma.cache.origins import caller
from doma.cache.replicas import Replica
from doma.core.errors import DomaError
from doma.store.protocol import Reader


class _Line:
    __slots__ = ("opening", "retired", "users")

    def __init__(self, opening: asyncio.Task[Reader]) -> None:
        self.opening = opening
        self.users = 0
        self.retired = False

    @property
    def failed(self) -> bool:
        return self.opening.done() and (self.opening.cancelled() or self.opening.exception() is not None)


class Connections:
    """Open readers at the origins, kept for the next range of the same version by the same caller.

    Args:
        most: Readers that are kept.
        label: Gives the name under which requests to an origin are counted; few names, whoever asks.
    """

    def __init__(self, most: int = 64, label: Callable[[str], str] = str) -> None:
        self._most = most
        self._label = label
        self.requests: Counter[str] = Counter()
        """Uses of a reader that ended, by label of the origin."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """How long they took together, opening it included."""
        self._kept: OrderedDict[tuple[str, str, str, str], _Line] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def reader(self, replica: Replica, key: str, generation: str) -> AsyncIterator[Reader]:
        """A reader of the object for this caller; one open for any number that wait for it."""
        name = (key, generation, replica.name, caller())
        line = self._kept.get(name)
        if line is None or line.failed:
            line = self._kept[name] = _Line(asyncio.create_task(replica.open()))
            line.opening.add_done_callback(heard)
        self._kept.move_to_end(name)
        while len(self._kept) > self._most:
            self._retire(self._kept.popitem(last=False)[1])
        line.users += 1
        loop, label = asyncio.get_running_loop(), self._label(replica.name)
        began = loop.time()
        try:
            yield await asyncio.shield(line.opening)
        finally:
            self.requests[label] += 1
            self.seconds[label] += loop.time() - began
            line.users -= 1
            if line.retired:
                self._retire(line)

    def latency(self, origin: str) -> float:
        """Seconds that a read at an origin has taken on average; 0 before the first."""
        label = self._label(origin)
        return self.seconds[label] / self.requests[label] if self.requests[label] else 0.0

    def drop(self, key: str, generation: str, replica: str | None = None) -> None:
        """Close the readers of one version (at one replica), each once nobody reads from it."""
        for name in [n for n in self._kept if n[:2] == (key, generation) and replica in {None, n[2]}]:
            self._retire(self._kept.pop(name))

    async def close(self) -> None:
        """Close all."""
        while self._kept:
            self._retire(self._kept.popitem()[1])
        if self._closing:
            await asyncio.wait(self._closing, timeout=5)

    def _retire(self, line: _Line) -> None:
        line.retired = True
        if line.users:
            return
        closing = asyncio.create_task(_hang_up(line.opening))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


async def _hang_up(opening: asyncio.Task[Reader]) -> None:
    with suppress(DomaError):
        await (await opening).close()


def heard(task: asyncio.Task[Any]) -> None:
    """Take note of how a task ended, so that nobody is told that nobody asked."""
    if not task.cancelled():
        task.exception()  # whoever waits gets it too; nobody may be left
