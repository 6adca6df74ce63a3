"""What operators and planners ask of a cache: what is here, give it up, is it sound.

Source: cache contract §7.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from doma.cache.catalogue import Catalogue
from doma.cache.entry import Entry
from doma.cache.extents import PAGE
from doma.cache.index import Row
from doma.cache.origins import Origins
from doma.cache.purge import Victim
from doma.cache.scrub import damaged
from doma.core.errors import Conflict, DomaError, NotCached, NotFound

log = logging.getLogger(__name__)

_AGE = 600.0
"""Seconds between looks for what is too old."""
_ROWS = 500
"""Objects of a directory that are given up at one go: a millisecond or so of the event loop."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What of one file is here."""

    path: str
    size: int | None
    """Bytes of the file; None: nothing is known of it here."""
    cached: int
    """Bytes of it that are here."""
    complete: bool
    version: str | None
    accessed: float | None
    """Unix seconds of the last access; 0: first in line for the purge."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an evict did."""

    path: str
    objects: int
    bytes: int
    """Disk bytes freed, or to be freed at the next purge."""
    busy: int
    """Objects below a directory that were left because they are being read."""
    pinned: int
    """Those that were left because they are pinned."""
    immediate: bool


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a check of one object found."""

    path: str
    pages: int
    """Pages that were here."""
    damaged: int
    repaired: int
    """Damaged pages that could be fetched again; the others are missing now, none is served."""
    error: str
    """Why not all could be; empty if they could."""


class Upkeep:
    """Commands over one catalogue."""

    def __init__(self, catalogue: Catalogue, origins: Origins, clock: Callable[[], float]) -> None:
        self._catalogue = catalogue
        self._origins = origins
        self._clock = clock
        origins.spared = self._spared

    def _spared(self, origin: str) -> bool:
        """Whether nothing of an origin is in use; what was kept of it in memory goes."""
        context = self._catalogue.context
        if origin in context.passing.values() or not self._catalogue.spared(origin):
            return False
        return context.lanes.forget(origin)

    async def holdings(self, paths: Sequence[str]) -> list[Holding]:
        """One entry for each path, in their order."""
        out = []
        for n, path in enumerate(paths):
            if n % 64 == 63:
                await asyncio.sleep(0)  # a list of thousands must not hold the loop
            out.append(self.holding(path))
        return out

    async def below(self, top: str, after: str, limit: int) -> list[Holding]:
        """What lies at and below a path here, in the order of names, behind ``after``."""
        rows = await asyncio.to_thread(self._rows, top, after, limit)
        return [
            Holding(row.path, row.size, row.held, row.held == row.size, row.version, row.accessed)
            for row in rows
        ]

    def holding(self, path: str) -> Holding:
        """What of one file is here; at once."""
        key, shelf = self._origins.place(path).key, self._catalogue.shelf
        entry = self._catalogue.get(key)
        record = entry.record if entry is not None else shelf.record(key)
        if record is None:
            return Holding(path, None, 0, complete=False, version=None, accessed=None)
        held = entry.fetcher.pages.held if entry is not None else shelf.held(record)
        accessed = entry.accessed if entry is not None else shelf.accessed(key)
        cached = min(record.size, held * PAGE)
        return Holding(path, record.size, cached, cached == record.size, record.shown_version, accessed)

    def cached(self, path: str) -> Holding:
        """The holding of a file that is here completely and fresh.

        Raises:
            NotCached: it is not.
        """
        found = self.holding(path)
        if found.size is None:
            raise NotCached(f"{path}: is not in the cache", path=path)
        if not found.complete:
            raise NotCached(f"{path}: {found.cached} of {found.size} bytes are in the cache", path=path)
        entry = self._catalogue.find(self._origins.place(path))
        if entry is None or not entry.fresh(self._clock()):
            raise NotCached(f"{path}: has to be validated at its origin first", path=path)
        return found

    async def evict(self, path: str, *, immediate: bool, force: bool) -> Evicted:
        """One object, or all below a directory (``path`` ends in ``/``, or names no object)."""
        if not path.endswith("/"):
            key = self._origins.place(path).key
            if self._catalogue.get(key) is not None or self._catalogue.shelf.record(key) is not None:
                return await self._evict_one(path, key, immediate=immediate, force=force)
        done, after = Evicted(path, 0, 0, 0, 0, immediate), ""
        pinned = await asyncio.to_thread(self._catalogue.keeper.index.pinned, self._clock())
        while rows := await asyncio.to_thread(self._rows, path, after, _ROWS):
            after = rows[-1].path
            free = [row for row in rows if force or row.key not in pinned]
            objects, amount = await self._evict_all(free, immediate=immediate, force=force)
            done = replace(
                done,
                objects=done.objects + objects,
                bytes=done.bytes + amount,
                busy=done.busy + len(free) - objects,
                pinned=done.pinned + len(rows) - len(free),
            )
        if not after:
            raise NotFound(f"{path}: nothing of it is in the cache", path=path)
        return done

    async def _evict_all(self, free: Sequence[Row], *, immediate: bool, force: bool) -> tuple[int, int]:
        """How many objects went or will go, and their disk bytes; the others are being read."""
        ended = [await self._catalogue.revoke(row.key) for row in free] if force else [0] * len(free)
        idle = [
            row
            for row, used in zip(free, ended, strict=True)
            if not used and not self._catalogue.in_use(row.key)
        ]
        if immediate:
            victims = [Victim(row.path, row.used, row.accessed, "command", row.key) for row in idle]
            gone = await self._catalogue.remove_all(victims)
            objects, amount = len(gone), sum(victim.used for victim in gone)
        else:
            await self._first_in_line([row.key for row in idle])
            objects, amount = len(idle), sum(row.used for row in idle)
        return objects + sum(used > 0 for used in ended), amount + sum(ended)

    async def verify(self, path: str) -> Scrubbed:
        """Check the pages that are here, fetch the damaged ones again with the caller's token."""
        entry = self._catalogue.find(self._origins.place(path))
        if entry is None:
            raise NotFound(f"{path}: nothing of it is in the cache", path=path)
        release = self._catalogue.acquire(entry)
        try:
            held = entry.fetcher.pages.held
            bad = await damaged(entry.fetcher)
            repaired, error = await mended(entry, bad)
        finally:
            release()
        return Scrubbed(path, held, len(bad), repaired, error)

    async def age(self, seconds: float) -> None:
        """Remove what was not read for so long, again and again, until cancelled."""
        while True:
            try:
                await self._catalogue.purge(old_only=True)
            except DomaError as e:
                log.warning("what is too old cannot be removed: %s", e.message)
            await asyncio.sleep(min(seconds, _AGE))

    async def _evict_one(self, path: str, key: str, *, immediate: bool, force: bool) -> Evicted:
        if force and (used := await self._catalogue.revoke(key)):
            return Evicted(path, 1, used, 0, 0, immediate=True)
        if force:
            pass
        elif self._catalogue.in_use(key):
            raise Conflict(f"{path}: is being read; evict it later, or with force", path=path)
        elif await asyncio.to_thread(self._catalogue.keeper.index.is_pinned, key, self._clock()):
            raise Conflict(f"{path}: is pinned; unpin it, or evict it with force", path=path)
        if immediate or force:
            taken = await self._catalogue.take(key)
            used = taken[1] if taken else 0
        else:
            await self._first_in_line([key])
            record = self._catalogue.shelf.record(key)
            used = self._catalogue.shelf.used(record) if record else 0
        return Evicted(path, int(used > 0), used, 0, 0, immediate or force)

    async def _first_in_line(self, keys: Sequence[str]) -> None:
        """Let objects go first at the next purge; who reads one before takes it from the line."""
        catalogue = self._catalogue
        for key in keys:
            if (entry := catalogue.get(key)) is not None:
                entry.touched = entry.accessed = 0.0
                catalogue.keeper.note(entry)

        def note() -> None:
            for key in keys:
                catalogue.shelf.touch(key, 0.0)
            catalogue.keeper.index.first(keys)

        await asyncio.to_thread(note)

    def _rows(self, top: str, after: str = "", limit: int = -1) -> list[Row]:
        """Objects at and below a path by what is known now. Blocks."""
        self._catalogue.keeper.settle()
        return self._catalogue.keeper.index.below(top, after, limit)


async def mended(entry: Entry, pages: Sequence[int]) -> tuple[int, str]:
    """How many damaged pages could be fetched again, and why not all."""
    fetcher, repaired = entry.fetcher, 0
    for page in pages:
        try:
            await fetcher.gather(await fetcher.flights([(page, page + 1)]))
        except DomaError as e:
            return repaired, e.message
        repaired += fetcher.pages.present(page * PAGE, page * PAGE + 1)
    return repaired, ""
