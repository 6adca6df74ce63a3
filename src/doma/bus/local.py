"""Publish and subscribe inside one process.

Nothing is stored: who needs every event reads the outbox and uses this to hear of it at once. A slow
subscriber is told that it missed something and slows nobody else.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, Self

from doma.core.events import Event

LAGGED = "lagged"
"""Kind of the notice that says: ``data["missed"]`` events were dropped here."""

CAPACITY = 1000
"""Notices that wait for one subscriber."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An event as subscribers get it."""

    kind: str
    subject: str
    data: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    """Number of its outbox row; 0: it has none."""
    owner: str = ""
    """``issuer#subject`` of whom it concerns."""
    at: float = 0.0
    """Unix seconds."""


class Subscription:
    """What one subscriber has not read yet: an async iterator, closed by ``async with`` or :meth:`close`."""

    def __init__(self, bus: "Bus", kinds: Iterable[str], owner: str | None, capacity: int) -> None:
        self._bus, self._owner, self._capacity = bus, owner, capacity
        self._matches = re.compile("|".join(translate(kind) for kind in kinds)).match
        self._waiting: deque[Notice] = deque()
        self._missed = 0
        self._wake = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notice:
        while not self._waiting:
            if self._missed:
                return self._mark()
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Get nothing more; what waits can still be read. Idempotent."""
        self._closed = True
        self._bus.leave(self)
        self._wake.set()

    def offer(self, notice: Notice) -> None:
        """Take a notice if it is wanted; drop and count it when too many wait."""
        if self._owner is not None and notice.owner != self._owner:
            return
        if not self._matches(notice.kind):
            return
        if len(self._waiting) >= self._capacity:
            self._missed += 1
        else:
            if self._missed:  # the mark stands where the gap is
                self._waiting.append(self._mark())
            self._waiting.append(notice)
        self._wake.set()

    def _mark(self) -> Notice:
        missed, self._missed = self._missed, 0
        return Notice(LAGGED, "", {"missed": missed})


class Bus:
    """One process's notices. Everything happens on the event loop's thread.

    Args:
        clock: Unix seconds, for notices that say no time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # A dict keeps the order and lets a subscriber leave in constant time.
        self._subscribers: dict[Subscription, None] = {}

    def publish(
        self,
        kind: str,
        subject: str,
        data: Mapping[str, Any] | None = None,
        id: int = 0,
        *,
        owner: str = "",
        at: float | None = None,
    ) -> None:
        """Tell everybody who wants to know; never waits."""
        notice = Notice(kind, subject, data or {}, id, owner, self._clock() if at is None else at)
        for subscriber in tuple(self._subscribers):
            subscriber.offer(notice)

    def pass_on(self, number: int, event: Event, at: float) -> None:
        """Publish an event of the outbox: what a relay calls."""
        if self._subscribers:
            self.publish(event.kind, event.subject, event.data, number, owner=event.owner, at=at)

    def subscribe(
        self, kinds: Iterable[str] = ("*",), *, owner: str | None = None, capacity: int = CAPACITY
    ) -> Subscription:
        """Hear of events from now on.

        Args:
            kinds: Shell patterns of which one must match: ``file.*``.
            owner: Only events that concern them; None: everybody's.
            capacity: How many may wait before further ones are dropped and counted.

        >>> async def first(bus):
        ...     async with bus.subscribe(["file.*"]) as events:
        ...         bus.publish("file.landed", "/site/a")
        ...         async for event in events:
        ...             return event.subject
        >>> asyncio.run(first(Bus()))
        '/site/a'
        """
        subscription = Subscription(self, kinds, owner, capacity)
        self._subscribers[subscription] = None
        return subscription

    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscribers)

    def leave(self, subscription: Subscription) -> None:
        """Forget a subscriber. Idempotent."""
        self._subscribers.pop(subscription, None)

    def close(self) -> None:
        """End every subscription: endless answers would hold up the end of a server."""
        for subscriber in tuple(self._subscribers):
            subscriber.close()
