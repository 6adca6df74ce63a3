"""The outbox: events are rows, written in the transaction of the change, then passed on in order.

What was committed is passed on at least once, in the order of commits, also after a crash between the two.
A consumer that must not act twice compares ids.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from doma.core.errors import DomaError
from doma.core.events import Event
from doma.db.engine import Database
from doma.db.tables import cursors, events

log = logging.getLogger(__name__)

BATCH = 500
"""Rows per statement."""
LINGER = 0.05
"""Seconds that the writer waits for more events: a transaction for each would cost more than the uploads."""

SETTLED = 1.0
"""Seconds after which the position behind events that were handed over is saved."""
TAKEN = 100
"""Batches handed over that wait for the relay at most; it reads the rest."""

_ORDER = 0x6F757462  # "outb"

Publish = Callable[[int, Event, float], None]
"""Takes (id, event, Unix seconds) without waiting."""
Batch = Sequence[tuple[Event, float]]
"""Events and their instants."""


def append(tx: Connection, event: Event, at: float) -> None:
    """Write one event in the transaction of the change that it tells of.

    Call it last: on PostgreSQL it holds a lock until the commit, so that ids are in the order of commits
    and a reader that remembers the last id misses none.
    """
    append_many(tx, (event,), at)


def append_many(tx: Connection, batch: Sequence[Event], at: float) -> int | None:
    """Write several events in one statement; see :func:`append`.

    Returns:
        The id of the first, where the others' follow it without a gap; None where that is not known.
    """
    if not batch:
        return None
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ORDER})
    if tx.dialect.name == "sqlite":
        lists = json.dumps(
            [(e.kind, e.subject, e.owner, dict(e.data)) for e in batch],
            allow_nan=False,
            separators=(",", ":"),
        )
        if _NUL not in lists:
            last: int = tx.execute(_IN_ONE_STEP, {"rows": lists, "at": at}).lastrowid
            return last - len(batch) + 1
    rows = [
        {"kind": e.kind, "subject": e.subject, "owner": e.owner, "data": dict(e.data), "at": at}
        for e in batch
    ]
    tx.execute(insert(events), rows)
    return None


_NUL = r"\u0000"
"""Ends a text that SQLite takes out of JSON, wherever it stands."""
_IN_ONE_STEP = text(
    "INSERT INTO events (kind, subject, owner, data, at) SELECT json_extract(value, '$[0]'),"
    " json_extract(value, '$[1]'), json_extract(value, '$[2]'), json_extract(value, '$[3]'), :at"
    " FROM json_each(:rows)"
)
"""Row by row SQLite gives up the GIL for each, and every time the event loop has to fight for it again."""


def after(
    tx: Connection, position: int, *, owner: str | None = None, limit: int = BATCH
) -> list[tuple[int, Event, float]]:
    """Events with an id above ``position``, oldest first; with ``owner`` only those that concern them."""
    wanted = select(events).where(events.c.id > position).order_by(events.c.id).limit(limit)
    if owner is not None:
        wanted = wanted.where(events.c.owner == owner)
    return [_event(row) for row in tx.execute(wanted)]


def newest(tx: Connection) -> int:
    """The id of the last event that is still kept; 0 if there is none."""
    return tx.execute(select(func.max(events.c.id))).scalar() or 0


def prune(tx: Connection, before: float) -> int:
    """Drop events older than ``before`` (Unix seconds) that every living consumer has seen.

    A consumer that has not moved since ``before`` counts as gone and holds nothing back.
    """
    seen = select(func.min(cursors.c.position)).where(cursors.c.at >= before)
    slowest = tx.execute(seen).scalar()
    old = delete(events).where(events.c.at < before)
    if slowest is not None:
        old = old.where(events.c.id <= slowest)
    return tx.execute(old).rowcount


class Relay:
    """Passes committed events on to ``publish``, in order, at least once.

    Wakes at each commit of this process; those of others are found by a slow look. What an
    :class:`EventWriter` hands over (:meth:`take`) is not read again.

    Args:
        db: The database; :meth:`run` registers itself in its ``after_commit``.
        publish: Takes an event. If it raises, the event and those behind it are offered again later.
        consumer: Name of the persisted cursor; one per process and purpose. A new one begins at the oldest
            event kept.
        interval: Seconds between two looks without being woken.
        retention: Seconds that events are kept.
        clock: Unix seconds.
        wanted: Whether anybody listens. While nobody does, what others wrote is not even read.
    """

    def __init__(
        self,
        db: Database,
        publish: Publish,
        *,
        consumer: str = "bus",
        interval: float = 5.0,
        retention: float = 7 * 24 * 3600,
        clock: Callable[[], float] = time.time,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._db, self._publish, self._consumer, self._wanted = db, publish, consumer, wanted
        self._interval, self._retention, self._clock = interval, retention, clock
        self._wake = asyncio.Event()
        self._taken: deque[tuple[int, Batch]] = deque()
        self._behind = True
        """There may be events that nobody has handed over."""
        self._position: int | None = None
        self._saved: int | None = None
        self._save_at = 0.0
        self._pruned = 0.0

    def wake(self) -> None:
        """Look now: another process has committed events. Only from the event loop's thread."""
        self._behind = True
        self._wake.set()

    def take(self, first: int | None, batch: Batch) -> None:
        """Pass on events that were just committed, without reading them. Only from the event loop's thread.

        Args:
            first: Id of the first; the others follow it. None: not known, so they are read.
            batch: The events and their instants.
        """
        if first is None or len(self._taken) >= TAKEN:
            self._taken.clear()
            self._behind = True
        else:
            self._taken.append((first, batch))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.wake)

        self._db.after_commit.append(wake)
        try:
            while True:
                self._wake.clear()
                try:
                    await self._turn()
                except DomaError as e:  # the database: a full disk, say
                    log.warning("relay %s: events wait to be passed on: %s", self._consumer, e)
                    await asyncio.sleep(self._interval)
                    continue
                except Exception:  # the outermost loop: say it, and offer the event again
                    log.exception("relay %s: an event could not be passed on; trying again", self._consumer)
                    await asyncio.sleep(self._interval)
                    continue
                settled = self._position == self._saved
                try:
                    async with asyncio.timeout(self._interval if settled else min(self._interval, SETTLED)):
                        await self._wake.wait()
                except TimeoutError:
                    self._behind = True
                    await self._tidy()
        finally:
            self._db.after_commit.remove(wake)

    async def _turn(self) -> None:
        """Pass on what was handed over, and look for the rest if there may be any."""
        taken, self._taken = self._taken, deque()
        behind, self._behind = self._behind, False
        try:
            for first, batch in taken:
                if behind or first - 1 != self._position:
                    behind = True  # others' events stand between, or a look has found these already
                    break
                if not self._wanted():
                    self._position = first + len(batch) - 1
                    continue
                at = batch[0][1]  # as they were written
                for number, (event, _) in enumerate(batch, first):
                    self._publish(number, event, at)
                    self._position = number
            if behind:
                await self._look()
            if time.monotonic() >= self._save_at:
                await self._keep()
        except BaseException:  # a cancellation, too: what was taken from the queue is looked for
            self._behind = True
            raise

    async def pass_on(self) -> int:
        """Offer everything that is committed and not yet passed on; returns how many events."""
        try:
            return await self._look()
        finally:
            await self._keep()

    async def _look(self) -> int:
        """The same; how far we are is saved by others, at times: it would cost more than to read."""
        if self._position is None:
            self._position = self._saved = await self._db.look(self._load)
        if not self._wanted():
            self._position = max(self._position, await self._db.look(newest))
            return 0
        count = 0
        while batch := await self._db.look(self._next):
            for number, event, at in batch:
                self._publish(number, event, at)
                self._position = number
                count += 1
            if len(batch) < BATCH:
                break  # what is committed from now on wakes us
        return count

    async def _keep(self) -> None:
        """Save how far we are; a crash before that makes us pass on some events again."""
        if self._position != self._saved:
            position = self._position
            await self._db.run(self._save, tell=False)
            self._saved, self._save_at = position, time.monotonic() + SETTLED

    async def _tidy(self) -> None:
        now = self._clock()
        if now - self._pruned < min(3600.0, self._retention):
            return
        self._pruned = now
        try:
            await self._db.run(lambda tx: prune(tx, now - self._retention))
        except DomaError as e:
            log.warning("relay %s: old events could not be dropped: %s", self._consumer, e)

    def _next(self, tx: Connection) -> list[tuple[int, Event, float]]:
        return after(tx, self._position or 0)

    def _load(self, tx: Connection) -> int:
        mine = select(cursors.c.position).where(cursors.c.consumer == self._consumer)
        return tx.execute(mine).scalar() or 0

    def _save(self, tx: Connection) -> None:
        now = {"position": self._position, "at": self._clock()}
        mine = update(cursors).where(cursors.c.consumer == self._consumer).values(**now)
        if not tx.execute(mine).rowcount:
            tx.execute(insert(cursors).values(consumer=self._consumer, **now))


