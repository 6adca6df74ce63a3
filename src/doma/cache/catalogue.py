"""The objects of one cache: which are in memory, which versions are current, how much room there is.

Everything here runs on the event loop; only the folder is touched in threads. Purge order: what was evicted
"first in line", then least recent access; never an object with open readers. Usage counts allocated blocks.

Source: cache contract §7 "Purge rules", F9, C4, C5, C9.
"""

import asyncio
import heapq
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from doma.cache.entry import Entry
from doma.cache.extents import PAGE
from doma.cache.fetch import Context, Fetcher
from doma.cache.origins import Place
from doma.cache.record import Record
from doma.cache.replicas import Answer
from doma.cache.shelf import Item, Shelf
from doma.core.config import Cache
from doma.core.events import Emit, Event
from doma.store.protocol import Stat

log = logging.getLogger(__name__)

_LOADED = 512
"""Objects without readers that are kept open in memory."""
_MARKS = 32 << 20
"""Bytes of page marks (10 a page) that objects without readers may hold in memory."""
_BATCH = 10_000
"""Objects that one purge considers."""
_SURVEYS = 3
"""How often a purge counts again because objects came or went meanwhile."""
_TOUCH = 60.0
"""Seconds between notes of the last access on disk."""


@dataclass(frozen=True, slots=True)
class Victim:
    """An object that a purge takes, or would take."""

    path: str
    used: int
    accessed: float
    reason: str


