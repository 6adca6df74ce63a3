"""The background scrub: reads everything at leisure and finds the damage that no reader meets (C12).

It goes through the objects in the order of their keys and remembers where it was over restarts. A damaged
page is fetched again without a token; where the origin wants one, it is missing from then on, and its next
reader has it fetched. What is being looked at can be purged and evicted as ever.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from doma.cache.catalogue import Catalogue
from doma.cache.entry import Entry
from doma.cache.extents import PAGE, pieces
from doma.cache.origins import Origins
from doma.cache.upkeep import mended
from doma.core.errors import DomaError
from doma.core.events import Emit, Event

log = logging.getLogger(__name__)

_PAUSE = 3600.0
"""Seconds between two passes."""
_NAMED = 100
"""Damaged objects that a report names."""


@dataclass(slots=True)
class Pass:
    """What one pass over all objects has found so far."""

    began: float = 0.0
    """Unix seconds."""
    ended: float = 0.0
    """Unix seconds; 0: it is under way."""
    objects: int = 0
    bytes: int = 0
    damaged: int = 0
    """Pages that did not fit their checksum."""
    repaired: int = 0
    lost: int = 0
    """Damaged pages that could not be fetched again now."""
    names: list[str] = field(default_factory=list)
    """The first 100 damaged objects."""
    key: str = ""
    """The last object that was looked at."""


class Scrubber:
    """One cache's scrub.

    Args:
        catalogue: The objects.
        origins: Their places.
        rate: Bytes per second.
        clock: Unix seconds.
        emit: Takes ``cache.scrubbed`` after each pass that found damage.
    """

    def __init__(
        self, catalogue: Catalogue, origins: Origins, rate: float, clock: Callable[[], float], emit: Emit
    ) -> None:
        self._catalogue = catalogue
        self._origins = origins
        self._rate = rate
        self._clock = clock
        self._emit = emit
        self.now = Pass()
        """The pass under way, or the last one."""

    async def run(self) -> None:
        """Pass after pass, until cancelled."""
        index = self._catalogue.keeper.index
        kept = await asyncio.to_thread(index.noted, "scrub")
        if kept:
            self.now = Pass(**json.loads(kept))
        while True:
            if self.now.ended:
                await asyncio.sleep(max(0.0, self.now.ended + _PAUSE - self._clock()))
            await self.once()

    async def once(self) -> Pass:
        """One pass, or the rest of the one that was interrupted."""
        index = self._catalogue.keeper.index
        if self.now.ended or not self.now.began:
            self.now = Pass(began=self._clock())
        with suppress(sqlite3.Error):  # what could not be written down is met at the next pass
            await asyncio.to_thread(self._catalogue.keeper.flush)
        while (row := await asyncio.to_thread(index.after, self.now.key)) is not None:
            try:
                await self._look(row.path)
            except DomaError as e:  # an origin that is no longer allowed
                log.info("%s: is not scrubbed: %s", row.path, e.message)
            self.now.key = row.key
            self.now.objects += 1
            await asyncio.to_thread(index.note, "scrub", json.dumps(asdict(self.now)))
        self.now.ended = self._clock()
        await asyncio.to_thread(index.note, "scrub", json.dumps(asdict(self.now)))
        if self.now.damaged:
            self._emit(Event("cache.scrubbed", str(self._catalogue.shelf.root.name), asdict(self.now)))
        return self.now

    async def _look(self, path: str) -> None:
        place = self._origins.place(path)
        known = self._catalogue.get(place.key) is not None
        entry = self._catalogue.find(place)
        if entry is None:
            return
        try:
            pages = entry.fetcher.pages
            for run in pieces((0, pages.count)):
                if pages.orphaned:
                    return
                if pages.missing(run) == [run]:
                    continue
                _, _, bad = await entry.fetcher.load(run, passing=True)
                if bad:
                    await self._mend(entry, bad)
                self.now.bytes += (run[1] - run[0]) * PAGE
                await asyncio.sleep((run[1] - run[0]) * PAGE / self._rate)
        finally:
            if not known:
                self._catalogue.let_go(entry)

    async def _mend(self, entry: Entry, bad: list[int]) -> None:
        path = entry.fetcher.place.shown
        release = self._catalogue.acquire(entry)
        try:
            repaired, error = await mended(entry, bad)
        finally:
            release()
        self.now.damaged += len(bad)
        self.now.repaired += repaired
        self.now.lost += len(bad) - repaired
        if path not in self.now.names:
            self.now.names = [*self.now.names, path][:_NAMED]
        log.warning("%s: scrub found %d damaged pages, mended %d; %s", path, len(bad), repaired, error)
