"""The caching store: what an origin has, served from a local disk, never wrong and never too old.

An open or a stat first settles which version is current (freshness, F1-F18), then hands out a reader bound to
that version. Questions to the origin run once for any number of callers that wait for the same object, with
the token of the first; its 401, 403 or 404 is the first caller's alone, and the others ask for themselves.

Source: cache contract §3-§10; RFC 9111; RFC 9211.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NoReturn

from doma.cache.catalogue import Catalogue, Entry
from doma.cache.fetch import Budget, Connections, Context, Fetcher
from doma.cache.freshness import Control, control, may_serve_stale, parse
from doma.cache.origins import Answer, CanProbe, Origins, Place, caller
from doma.cache.reader import CachedReader, HotObject, PassReader, Seen
from doma.cache.scrub import check_whole, digest
from doma.cache.shelf import Shelf
from doma.cache.stats import Counters, Stats, snapshot
from doma.core.config import Cache
from doma.core.errors import (
    Conflict,
    DomaError,
    Forbidden,
    NotAllowed,
    NotCached,
    NotFound,
    OriginFailed,
    ServiceUnavailable,
    Unauthenticated,
)
from doma.core.events import Emit, Event
from doma.store.protocol import Space, Stat, Upload

log = logging.getLogger(__name__)

NEGATIVE = 30.0
"""Seconds that "there is no such file" is remembered, for the caller that was told so (R28)."""
PAUSE = 15.0
"""Seconds between questions to an origin that did not answer, while stale content is served."""
FORCED = 1.0
"""Seconds between validations of one object that clients force (F12)."""
GRANT = 300.0
"""Seconds that an origin's leave to read is believed, where the client named the origin."""


@dataclass(frozen=True, slots=True)
class Unkept:
    """Something that is served but not stored: a directory, ``no-store``, larger than the cache."""

    stat: Stat
    answer: Answer


