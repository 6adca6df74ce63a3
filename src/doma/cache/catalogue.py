"""The objects of one cache: which are in memory, which versions are current, how much room there is.

Everything here runs on the event loop; only the folder and its index are touched in threads. What a purge
takes is decided in ``purge``; an object with open readers never goes. Usage counts allocated blocks.

Source: cache contract §7 "Purge rules", F9, C4, C5, C9.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from doma.auth.model import bearer
from doma.cache.entry import Entry
from doma.cache.extents import PAGE
from doma.cache.fetch import Context, Fetcher
from doma.cache.keeper import Keeper
from doma.cache.origins import Place
from doma.cache.purge import Rules, Victim, plan
from doma.cache.record import Record
from doma.cache.replicas import Answer
from doma.cache.shelf import Shelf
from doma.cache.usage import Usage
from doma.core.config import Cache
from doma.core.events import Emit, Event
from doma.store.protocol import Stat

log = logging.getLogger(__name__)

_LOADED = 512
"""Objects without readers that are kept open in memory."""
_MARKS = 32 << 20
"""Bytes of page marks (10 a page) that objects without readers may hold in memory."""
_BATCH = 100
"""Objects that a purge removes at one go."""
_ROUNDS = 3
"""How often a purge plans anew because what it wanted to take was in use meanwhile."""
_TOUCH = 60.0
"""Seconds between notes of the last access on disk."""


class Catalogue:
    """All objects of one cache folder.

    Args:
        shelf: The folder.
        config: Section ``cache``.
        clock: Unix seconds.
        emit: Takes ``object.replaced`` and ``object.evicted``.
        shown: Origin and path there to the path in the cache.
    """

    def __init__(
        self, shelf: Shelf, config: Cache, clock: Callable[[], float], emit: Emit,
        shown: Callable[[str, str], str],
    ) -> None:  # fmt: skip
        self.shelf = shelf
        self.usage = Usage(shelf)
        """Disk bytes of the whole folder."""
        self.keeper = Keeper(shelf, self.usage, shown, self._loaded)
        self.vo: Callable[[str], str] = lambda token: ""
        """The VO of a verified token; empty: not known."""
        self._reserved = 0
        self._config = config
        self._clock = clock
        self._emit = emit
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._adopting: set[str] = set()
        """Keys whose new record is being written."""
        self._leaving: dict[str, asyncio.Task[list[Victim]]] = {}
        """Keys whose files are being unlinked, and what does it."""
        self._purging: asyncio.Task[list[Victim]] | None = None
        self._hopeless = float("-inf")
        self._rules = Rules(config.quotas, config.vo_quotas, config.age)
        self.context: Context

    def _loaded(self, key: str) -> bool:
        return key in self._entries or key in self._adopting or key in self._leaving

    @property
    def open_objects(self) -> int:
        """Objects with open readers."""
        return sum(entry.readers > 0 for entry in self._entries.values())

    def get(self, key: str) -> Entry | None:
        """An object that is in memory."""
        return self._entries.get(key)

    def in_use(self, key: str) -> bool:
        """Whether somebody reads an object, or it is being fetched or replaced."""
        entry = self._entries.get(key)
        reading = entry is not None and (entry.readers > 0 or entry.fetcher.busy)
        return reading or key in self._adopting or key in self._leaving

    def find(self, place: Place) -> Entry | None:
        """An object, from memory or disk; None if it is not here or its files cannot be trusted."""
        entry = self._entries.get(place.key)
        if entry is not None and not entry.fetcher.pages.orphaned:
            return entry
        if (
            place.key in self._adopting or place.key in self._leaving
        ):  # its record may be there already, its entry is about to be
            return None
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
            origin=place.origin, path=place.path, lifetime=lifetime, vo=self.vo(bearer.get() or ""),
            size=stat.size, version=stat.version, modified=stat.modified, checksums=dict(stat.checksums),
            generation=secrets.token_hex(8), validated=now, age=answer.age, replica=answer.replica,
            cache_control=answer.cache_control,
        )  # fmt: skip
        if (task := self._leaving.get(record.key)) is not None:
            await asyncio.wait([task])  # else what is being unlinked would be the new record
        old = self.find(place)
        self._adopting.add(record.key)
        try:
            await asyncio.to_thread(self.shelf.write, record, now)
        finally:
            self._adopting.discard(record.key)
        if old is None:
            self.usage.add(PAGE)
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
        self.keeper.note(entry)
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
        self.keeper.gone(entry.record.key)
        self.usage.add(-PAGE)
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

    def spared(self, origin: str) -> bool:
        """Let an origin's objects go from memory, not from disk; False: some are in use."""
        found = [entry for entry in self._entries.values() if entry.record.origin == origin]
        if any(self.in_use(entry.record.key) for entry in found):
            return False
        for entry in found:
            self.context.connections.drop(entry.record.key, entry.record.generation)
            self.let_go(entry)
        return True

    async def close(self) -> None:
        """Stop fetches and purge, note last accesses."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)
        for entry in self._entries.values():
            await entry.fetcher.close()
            self._touch(entry, now=True)
        await asyncio.to_thread(self.keeper.close)
        self._entries.clear()

    async def room(self, amount: int) -> bool:
        """Hold room for bytes on disk, after a purge if need be; False: there is none."""
        if self.usage.total + self._reserved + amount > self._config.size:
            await self._make_room()
        elif self.usage.total + self._reserved + amount > self._config.size * self._config.high:
            self._start_purge()
        if self.usage.total + self._reserved + amount > self._config.size:
            return False
        self._reserved += amount
        return True

    def landed(self, fetcher: Fetcher, amount: int) -> None:
        """Give held room back and count what the file really takes."""
        self._reserved -= amount
        entry = self._entries.get(fetcher.record.key)
        if entry is not None and entry.fetcher is fetcher:
            self._weigh(entry)

    def described(self, key: str, generation: str) -> None:
        """Count the layout of a version that was just written; one whose version is gone goes, too."""
        entry = self._entries.get(key)
        if entry is not None and entry.record.generation == generation:
            self._weigh(entry)
        else:
            self.shelf.drop_layout(key, generation)

    async def purge(self, *, dry_run: bool = False, old_only: bool = False) -> list[Victim]:
        """Free disk down to the low mark; what went, or would go, in order, with the reason."""
        gone: list[Victim] = []
        for _ in range(_ROUNDS):
            planned, excess = await self._plan(old_only=old_only)
            if dry_run:
                return planned
            gone += (went := await self.remove_all(planned))
            if not went or sum(victim.used for victim in went) >= excess:
                break
        return gone

    async def take(self, key: str, reason: str = "command") -> tuple[str, int] | None:
        """Remove an object now; its path and the bytes freed. None: not here."""
        entry = self._entries.get(key)
        record = entry.record if entry is not None else self.shelf.record(key)
        if record is None:
            self.keeper.gone(key)
            return None
        used = entry.used + PAGE if entry is not None else self.shelf.used(record)
        self._forget(key, entry, used, reason)
        self.shelf.forget(key)
        self._emit(Event("object.evicted", record.path, {"origin": record.origin, "bytes": used}))
        await asyncio.to_thread(self.shelf.drop, record.key, record.generation)
        return record.path, used

    async def revoke(self, key: str) -> int:
        """End everybody's reading of an object; bytes freed, 0: it was not in memory and is still here."""
        entry = self._entries.get(key)
        if entry is None:
            return 0
        entry.fetcher.broken = True
        await entry.fetcher.close()
        entry.fetcher.pages.revoke()
        taken = await self.take(key)
        return taken[1] if taken else 0

    def let_go(self, entry: Entry) -> None:
        """Keep an object in memory no longer that was brought there for a moment only."""
        key = entry.record.key
        if self._entries.get(key) is entry and not entry.readers and not entry.fetcher.busy:
            self.keeper.note(entry)
            del self._entries[key]

    async def _plan(self, *, old_only: bool) -> tuple[list[Victim], int]:
        """What to remove, and how many bytes have to go."""
        busy = {key for key in self._entries if self.in_use(key)} | self._adopting
        for entry in self._entries.values():
            self.keeper.note(entry)
        now, low = self._clock(), int(self._config.size * self._config.low)

        def decide() -> tuple[list[Victim], int]:
            total = self.keeper.total()
            excess = 0 if old_only else total - low
            return plan(self.keeper.index, self._rules, excess, now, busy), excess

        return await asyncio.to_thread(decide)

    async def remove_all(self, victims: list[Victim]) -> list[Victim]:
        """Remove objects, a few at a time; those that came into use meanwhile stay."""
        gone: list[Victim] = []
        for at in range(0, len(victims), _BATCH):
            batch = [victim for victim in victims[at : at + _BATCH] if not self.in_use(victim.key)]
            for victim in batch:
                self._forget(victim.key, self._entries.get(victim.key), victim.used, victim.reason)
            # Nobody finds them from here on; to look for the files and to unlink them takes its time.
            task = asyncio.create_task(self._clear(batch))
            self._leaving |= dict.fromkeys([victim.key for victim in batch], task)
            await asyncio.wait([task])
            gone += task.result()
        return gone

    async def _clear(self, victims: list[Victim]) -> list[Victim]:
        records = await asyncio.to_thread(self.shelf.clear, [victim.key for victim in victims])
        for one, record in zip(victims, records, strict=True):
            del self._leaving[one.key]
            if record is not None:
                self._emit(Event("object.evicted", record.path, {"origin": record.origin, "bytes": one.used}))
        return [victim for victim, record in zip(victims, records, strict=True) if record is not None]

    def _forget(self, key: str, entry: Entry | None, used: int, reason: str) -> None:
        if entry is not None:
            self._retire(entry)
        self.keeper.gone(key)
        self.usage.add(-(used if entry is None else PAGE))
        self.context.counters.evict(reason, used)

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
        if not task.result() and self.usage.total > self._config.size * self._config.low:
            self._hopeless = self._clock()
            text = "%s: the cache is full (%d of %d bytes), all of it in use or pinned; reads pass through"
            log.warning(text, self.shelf.root, self.usage.total, self._config.size)

    def _load(self, place: Place, record: Record, accessed: float) -> Entry | None:
        try:
            pages = self.shelf.pages(record)
        except OSError as e:
            self.context.counters.disk_errors += 1
            log.warning("cache pages %s cannot be opened: %s", record.key, e)
            return None
        entry = Entry(record, Fetcher(place, record, pages, self.context), accessed)
        entry.used = self._disk(entry)
        former = self._entries.pop(record.key, None)
        if former is not None:  # its files were deleted by another hand
            self.usage.add(-former.used)
        self._entries[record.key] = entry
        self.keeper.note(entry)
        self._trim(entry)
        return entry

    def _retire(self, entry: Entry) -> None:
        """Take a version out of the catalogue; its file lives on for those who have it open."""
        key = entry.record.key
        if self._entries.get(key) is entry:
            del self._entries[key]
            self.keeper.gone(key)
        self.context.connections.drop(key, entry.record.generation)
        self.shelf.drop(key, entry.record.generation)
        self.usage.add(-entry.used)

    def _disk(self, entry: Entry) -> int:
        return entry.fetcher.pages.used + self.shelf.layout(entry.record.key, entry.record.generation)

    def _weigh(self, entry: Entry) -> None:
        used = self._disk(entry)
        self.usage.add(used - entry.used)
        entry.used = used
        self.keeper.note(entry)

    def _touch(self, entry: Entry, *, now: bool = False) -> None:
        if entry.accessed - entry.touched >= (0.001 if now else _TOUCH):
            self.shelf.touch(entry.record.key, entry.accessed)
            entry.touched = entry.accessed
            if self._entries.get(entry.record.key) is entry:
                self.keeper.note(entry)
