"""Events as Server-Sent Events: live from the bus, resumed from the outbox, never more than one's own.

Source: WHATWG HTML §9.2 (server-sent events): ``Last-Event-ID``, comments as heartbeats.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from sqlalchemy import Connection, func, select

from doma.bus.local import LAGGED, Bus, Notice, Subscription
from doma.core.errors import TooManyRequests
from doma.core.events import Event
from doma.db import outbox
from doma.db.engine import Database
from doma.db.tables import events

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent: proxies cut silent connections after 30 to 60."""
LOOK = 2.0
"""Seconds between two looks of a live page at its numbers."""
BREATH = 0.3
"""Seconds after an event in which further ones are gathered for one look."""
RETRY_MS = 2000
MAX_STREAMS = 1000
MAX_OF_ONE = 50
"""Streams of one owner: who opens many keeps nobody else out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one client wants to hear."""

    owner: str | None
    """``issuer#subject``; None: everybody's events."""
    kinds: Sequence[str] = ("*",)
    """Shell patterns."""
    last: int | None = None
    """The last id it has seen; None: begin now."""
    until: float = float("inf")
    """Unix seconds when its token expires, and with it the stream."""
    good: Callable[[], bool] = lambda: True
    """Whether its token still counts: it may be revoked meanwhile."""


class Streams:
    """The running event streams of one server.

    Args:
        db: Where the outbox is.
        bus: What tells of new events.
        heartbeat: Seconds between two signs of life.
        look: Seconds between two looks of a live page.
        clock: Unix seconds.
    """

    def __init__(
        self,
        db: Database,
        bus: Bus,
        *,
        heartbeat: float = HEARTBEAT,
        look: float = LOOK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._bus, self._heartbeat, self._look, self._clock = db, bus, heartbeat, look, clock
        self._open: dict[Subscription, str | None] = {}
        """With whose stream it is; None: of an operator."""

    def check_room(self, owner: str | None = None) -> None:
        """Raise TooManyRequests when no further stream is taken, of this owner or at all."""
        if len(self._open) >= MAX_STREAMS:
            raise TooManyRequests(f"/events: {MAX_STREAMS} streams are open; close one", retry_after=30)
        if owner is not None and sum(whose == owner for whose in self._open.values()) >= MAX_OF_ONE:
            raise TooManyRequests(
                f"/events: {MAX_OF_ONE} streams of yours are open; close one, or ask without waiting",
                retry_after=30,
            )

    async def lines(self, asked: Asked) -> AsyncIterator[str]:
        """The stream as text, until the token expires or the server stops."""
        # Subscribed before the outbox is read: an event in between comes twice, and once is dropped by id.
        subscription = self._bus.subscribe((*asked.kinds, LAGGED), owner=asked.owner)
        self._open[subscription] = asked.owner
        try:
            yield f"retry: {RETRY_MS}\n\n"
            last = 0
            if asked.last is not None:
                oldest, newest = await self._db.look(_span)
                last = min(asked.last, newest)  # a client of another life of this database starts anew
                if oldest > last + 1:
                    yield _frame(LAGGED, {"missed": None, "oldest": oldest}, None)
                async for number, event, at in self._stored(asked, last):
                    last = number
                    yield _event(number, event, at)
            async for line in self._live(asked, subscription, last):
                yield line
        finally:
            self._open.pop(subscription, None)
            subscription.close()

    async def page(
        self,
        render: Callable[[], Awaitable[Any]],
        until: float,
        last: Callable[[Any], bool] = lambda now: False,
        owner: str | None = None,
    ) -> AsyncIterator[str]:
        """Send what ``render`` gives, and again when it has changed.

        Args:
            render: The present state, JSON-ready.
            until: Unix seconds when it ends.
            last: Whether nothing comes after a state.
            owner: Whose stream it is.
        """
        # An event only wakes it: one that waits is as good as many.
        subscription = self._bus.subscribe(capacity=1)
        self._open[subscription] = owner
        try:
            loop = asyncio.get_running_loop()
            sent, spoke = None, loop.time()
            while self._clock() < until:
                now = await render()
                if now != sent or loop.time() - spoke >= self._heartbeat:
                    yield f"data: {json.dumps(now)}\n\n"
                    sent, spoke = now, loop.time()
                if last(now):
                    return
                try:
                    async with asyncio.timeout(self._look):
                        await anext(subscription)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    return
                await asyncio.sleep(BREATH)
        finally:
            self._open.pop(subscription, None)
            subscription.close()

    async def _live(self, asked: Asked, subscription: Subscription, last: int) -> AsyncIterator[str]:
        while True:
            left = asked.until - self._clock()
            if left <= 0 or not asked.good():
                yield _frame("expired", {}, None)
                return
            try:
                async with asyncio.timeout(min(left, self._heartbeat)):
                    notice = await anext(subscription)
            except TimeoutError:
                yield ": alive\n\n"
                continue
            except StopAsyncIteration:
                return
            if not asked.good():
                continue
            if notice.kind == LAGGED:
                # What was missed is in the outbox, if the client has a place there to go on from.
                if not last:
                    yield _frame(LAGGED, dict(notice.data), None)
                    continue
                async for number, event, at in self._stored(asked, last):
                    last = number
                    yield _event(number, event, at)
            elif not notice.id or notice.id > last:
                last = notice.id or last
                yield _notice(notice)

    async def _stored(self, asked: Asked, last: int) -> AsyncIterator[tuple[int, Event, float]]:
        """Events of the outbox behind ``last``, in batches, as far as they are wanted."""
        while True:
            batch = await self._db.look(partial(outbox.after, position=last, owner=asked.owner))
            for number, event, at in batch:
                last = number
                if any(fnmatchcase(event.kind, kind) for kind in asked.kinds):
                    yield number, event, at
            if len(batch) < outbox.BATCH:
                return


def _span(tx: Connection) -> tuple[int, int]:
    oldest, newest = tx.execute(select(func.min(events.c.id), func.max(events.c.id))).one()
    return oldest or 0, newest or 0


def _event(number: int, event: Event, at: float) -> str:
    facts = {"id": number, "kind": event.kind, "subject": event.subject, "at": at, "data": dict(event.data)}
    return _frame(event.kind, facts, number)


def _notice(notice: Notice) -> str:
    facts = {"id": notice.id, "kind": notice.kind, "subject": notice.subject, "at": notice.at}
    return _frame(notice.kind, {**facts, "data": dict(notice.data)}, notice.id or None)


def _frame(kind: str, facts: object, number: int | None) -> str:
    # JSON has no line ends of its own, so one data line is enough; a kind is one word of ours.
    name = "" if number is None else f"id: {number}\n"
    return f"{name}event: {kind.split()[0] if kind.strip() else 'event'}\ndata: {json.dumps(facts)}\n\n"