class EventWriter:
    """An :data:`doma.core.events.Emit` that gathers events on the event loop and writes them in batches.

    For changes that have no row of their own (a file landed, an object was cached). Nothing waits for it: a
    burst beyond ``capacity`` loses the newest, counted in :attr:`dropped`.

    Args:
        db: Where the outbox is.
        capacity: Most events that wait to be written.
        clock: Unix seconds.
    """

    def __init__(
        self, db: Database, *, capacity: int = 100_000, clock: Callable[[], float] = time.time
    ) -> None:
        self._db, self._capacity, self._clock = db, capacity, clock
        self._waiting: deque[tuple[Event, float]] = deque()
        self._wake = asyncio.Event()
        self.relay: Relay | None = None
        """Of this process: takes what was written, instead of reading it."""
        self.dropped = 0

    def __call__(self, event: Event) -> None:
        """Take an event; only from the event loop's thread."""
        if len(self._waiting) >= self._capacity:
            if not self.dropped:
                log.error("the database does not keep up: events beyond %d are dropped", self._capacity)
            self.dropped += 1
            return
        self._waiting.append((event, self._clock()))
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, then write what is left."""
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(LINGER)
                self._wake.clear()
                try:
                    await self.flush()
                except DomaError as e:
                    log.warning("events wait for the database: %s", e)
                    await asyncio.sleep(1)
                    self._wake.set()
        finally:
            try:
                await self.flush()
            except DomaError:
                log.exception("%d events are lost", len(self._waiting))

    async def flush(self) -> None:
        """Write everything that waits, in order. What could not be written waits on."""
        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            write = asyncio.ensure_future(self._db.run(partial(_write, batch), tell=self.relay is None))
            try:
                # Shielded, since a cancelled write may or may not happen: its rows would be lost or doubled.
                await asyncio.shield(write)
            except asyncio.CancelledError:
                await asyncio.wait((write,))
                if write.exception() is None:
                    self._forget(batch)
                raise
            self._forget(batch)
            if self.relay is not None:
                self.relay.take(write.result(), batch)

    def _forget(self, batch: Batch) -> None:
        for _ in batch:
            self._waiting.popleft()


def _write(batch: Batch, tx: Connection) -> int | None:
    # One statement per instant would be exact; the first one's instant for all is close enough and cheap.
    return append_many(tx, [event for event, _ in batch], batch[0][1])


def _event(row: Row[Any]) -> tuple[int, Event, float]:
    return row.id, Event(row.kind, row.subject, row.data, row.owner), row.at
