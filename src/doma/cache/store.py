"""The caching store: what an origin has, served from a local disk, never wrong and never too old.

An open or a stat first settles which version is current (``current``), then hands out a reader bound to that
version (``reader``), which has missing pages fetched (``fetch``) and checks those that are here (``pages``).

Source: cache contract §3-§10; RFC 9111; RFC 9211.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from doma.cache.catalogue import Catalogue
from doma.cache.columns import Layouts
from doma.cache.connections import Connections
from doma.cache.current import NEGATIVE, Unkept, Validator, granted
from doma.cache.disk import Disk
from doma.cache.entry import Entry
from doma.cache.fetch import Context, Fetcher
from doma.cache.flight import Budget
from doma.cache.freshness import Control, control, patience
from doma.cache.hot import HotObject, Seen
from doma.cache.index import Pin
from doma.cache.lanes import Lanes, Turn
from doma.cache.origins import Origins, Place, caller
from doma.cache.passing import PassReader, in_time
from doma.cache.pins import Pins
from doma.cache.prestage import Prestager, Staging
from doma.cache.purge import Victim
from doma.cache.query import telling
from doma.cache.reader import CachedReader
from doma.cache.readonly import ReadOnly
from doma.cache.replicas import CanProbe
from doma.cache.scrub import check_whole, digest
from doma.cache.scrubber import Scrubber
from doma.cache.shelf import Shelf
from doma.cache.stats import Counters, Stats, snapshot
from doma.cache.upkeep import Evicted, Holding, Scrubbed, Upkeep
from doma.core.config import Cache
from doma.core.errors import BadRequest, Conflict, DomaError, NotCached, OriginFailed, Unsupported
from doma.core.events import Emit, Event
from doma.store.protocol import Space, Stat

log = logging.getLogger(__name__)


class CacheStore(ReadOnly):
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
        super().__init__(origins.name)
        self._origins = origins
        self._config = config
        self._clock = clock
        self._emit = emit
        self._shelf = Shelf(root)
        self._counters = Counters()
        self.catalogue = Catalogue(self._shelf, config, clock, emit, origins.shown)
        self.layouts = Layouts(root, kept=self.catalogue.described) if config.foresight else None
        """What is known of the columns of the files here; None: nothing is fetched ahead by columns."""
        self._disk = Disk(root, self._counters, clock)
        self.connections = Connections(label=origins.label)
        self.lanes = Lanes(
            config.fetches, clock, share=config.share, alone=config.alone, waiting=config.waiting,
            label=origins.label,
        )  # fmt: skip
        self._context = self.catalogue.context = Context(
            counters=self._counters,
            budget=Budget(config.memory),
            connections=self.connections,
            lanes=self.lanes,
            by_size=config.replicas_by_size,
            rng=rng or Random(),  # noqa: S311 - spreads retries, keeps no secret
            room=self._room,
            landed=self._landed,
            distrust=self._distrust,
            foresee=self.layouts.foresee if self.layouts is not None else lambda fetcher: None,
        )
        self._validator = Validator(self.catalogue, config, clock, self._counters, self.lanes, negative)
        self._upkeep = Upkeep(self.catalogue, origins, clock)
        self.pins = Pins(self.catalogue.keeper.index, config, clock)
        self.prestager = Prestager(self._enter, self.layouts, config.prestages, config.prestage_queue)
        self.scrubber = Scrubber(self.catalogue, origins, config.scrub, clock, emit)
        self._checks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.catalogue.keeper.start()

    async def stat(self, path: str) -> Stat:
        place = self._origins.place(path)
        async with in_time(path, patience.get()):
            found, _ = await self._validator.current(place, control.get())
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
        async with in_time(path, patience.get()):
            found, validated = await self._validator.current(place, how)
            if isinstance(found, Unkept) and found.stat.is_dir:
                raise Conflict(f"{path}: this is a directory; list it instead")
            if isinstance(found, Unkept):
                replica = place.replica(found.answer.replica)
                async with self.lanes.slot(replica.name, Turn(caller())):
                    inner = await replica.open()
                seen = Seen(found.answer.age, 0.0, stale=False, validated=True)
                return PassReader(inner, place.here(inner.stat), seen, self._context, replica.name)
        found.accessed = self._clock()
        found.fetcher.look_ahead()
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
        if entry is None or not entry.fresh(now) or not granted(place, entry, now):
            return None
        entry.accessed = now
        second, seen, lines = entry.hit
        if seen is None or second != int(now):
            seen = self._seen(entry, validated=False)
            lines = seen.lines()
            entry.hit = int(now), seen, lines
        return HotObject(entry.fetcher, seen, self._counters, lines)

    async def checksum(self, path: str, algorithm: str) -> str:
        """The checksum of the version that the cache serves: from its record, its pages, or the origin."""
        place = self._origins.place(path)
        for _ in range(2):
            found, _ = await self._validator.current(place, control.get())
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
        return Space(used := self.catalogue.usage.total, max(0, self._config.size - used))

    def stats(self) -> Stats:
        """What was counted since the start, and the gauges now."""
        return snapshot(
            self._counters,
            usage=self.catalogue.usage,
            size=self._config.size,
            fetching=self._context.budget.used,
            memory=self._context.budget.limit,
            open_objects=self.catalogue.open_objects,
            resting=self._disk.resting,
        )

    def credit(self, hit: int, touched: Mapping[str, float]) -> None:
        """Count what another process served from this folder (:class:`doma.cache.viewer.CacheView`).

        Args:
            hit: Bytes.
            touched: Keys of objects to when they were read last, Unix seconds.
        """
        self._counters.hit += hit
        for key, instant in touched.items():
            entry = self.catalogue.get(key)
            if entry is not None:
                entry.accessed = max(entry.accessed, instant)
            elif self._shelf.accessed(key) > 0:  # else it is gone, or first in line for the purge
                self._shelf.touch(key, instant)

    def heed(self, path: str, query: str) -> None:
        """Refuse a query by which an HTTP origin may mean another object: here a path means one.

        Raises:
            BadRequest: with the parameter, and the key that would have it ignored.
        """
        name = telling(query, self._config.ignore_query)
        if name is not None and isinstance(self._origins.place(path).store, CanProbe):
            raise BadRequest(
                f"{path}: the query parameter {name[:100]!r} may mean another file at the origin, and is not "
                "passed on; ask the origin, or name it in the key cache.ignore_query",
                key="cache.ignore_query",
            )

    def place(self, path: str) -> Place:
        """Where a path of the cache lives. Raises Forbidden for an origin that is not allowed."""
        return self._origins.place(path)

    async def holdings(self, paths: Sequence[str]) -> Sequence[Holding]:
        """What of these files is here, in their order; asks no origin."""
        return await self._upkeep.holdings(paths)

    async def holdings_below(self, top: str, after: str = "", limit: int = 1000) -> Sequence[Holding]:
        """What lies at and below a path here, in the order of names, behind the name ``after``."""
        return await self._upkeep.below(top, after, limit)

    def held(self, path: str) -> Holding | None:
        """What of a file is here, at once and without its origin; None: nothing.

        Raises:
            Forbidden: an origin that is not allowed.
        """
        found = self._upkeep.holding(path)
        return found if found.size is not None else None

    def cached(self, path: str) -> Holding:
        """The holding of a file that could be read now without its origin. Raises NotCached: it is not."""
        return self._upkeep.cached(path)

    async def evict(self, path: str, *, immediate: bool = False, force: bool = False) -> Evicted:
        """Give an object up, or all below a directory: at the next purge first, or ``immediate``ly.

        Args:
            path: With ``/`` at its end: all below.
            immediate: Now.
            force: Now, also what is pinned or being read: its readers' next read fails.

        Raises:
            Conflict: it is being read or pinned. NotFound: nothing of it is here.
        """
        return await self._upkeep.evict(path, immediate=immediate or force, force=force)

    async def prestage(
        self, path: str, columns: Sequence[str] | None = None, tree: str | None = None
    ) -> Staging:
        """Begin to bring a file, or columns of it, with the caller's token; see :class:`Prestager`."""
        return (await self.prestage_all([path], columns, tree))[0]

    async def prestage_all(
        self, paths: Sequence[str], columns: Sequence[str] | None = None, tree: str | None = None
    ) -> Sequence[Staging]:
        """The same for many files: all are queued or none.

        Raises:
            TooManyRequests: the queue is full.
        """
        for path in paths:
            self._origins.place(path)
        return self.prestager.begin(paths, columns, tree)

    async def pin(self, path: str, owner: str, lifetime: float | None = None) -> Pin:
        """Keep a file, also one that is not here yet, for a time; see :class:`Pins` for the quota.

        Args:
            path: Of a file.
            owner: ``issuer#subject``.
            lifetime: Seconds; None: ``cache.pin``.
        """
        stat = await self.stat(path)
        if stat.is_dir:
            raise BadRequest(f"{path}: is a directory; pin its files")
        return await self.pins.pin(path, self._origins.place(path).key, stat.size, owner, lifetime)

    async def tend(self) -> None:
        """What goes on while the cache runs: removal by age, the scrub. Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._config.scrub:
                tasks.create_task(self.scrubber.run())
            if self._config.age:
                tasks.create_task(self._upkeep.age(self._config.age))

    async def verify(self, path: str) -> Scrubbed:
        """Read an object's pages against their checksums and fetch the damaged ones again.

        Raises:
            NotFound: nothing of it is here.
        """
        return await self._upkeep.verify(path)

    async def purge(self, *, dry_run: bool = False) -> Sequence[Victim]:
        """Free disk down to the low mark; what went, or would go, in order, with the reason."""
        return await self.catalogue.purge(dry_run=dry_run)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.prestager.close()
        await self._validator.close()
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        if self.layouts is not None:
            await self.layouts.close()
        await self.catalogue.close()
        await self.connections.close()
        await self._origins.close()
        self._shelf.close()

    async def _enter(self, path: str) -> tuple[Entry, Callable[[], None]]:
        """The current version of a file, held until what comes back is called."""
        found, _ = await self._validator.current(self._origins.place(path), Control.NORMAL)
        if isinstance(found, Unkept):
            if found.stat.is_dir:
                raise BadRequest(f"{path}: is a directory; prestage its files")
            raise Unsupported(f"{path}: may not be kept (its origin forbids it, or it is too large); read it")
        return found, self.catalogue.acquire(found)

    async def _room(self, amount: int) -> bool:
        return not self._disk.resting and await self.catalogue.room(amount)

    def _seen(self, entry: Entry, *, validated: bool) -> Seen:
        now, record = self._clock(), entry.record
        age = max(0.0, now - record.validated) + record.age
        return Seen(age, entry.expires - now, stale=entry.stale, validated=validated and not entry.stale)

    def _distrust(self, fetcher: Fetcher, error: DomaError) -> None:
        """The origin no longer has, or contradicts, a version: validate before the next open (F8, F16)."""
        entry = self.catalogue.get(fetcher.record.key)
        if entry is not None and entry.fetcher is fetcher:
            entry.suspect = True
            log.info("%s: %s", fetcher.place.shown, error.message)

    def _landed(self, fetcher: Fetcher, amount: int) -> None:
        self.catalogue.landed(fetcher, amount)
        if not fetcher.whole and fetcher.pages.complete and not self._closed:
            fetcher.whole = True
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
        self.lanes.blame(fetcher.record.replica or fetcher.place.origin)
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
