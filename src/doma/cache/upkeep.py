"""What operators and planners ask of a cache: what is here, give it up, is it sound.

Source: cache contract §7.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from doma.cache.catalogue import Catalogue
from doma.cache.entry import Entry
from doma.cache.extents import PAGE
from doma.cache.origins import Origins
from doma.cache.scrub import damaged
from doma.core.errors import Conflict, DomaError, NotFound


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
    """Unix seconds of the last access."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """What an evict did."""

    path: str
    objects: int
    bytes: int
    """Disk bytes freed, or to be freed at the next purge."""
    busy: int
    """Objects below a directory that were left because they are being read."""
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

    async def holdings(self, paths: Sequence[str]) -> list[Holding]:
        """One entry for each path, in their order."""
        out = []
        for n, path in enumerate(paths):
            if n % 64 == 63:
                await asyncio.sleep(0)  # a list of thousands must not hold the loop
            out.append(self._holding(path))
        return out

    async def evict(self, path: str, *, immediate: bool) -> Evicted:
        """One object, or all below a directory (``path`` ends in ``/``, or names no object)."""
        entry_key = self._origins.place(path).key if not path.endswith("/") else ""
        record = self._catalogue.shelf.record(entry_key) if entry_key else None
        keys = [entry_key] if record is not None else await asyncio.to_thread(self._below, path)
        if not keys:
            raise NotFound(f"{path}: nothing of it is in the cache", path=path)
        objects = freed = busy = 0
        for key in keys:
            entry = self._catalogue.get(key)
            if entry is not None and (entry.readers or entry.fetcher.busy):
                if record is not None:
                    raise Conflict(f"{path}: is being read; evict it later", path=path)
                busy += 1
                continue
            amount = await self._give_up(key, entry, immediate=immediate)
            objects, freed = objects + (amount > 0), freed + amount
        return Evicted(path, objects, freed, busy, immediate)

    async def verify(self, path: str) -> Scrubbed:
        """Check the pages that are here, fetch the damaged ones again with the caller's token."""
        entry = self._catalogue.find(self._origins.place(path))
        if entry is None:
            raise NotFound(f"{path}: nothing of it is in the cache", path=path)
        release = self._catalogue.acquire(entry)
        try:
            held = entry.fetcher.pages.held
            bad = await damaged(entry.fetcher)
            repaired, error = 0, ""
            for page in bad:
                try:
                    await entry.fetcher.gather(await entry.fetcher.flights([(page, page + 1)]))
                except DomaError as e:
                    error = e.message
                    break
                repaired += entry.fetcher.pages.present(page * PAGE, page * PAGE + 1)
        finally:
            release()
        return Scrubbed(path, held, len(bad), repaired, error)

    def _holding(self, path: str) -> Holding:
        key, shelf = self._origins.place(path).key, self._catalogue.shelf
        entry = self._catalogue.get(key)
        record = entry.record if entry is not None else shelf.record(key)
        if record is None:
            return Holding(path, None, 0, complete=False, version=None, accessed=None)
        held = entry.fetcher.pages.held if entry is not None else shelf.held(record)
        accessed = entry.accessed if entry is not None else shelf.accessed(key)
        cached = min(record.size, held * PAGE)
        return Holding(path, record.size, cached, cached == record.size, record.shown_version, accessed)

    def _below(self, path: str) -> list[str]:
        """Keys of all objects below a directory of the cache's name space. Blocks."""
        self._catalogue.keeper.total()
        return [row.key for row in self._catalogue.keeper.index.below(path)]

    async def _give_up(self, key: str, entry: Entry | None, *, immediate: bool) -> int:
        if immediate:
            taken = await self._catalogue.take(key)
            return taken[1] if taken else 0
        record = self._catalogue.shelf.record(key)
        if record is None:
            return 0
        if entry is not None:
            entry.touched = entry.accessed = 0.0
        self._catalogue.shelf.touch(key, 0.0)
        return self._catalogue.shelf.used(record)
