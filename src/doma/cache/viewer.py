"""What a cache folder holds, seen by a process that does not own it: hits, and nothing else.

One process owns the folder: it alone asks origins, writes, purges. Any other one may serve what is surely
current: a fresh object of the fixed origin whose pages are here, in memory, and fit their checksums. The rest
it leaves to the owner. A record that the owner replaces or removes is another file at the next look; pages
that he adds are found by the file's change time. So nothing is served longer than the owner would.

Source: cache contract C15, C1, F7, F9.
"""

import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from doma.cache.extents import PAGE, Run, pages_of
from doma.cache.freshness import Control, control, fresh_until, parse
from doma.cache.hot import HotObject, Seen
from doma.cache.origins import Origins
from doma.cache.pages import _ONES, _TICK, PageFile
from doma.cache.record import LARGEST, Record, decode
from doma.cache.stats import Counters
from doma.core.errors import DomaError, OriginFailed, ServiceUnavailable
from doma.net.exchange import SMALL
from doma.store.memory import MemoryStore
from doma.store.protocol import PIECE, Buffer, Reader, Stat
from doma.store.wrap import Wrapped
from doma.store.writing import check_span

T = TypeVar("T")

_OBJECTS = 512
"""Objects that are kept open."""
_MARKS = 32 << 20
"""Bytes of page marks (10 a page) of those."""


class SharedPages(PageFile):
    """The pages of one version, which another process writes.

    Raises:
        OSError: there is no such file.
    """

    def __init__(self, path: Path, size: int) -> None:
        path.stat()  # else the owner's file would be made
        super().__init__(path, size)

    def warm(self, start: int, stop: int) -> bool:
        """Check the pages of ``[start, stop)`` if they are here and in memory; whether they fit."""
        first, last = pages_of(start, stop)
        self._unchanged()
        there = self._present[first:last]
        if there.find(0) >= 0 or time.time_ns() - self._seen <= _TICK:
            return False
        buffer = bytearray(min(last * PAGE, self.size) - first * PAGE)
        try:
            got = os.preadv(self._fd, [buffer], first * PAGE, os.RWF_NOWAIT)
        except OSError:
            return False
        return got == len(buffer) and not self._check(buffer, first, there, settled=True)

    def forget(self, page: int) -> None:
        """Leave a damaged page to the owner, who will find it himself."""
        self._present[page] = self._checked[page] = 0

    def _unchanged(self) -> bool:
        if super()._unchanged():
            return True
        there = os.pread(self._fd, self.count, self._present_at).translate(_ONES)  # before the sums
        self._crcs[:] = os.pread(self._fd, 4 * self.count, self._crcs_at)
        self._present[:] = there
        return False


class Viewed:
    """One version of one object as it was found on disk."""

    __slots__ = ("_said", "fresh_until", "opens", "pages", "record", "stamp", "stat")

    def __init__(self, record: Record, pages: SharedPages, shown: str, stamp: tuple[int, int]) -> None:
        self.record, self.pages, self.stamp = record, pages, stamp
        self.stat = record.stat(shown)
        self.fresh_until = fresh_until(
            parse(record.cache_control), record.validated, record.age, record.lifetime, record.key
        )
        self.opens = 0
        self._said: tuple[int, Seen, bytes] | None = None

    def said(self, now: float) -> tuple[int, Seen, bytes]:
        """What is said of a hit in this second, and how it stands in an answer's head."""
        if self._said is None or self._said[0] != int(now):
            age = max(0.0, now - self.record.validated) + self.record.age
            seen = Seen(age, self.fresh_until - now, stale=False, validated=False)
            self._said = int(now), seen, seen.lines()
        return self._said

    def seen(self, start: int, stop: int) -> None:
        """Nothing is fetched ahead from here."""

    async def load(self, run: Run) -> tuple[bytearray, list[Run], list[int]]:
        """As :meth:`PageFile.load`."""
        return await self.pages.load(run)


class ViewedObject(HotObject):
    """A :class:`doma.store.protocol.Hot` over shared pages, which are checked here before their first use."""

    __slots__ = ("_shared",)

    def __init__(self, viewed: Viewed, now: float, counters: Counters) -> None:
        _, seen, lines = viewed.said(now)
        super().__init__(viewed, seen, counters, lines)
        self._shared = viewed.pages

    def view(self, start: int, stop: int) -> memoryview | None:
        if not self._may(start, stop):
            return None
        view = super().view(start, stop)
        return super().view(start, stop) if view is None and self._shared.warm(start, stop) else view

    def views(self, spans: Sequence[tuple[int, int]]) -> list[memoryview] | None:
        views = super().views(spans)
        if views is None and all(0 <= start < stop <= self.stat.size for start, stop in spans):
            warm = all(stop - start <= PIECE and self._shared.warm(start, stop) for start, stop in spans)
            views = super().views(spans) if warm else None
        return views

    def fileno(self, start: int, stop: int) -> int | None:
        if not self._may(start, stop):
            return None
        found = super().fileno(start, stop)
        return super().fileno(start, stop) if found is None and self._shared.warm(start, stop) else found

    def _may(self, start: int, stop: int) -> bool:
        """Whether to look: not for the first piece of a long answer that lacks something further on."""
        if not 0 <= start <= stop <= self.stat.size or stop - start > PIECE:
            return False
        return stop == self.stat.size or bool(stop % SMALL) or self._shared.complete