class Catalogue:
    """All objects of one cache folder."""

    def __init__(self, shelf: Shelf, config: Cache, clock: Callable[[], float], emit: Emit) -> None:
        self.shelf = shelf
        self._change = 0
        self._counted: int | None = None
        self._config = config
        self._clock = clock
        self._emit = emit
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._reserved = 0
        self._purging: asyncio.Task[list[Victim]] | None = None
        self._hopeless = float("-inf")
        self.context: Context

    @property
    def used(self) -> int:
        """Allocated bytes on disk: what a walk counted, and the changes since."""
        return max(0, (self._counted or 0) + self._change)

    def count(self, total: int) -> None:
        """Take the result of the first walk, from its thread; one of a purge knows better."""
        if self._counted is None:
            self._counted = total

    @property
    def open_objects(self) -> int:
        """Objects with open readers."""
        return sum(1 for entry in self._entries.values() if entry.readers)

    def get(self, key: str) -> Entry | None:
        """An object that is in memory."""
        return self._entries.get(key)

    def find(self, place: Place) -> Entry | None:
        """An object, from memory or disk; None if it is not here or its files cannot be trusted."""
        entry = self._entries.get(place.key)
        if entry is not None and not entry.fetcher.pages.orphaned:
            return entry
        record = self.shelf.record(place.key)
        if record is None:
            if entry is not None:
                self._retire(entry)
            return None
        return self._load(place, record, self.shelf.accessed(place.key))

    async def adopt(self, place: Place, stat: Stat, answer: Answer, lifetime: float) -> Entry:
        """Begin a new version of an object; readers of the old one keep what they have (F9).

        Raises:
            OSError: the disk is full or broken; nothing changed.
        """
        now = self._clock()
        record = Record(
            origin=place.origin,
            path=place.path,
            size=stat.size,
            version=stat.version,
            modified=stat.modified,
            generation=secrets.token_hex(8),
            validated=now,
            age=answer.age,
            cache_control=answer.cache_control,
            lifetime=lifetime,
            checksums=dict(stat.checksums),
            replica=answer.replica,
        )
        old = self.find(place)
        await asyncio.to_thread(self.shelf.write, record, now)
        if old is None:
            self._change += PAGE
        else:
            self._retire(old)
            self.context.counters.replaced += 1
            self._emit(Event("object.replaced", place.shown, {"version": stat.version, "size": stat.size}))
        entry = self._load(place, record, now)
        if entry is None:
            raise OSError(f"no page file for {record.key}")
        return entry

    async def renew(self, entry: Entry, answer: Answer) -> None:
        """Note that an object was found unchanged."""
        checksums = {**entry.record.checksums, **(answer.stat.checksums if answer.stat else {})}
        control = answer.cache_control or (entry.record.cache_control if answer.stat is None else "")
        record = replace(
            entry.record, validated=self._clock(), age=answer.age, cache_control=control, checksums=checksums
        )
        said, noted = entry.record, entry.noted
        entry.renew(record)
        same = (said.checksums, said.cache_control) == (record.checksums, record.cache_control)
        # An instant of validation that is a little old costs one question after a restart, no more.
        if not same or record.validated - noted >= min(_TOUCH, (entry.expires - record.validated) / 10):
            await self.note(entry, record)

    async def note(self, entry: Entry, record: Record) -> None:
        """Write down what is known of an object; if the disk refuses, it holds until the restart only."""
        entry.record, entry.noted = record, record.validated
        try:
            await asyncio.to_thread(self.shelf.write, record, entry.accessed)
        except OSError as e:
            self.context.counters.disk_errors += 1
            log.warning("cache record %s cannot be written: %s", record.key, e)

    def remove(self, entry: Entry) -> int:
        """Forget an object; gives the disk bytes freed. Open readers keep what is in memory of it."""
        self.shelf.forget(entry.record.key)
        self._retire(entry)
        self._change -= PAGE
        return entry.used + PAGE

    def acquire(self, entry: Entry) -> Callable[[], None]:
        """Count a reader; call what comes back when it closes."""
        entry.readers += 1
        if self._entries.get(entry.record.key) is entry:  # else purged a moment ago: its file lives on for it
            self._entries.move_to_end(entry.record.key)

        def release() -> None:
            entry.readers -= 1
            self._touch(entry)

        return release

    def _trim(self, newest: Entry) -> None:
        """Let objects go from memory that nobody has used for long."""
        marks = sum(10 * entry.fetcher.pages.count for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= _LOADED and marks <= _MARKS:
                break
            if entry is not newest and not entry.readers and not entry.fetcher.busy:
                self._touch(entry, now=True)
                marks -= 10 * entry.fetcher.pages.count
                del self._entries[key]

    async def close(self) -> None:
        """Stop fetches and purge, note last accesses."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
        for entry in self._entries.values():
            await entry.fetcher.close()
            self._touch(entry, now=True)
        self._entries.clear()

    async def room(self, amount: int) -> bool:
        """Hold room for bytes on disk, after a purge if need be; False: there is none."""
        if self.used + self._reserved + amount > self._config.size:
            await self._make_room()
        elif self.used + self._reserved + amount > self._config.size * self._config.high:
            self._start_purge()
        if self.used + self._reserved + amount > self._config.size:
            return False
        self._reserved += amount
        return True

    def landed(self, fetcher: Fetcher, amount: int) -> None:
        """Give held room back and count what the file really takes."""
        self._reserved -= amount
        entry = self._entries.get(fetcher.record.key)
        if entry is not None and entry.fetcher is fetcher:
            self._weigh(entry)

    async def purge(self, *, dry_run: bool = False) -> list[Victim]:
        """Free disk down to the low mark; gives the objects that went, in order, with the reason."""
        for _ in range(_SURVEYS):
            before = self._change
            oldest, total = await asyncio.to_thread(self._survey)
            self._counted = total - before
            if self._change == before:  # else some of it was seen before it changed, some after
                break
        excess = total - int(self._config.size * self._config.low)
        gone: list[Victim] = []
        for item in sorted(oldest, key=lambda item: self._last(item)):
            if excess <= 0:
                break
            entry = self._entries.get(item.key)
            if entry is not None and (entry.readers or entry.fetcher.busy):
                continue
            record = entry.record if entry is not None else self.shelf.record(item.key)
            if record is None:
                continue
            reason = "evicted, first in line" if item.accessed == 0 else "least recently read"
            gone.append(Victim(record.path, item.used, self._last(item), reason))
            excess -= item.used
            if not dry_run:
                await self._take(record, entry, item.used)
        return gone

    async def take(self, key: str) -> tuple[str, int] | None:
        """Remove an object now; its path and the bytes freed. None: not here."""
        entry = self._entries.get(key)
        record = entry.record if entry is not None else self.shelf.record(key)
        if record is None:
            return None
        used = entry.used + PAGE if entry is not None else self.shelf.used(record)
        await self._take(record, entry, used)
        return record.path, used

    async def _take(self, record: Record, entry: Entry | None, used: int) -> None:
        if entry is not None:
            self._retire(entry)
        self.shelf.forget(record.key)
        await asyncio.to_thread(self.shelf.drop, record.key, record.generation)
        self._change -= used if entry is None else PAGE
        self.context.counters.purged += used
        self._emit(Event("object.evicted", record.path, {"origin": record.origin, "bytes": used}))

    def _survey(self) -> tuple[list[Item], int]:
        """The objects that were read least recently, and the disk bytes of all."""
        total = 0
        oldest: list[tuple[float, str, Item]] = []
        for item in self.shelf.walk():
            total += item.used
            row = (-item.accessed, item.key, item)
            if len(oldest) < _BATCH:
                heapq.heappush(oldest, row)
            else:
                heapq.heappushpop(oldest, row)
        return [item for _, _, item in oldest], total

    def _last(self, item: Item) -> float:
        entry = self._entries.get(item.key)
        return entry.accessed if entry is not None and item.accessed > 0 else item.accessed

    def _start_purge(self) -> asyncio.Task[list[Victim]] | None:
        if self._purging is not None and not self._purging.done():
            return self._purging
        if self._clock() - self._hopeless < _TOUCH:
            return None
        self._purging = asyncio.create_task(self.purge())
        self._purging.add_done_callback(self._purged)
        return self._purging

    async def _make_room(self) -> None:
        task = self._start_purge()
        if task is not None:
            await asyncio.wait([task])

    def _purged(self, task: asyncio.Task[list[Victim]]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        if not task.result() and self.used > self._config.size * self._config.low:
            self._hopeless = self._clock()
            log.warning(
                "%s: the cache is full (%d of %d bytes) and all of it is in use; reads pass through",
                self.shelf.root,
                self.used,
                self._config.size,
            )

    def _load(self, place: Place, record: Record, accessed: float) -> Entry | None:
        try:
            pages = self.shelf.pages(record)
        except OSError as e:
            self.context.counters.disk_errors += 1
            log.warning("cache pages %s cannot be opened: %s", record.key, e)
            return None
        entry = Entry(record, Fetcher(place, record, pages, self.context), accessed)
        entry.used = pages.used
        former = self._entries.pop(record.key, None)
        if former is not None:  # its files were deleted by another hand
            self._change -= former.used
        self._entries[record.key] = entry
        self._trim(entry)
        return entry

    def _retire(self, entry: Entry) -> None:
        """Take a version out of the catalogue; its file lives on for those who have it open."""
        key = entry.record.key
        if self._entries.get(key) is entry:
            del self._entries[key]
        self.context.connections.drop(key, entry.record.generation)
        self.shelf.drop(key, entry.record.generation)
        self._change -= entry.used

    def _weigh(self, entry: Entry) -> None:
        used = entry.fetcher.pages.used
        self._change += used - entry.used
        entry.used = used

    def _touch(self, entry: Entry, *, now: bool = False) -> None:
        if entry.accessed - entry.touched >= (0.001 if now else _TOUCH):
            self.shelf.touch(entry.record.key, entry.accessed)
            entry.touched = entry.accessed