class CacheStore:
    """A read-only :class:`doma.store.protocol.Store` over origins; also CanPeek and CanSpace.

    Args:
        root: The cache folder; one process holds it at a time.
        origins: Where the bytes come from; closed with the cache.
        config: Section ``cache``.
        clock: Unix seconds.
        emit: Takes ``object.cached``, ``object.replaced``, ``object.evicted``.
        rng: Jitter of retries.
        negative: Seconds that a 404 is remembered.

    Raises:
        AlreadyRunning: another process holds the folder.
        StorageUnavailable: the folder cannot be used.
    """

    def __init__(
        self,
        root: Path,
        origins: Origins,
        config: Cache,
        *,
        clock: Callable[[], float] = time.time,
        emit: Emit = lambda event: None,
        rng: Random | None = None,
        negative: float = NEGATIVE,
    ) -> None:
        self._origins = origins
        self._config = config
        self._clock = clock
        self._emit = emit
        self._negative_time = negative
        self._shelf = Shelf(root)
        self._counters = Counters()
        self.catalogue = Catalogue(self._shelf, config, clock, emit)
        self._connections = Connections()
        self._context = self.catalogue.context = Context(
            counters=self._counters,
            budget=Budget(config.memory),
            connections=self._connections,
            rng=rng or Random(),  # noqa: S311 - spreads retries, keeps no secret
            room=self.catalogue.room,
            landed=self._landed,
            distrust=self._distrust,
        )
        self._asking: dict[str, tuple[asyncio.Task[Entry | Unkept], str]] = {}
        self._missing: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._checks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._counting = threading.Thread(target=self._count, name="cache-usage", daemon=True)
        self._counting.start()

    async def stat(self, path: str) -> Stat:
        place = self._origins.place(path)
        found, _ = await self._current(place, control.get())
        return found.stat if isinstance(found, Unkept) else found.record.stat(path)

    async def list(self, path: str) -> AsyncIterator[Stat]:
        place = self._origins.place(path)
        if control.get() is Control.ONLY_IF_CACHED:
            raise NotCached(f"{path}: listings are not cached; ask without only-if-cached")
        async for stat in place.children():
            yield stat

    async def open(self, path: str) -> CachedReader | PassReader:
        """Raises NotFound; Conflict for a directory; NotCached for ``only-if-cached`` (F13)."""
        place = self._origins.place(path)
        how = control.get()
        self._counters.opens += 1
        found, validated = await self._current(place, how)
        if isinstance(found, Unkept):
            if found.stat.is_dir:
                raise Conflict(f"{path}: this is a directory; list it instead")
            inner = await place.store.open(place.path)
            seen = Seen(found.answer.age, 0.0, stale=False, validated=True)
            return PassReader(inner, place.here(inner.stat), seen, self._context)
        found.accessed = self._clock()
        return CachedReader(
            found.fetcher,
            self._seen(found, validated=validated),
            only_if_cached=how is Control.ONLY_IF_CACHED,
            context=self._context,
            closed=self.catalogue.acquire(found),
        )

    def peek(self, path: str) -> HotObject | None:
        if control.get() is not Control.NORMAL:
            return None
        try:
            place = self._origins.place(path)
        except DomaError:
            return None  # the slow road says why
        entry = self.catalogue.get(place.key)
        now = self._clock()
        if entry is None or not entry.fresh(now) or not _granted(place, entry, now):
            return None
        entry.accessed = now
        return HotObject(entry.fetcher, self._seen(entry, validated=False), self._context)

    async def checksum(self, path: str, algorithm: str) -> str:
        """The checksum of the version that the cache serves: from its record, its pages, or the origin."""
        place = self._origins.place(path)
        for _ in range(2):
            found, _ = await self._current(place, control.get())
            if isinstance(found, Unkept):
                return await place.store.checksum(place.path, algorithm)
            if (known := found.record.checksums.get(algorithm)) is not None:
                return known
            value = await self._compute(place, found, algorithm)
            if value is not None:
                sums = {**found.record.checksums, algorithm: value}
                await self.catalogue.note(found, replace(found.record, checksums=sums))
                return value
            found.suspect = True  # the origin has another version: settle that first
        raise OriginFailed(f"{path}: changes at the origin faster than its checksum can be had; try again")

    async def space(self) -> Space:
        return Space(self.catalogue.used, max(0, self._config.size - self.catalogue.used))

    def stats(self) -> Stats:
        """What was counted since the start, and the gauges now."""
        return snapshot(
            self._counters,
            used=self.catalogue.used,
            size=self._config.size,
            fetching=self._context.budget.used,
            memory=self._context.budget.limit,
            open_objects=self.catalogue.open_objects,
        )

    def place(self, path: str) -> Place:
        """Where a path of the cache lives. Raises Forbidden for an origin that is not allowed."""
        return self._origins.place(path)

    async def create(
        self,
        path: str,
        *,
        size: int | None = None,
        checksums: Mapping[str, str] | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
    ) -> Upload:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    async def delete(self, path: str, *, version: str | None = None, recursive: bool = False) -> None:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    async def rename(self, source: str, target: str, *, overwrite: bool = True) -> bool:
        """Not allowed: a cache is read-only."""
        self._refuse(source)

    async def make_dir(self, path: str) -> None:
        """Not allowed: a cache is read-only."""
        self._refuse(path)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        tasks = [*self._checks, *(task for task, _ in self._asking.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.catalogue.close()
        await self._connections.close()
        await self._origins.close()
        await asyncio.to_thread(self._counting.join)
        self._shelf.close()

    async def _current(self, place: Place, how: Control) -> tuple[Entry | Unkept, bool]:
        """The current version of an object, and whether the origin was asked for that."""
        while not self._closed:
            now = self._clock()
            entry = self.catalogue.find(place)
            force = how is Control.REFRESH and (entry is None or now - entry.asked >= FORCED)
            if entry is not None and entry.fresh(now) and not force and _granted(place, entry, now):
                return entry, False
            if how is Control.ONLY_IF_CACHED:
                why = "is not in the cache" if entry is None else "has to be validated at its origin"
                raise NotCached(f"{place.shown}: {why}; ask without only-if-cached", path=place.shown)
            if how is not Control.REFRESH:
                self._refuse_known_missing(place, now)
            if force and entry is not None:
                entry.asked = now
            found = await self._ask(place)
            if isinstance(found, Unkept) or (found is not None and _granted(place, found, now)):
                return found, True
            # Another caller's answer: this one has to ask in its own name.
        raise ServiceUnavailable(f"{place.shown}: the cache is closing; try again")

    async def _ask(self, place: Place) -> Entry | Unkept | None:
        """Ask the origin, or join who is asking; None: ask again, that caller's answer is not ours."""
        me = caller()
        task, by = self._asking.get(place.key, (None, ""))
        if task is None:
            task, by = asyncio.create_task(self._refresh(place)), me
            self._asking[place.key] = (task, me)
            task.add_done_callback(lambda done: self._answered(place.key, done))
        try:
            return await asyncio.shield(task)
        except (Unauthenticated, Forbidden, NotFound):
            if by == me:
                raise
            return None

    def _answered(self, key: str, task: asyncio.Task[Entry | Unkept]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waits gets it too; nobody may be left

    async def _refresh(self, place: Place) -> Entry | Unkept:
        """Ask the origin what it has, with the caller's own token, and act on it (F3-F6, F10, F11)."""
        entry = self.catalogue.find(place)
        usable = entry is not None and not entry.suspect and not entry.fetcher.broken
        self._counters.validations += entry is not None
        try:
            answer = await place.ask(entry.record.version if entry is not None and usable else None)
        except NotFound:
            self._remember_missing(place)
            if entry is not None:
                self.catalogue.remove(entry)
            raise
        except (Unauthenticated, Forbidden):
            raise  # this caller's answer; what others may read stays
        except DomaError as e:
            if entry is None or not usable or not self._excusable(place, entry, e):
                self._counters.origin_errors += 1
                raise
            log.warning("%s: served stale, the origin is away: %s", place.shown, e.message)
            self._counters.stale += 1
            entry.excuse(self._clock() + PAUSE)
            entry.grant(caller(), self._clock() + PAUSE)
            return entry
        return await self._settle(place, entry if usable else None, entry, answer)

    async def _settle(
        self, place: Place, usable: Entry | None, entry: Entry | None, answer: Answer
    ) -> Entry | Unkept:
        """Act on an origin's answer; ``usable`` is the entry if its content can be kept when unchanged."""
        stat = answer.stat
        if stat is None:
            if usable is None:
                raise OriginFailed(f"{place.shown}: the origin says 'not modified' to an open question")
            stat = usable.record.stat(place.path)
        kept = parse(answer.cache_control).store and not stat.is_dir and stat.size <= self._config.size
        if not kept:
            if entry is not None:
                self.catalogue.remove(entry)
            return Unkept(place.here(stat), answer)
        if usable is not None and stat.version == usable.record.version:
            if stat.size == usable.record.size:
                self._counters.renewed += 1
                await self.catalogue.renew(usable, answer)
                usable.grant(caller(), self._clock() + GRANT)
                return usable
            self._counters.discarded += 1
            log.warning(
                "%s: the origin says %d bytes, before %d, for the same version; fetched again",
                place.shown,
                stat.size,
                usable.record.size,
            )
        lifetime = self._config.lifetime if isinstance(place.store, CanProbe) else self._config.file_lifetime
        try:
            fresh = await self.catalogue.adopt(place, stat, answer, lifetime)
        except OSError as e:
            self._counters.disk_errors += 1
            log.warning("%s: cannot be kept, the cache disk refused: %s", place.shown, e)
            return Unkept(place.here(stat), answer)
        fresh.grant(caller(), self._clock() + GRANT)
        return fresh

    def _excusable(self, place: Place, entry: Entry, error: DomaError) -> bool:
        """Whether to serve stale: the origin is away, and it has let this caller read the object before."""
        return (
            error.retry != "no"
            and (not place.named or caller() in entry.grants)
            and may_serve_stale(entry.said, self._clock(), entry.expires, self._config.stale_if_error)
        )

    def _seen(self, entry: Entry, *, validated: bool) -> Seen:
        now, record = self._clock(), entry.record
        age = max(0.0, now - record.validated) + record.age
        return Seen(age, entry.expires - now, stale=entry.stale, validated=validated and not entry.stale)

    def _remember_missing(self, place: Place) -> None:
        self._missing[place.key, caller()] = self._clock() + self._negative_time
        while len(self._missing) > 4096:
            self._missing.popitem(last=False)

    def _refuse_known_missing(self, place: Place, now: float) -> None:
        name = (place.key, caller())
        until = self._missing.get(name)
        if until is None:
            return
        if now >= until:
            del self._missing[name]
            return
        raise NotFound(
            f"{place.shown}: the origin had no such file a moment ago; "
            "ask with Cache-Control: no-cache to look again",
            path=place.shown,
        )

    def _distrust(self, fetcher: Fetcher, error: DomaError) -> None:
        """The origin no longer has, or contradicts, a version: validate before the next open (F8, F16)."""
        entry = self.catalogue.get(fetcher.record.key)
        if entry is not None and entry.fetcher is fetcher:
            entry.suspect = True
            log.info("%s: %s", fetcher.place.shown, error.message)

    def _landed(self, fetcher: Fetcher, amount: int) -> None:
        self.catalogue.landed(fetcher, amount)
        if fetcher.pages.complete and not self._closed:
            task = asyncio.create_task(self._completed(fetcher))
            self._checks.add(task)
            task.add_done_callback(self._checks.discard)

    async def _completed(self, fetcher: Fetcher) -> None:
        """Compare a complete object with the checksum that its origin gave (C11)."""
        wrong = await check_whole(fetcher)
        if wrong is None:
            data = {"origin": fetcher.record.origin, "size": fetcher.record.size}
            self._emit(Event("object.cached", fetcher.place.shown, data))
            return
        log.error("%s: %s; discarded", fetcher.place.shown, wrong)
        self._counters.discarded += 1
        self._counters.origin_errors += 1
        fetcher.broken = True
        entry = self.catalogue.get(fetcher.record.key)
        if entry is not None and entry.fetcher is fetcher:
            self.catalogue.remove(entry)

    async def _compute(self, place: Place, entry: Entry, algorithm: str) -> str | None:
        """A checksum that the record lacks; None if the origin has another version than the entry's."""
        if entry.fetcher.pages.complete and (value := await digest(entry.fetcher, algorithm)) is not None:
            return value
        value = await place.store.checksum(place.path, algorithm)
        now_there = await place.store.stat(place.path)
        same = (now_there.version, now_there.size) == (entry.record.version, entry.record.size)
        return value if same else None

    def _count(self) -> None:
        """Count usage and clear away remains, in a thread: a start costs the same for any volume."""
        total = 0
        for item in self._shelf.walk():
            if self._closed:
                return
            total += item.used
        self.catalogue.used += total

    def _refuse(self, path: str) -> NoReturn:
        raise NotAllowed(f"{path}: a cache is read-only; write to the origin {self._origins.name} instead")


def _granted(place: Place, entry: Entry, now: float) -> bool:
    # At the default origin this site's policy decides for both; elsewhere only the origin can.
    return not place.named or entry.granted(caller(), now)
