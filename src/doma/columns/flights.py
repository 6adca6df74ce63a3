"""Single flight: what is asked a second time while it is being computed is not computed a second time.

Within a process one attempt leads and the others wait for its end; among processes a leased row says whose
attempt that is (:func:`doma.columns.cache_repo.known_or_led`), and the others look again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
AGAIN = 0.5
"""Seconds between two looks at what another process computes."""

Look = Callable[[bool], Awaitable[tuple[Sequence[T], bool]]]
"""What is known and whether this process has the lead among all; the argument: to try for the lead."""


class Flights:
    """Who computes what, in this process.

    Args:
        idle: Is called when somebody begins to wait.
    """

    def __init__(self, idle: Callable[[], None] = lambda: None) -> None:
        self._leaders: dict[str, asyncio.Event] = {}
        self._idle = idle

    async def before(self, key: str, look: Look[T], waits: Callable[[bool], None]) -> Sequence[T]:
        """What ``look`` finds, once it finds something or nobody computes the same any more.

        Args:
            key: What is to be computed.
            look: Looks whether it is known.
            waits: Hears when the waiting for somebody begins and ends.
        """
        idle = False
        try:
            while True:
                leader = self._leaders.get(key)
                if leader is not None and not idle:
                    idle = self._wait(waits)
                found, mine = await look(leader is None)
                leader = self._leaders.get(key)
                if found or (mine and leader is None):
                    return found
                idle = idle or self._wait(waits)
                if leader is not None:
                    await leader.wait()
                else:
                    await asyncio.sleep(AGAIN)
        finally:
            waits(False)

    def _wait(self, waits: Callable[[bool], None]) -> bool:
        waits(True)
        self._idle()
        return True

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