class ViewReader:
    """Reads the pieces of a begun answer that fell out of memory; nothing else is asked of it."""

    def __init__(self, viewed: Viewed) -> None:
        self._viewed = viewed

    @property
    def stat(self) -> Stat:
        return self._viewed.stat

    async def read(self, start: int, stop: int) -> Buffer:
        check_span(self.stat, start, stop)
        run = pages_of(start, stop)
        buffer, missing, _ = await self._viewed.pages.load(run)
        if missing:
            raise OriginFailed(f"{self.stat.path}: bytes {start}-{stop} left the cache; read them again")
        return memoryview(buffer)[start - run[0] * PAGE : stop - run[0] * PAGE]

    async def close(self) -> None:
        pass


class CacheView(Wrapped):
    """A cache that another process owns, as far as it can be served without asking him.

    Args:
        root: The cache folder.
        origin: The name of the fixed origin.
        clock: Unix seconds.
    """

    def __init__(self, root: Path, origin: str, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(MemoryStore())
        self._objects = root / "objects"
        self._origins = Origins(MemoryStore(), name=origin)
        self._clock = clock
        self._known: OrderedDict[str, Viewed] = OrderedDict()
        self.counters = Counters()
        self._told = 0
        self._touched: dict[str, float] = {}

    def peek(self, path: str) -> ViewedObject | None:
        if control.get() is not Control.NORMAL:
            return None
        try:
            place = self._origins.place(path)
        except DomaError:
            return None
        viewed, now = self._look(place.key, path), self._clock()
        if viewed is None or now >= viewed.fresh_until:
            return None
        self._touched[place.key] = now
        return ViewedObject(viewed, now, self.counters)

    async def open(self, path: str) -> Reader:
        viewed = self._look(self._origins.place(path).key, path)
        if viewed is None:
            raise _not_ours(path)
        return ViewReader(viewed)

    async def around(self, call: str, work: Callable[[], Awaitable[T]], *, again: bool) -> T:
        raise _not_ours(call)

    def list(self, path: str) -> AsyncIterator[Stat]:
        raise _not_ours(path)

    def report(self) -> dict[str, object]:
        """What was served since the last report that arrived: bytes, and when which object was read last."""
        return {"hit": self.counters.hit - self._told, "touched": dict(self._touched)}

    def reported(self, said: Mapping[str, object]) -> None:
        """That report arrived."""
        hit, touched = said["hit"], said["touched"]
        assert isinstance(hit, int)
        assert isinstance(touched, dict)
        self._told += hit
        for key, instant in touched.items():
            if self._touched.get(key) == instant:
                del self._touched[key]

    def _look(self, key: str, shown: str) -> Viewed | None:
        """What the folder holds of an object now."""
        name = f"{self._objects}/{key[:2]}/{key}"
        known = self._known.get(key)
        try:
            found = os.stat(name)
            stamp = found.st_ino, found.st_ctime_ns
            if known is not None and known.stamp == stamp:
                self._known.move_to_end(key)
                return known
            with open(name, "rb") as file:
                data = file.read(LARGEST + 1)
            record = decode(data, key) if len(data) <= LARGEST else None
            if record is not None:
                same = known is not None and known.record.generation == record.generation
                pages = known.pages if known is not None and same else self._pages(record)
                self._known[key] = Viewed(record, pages, shown, stamp)
                self._trim()
                return self._known.get(key)
        except OSError:
            pass  # it is gone, or on its way
        self._known.pop(key, None)
        return None

    def _pages(self, record: Record) -> SharedPages:
        name = self._objects / record.key[:2] / f"{record.key}.{record.generation}"
        return SharedPages(name, record.size)

    def _trim(self) -> None:
        marks = sum(10 * viewed.pages.count for viewed in self._known.values())
        while len(self._known) > 1 and (len(self._known) > _OBJECTS or marks > _MARKS):
            marks -= 10 * self._known.popitem(last=False)[1].pages.count


def _not_ours(what: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"{what}: only the process that owns the cache does this; try again")
