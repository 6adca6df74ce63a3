"""What is here, checked and in memory: handed out without waiting, with what is said of its freshness.

Source: cache contract §3, §9 (bytes are counted once), §10; RFC 9211.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from doma.cache.extents import PAGE, Run, pages_of
from doma.cache.pages import PageFile
from doma.cache.stats import Counters
from doma.monitor.opens import Cached
from doma.store.protocol import PIECE, Buffer, Stat


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer may say about freshness at the moment of the open."""

    age: float
    left: float
    """Seconds of freshness left; negative when served stale."""
    stale: bool
    validated: bool
    """Whether the origin was asked for this open."""

    def headers(self, present: str) -> dict[str, str]:
        """``Age``, ``Cache-Status`` (RFC 9211), ``X-Cache``; with ``Warning`` when stale.

        Args:
            present: ``HIT``, ``MISS``, ``PARTIAL`` or ``BYPASS``.
        """
        how = {
            "HIT": "hit",
            "MISS": "fwd=miss; stored",
            "PARTIAL": "fwd=partial; stored",
            "BYPASS": "fwd=bypass",
        }[present]
        out = {"Age": str(max(0, int(self.age))), "X-Cache": present}
        status = ["doma", how]
        if present != "BYPASS":
            status.append(f"ttl={int(self.left)}")
        if self.stale:
            status.append("detail=origin-unreachable")
            out["Warning"] = '111 doma "Revalidation Failed"'
        elif self.validated:
            status.append("detail=validated")
        out["Cache-Status"] = "; ".join(status)
        return out

    def lines(self) -> bytes:
        """The headers of a hit as on the wire."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.headers("HIT").items()).encode(
            "latin-1"
        )


class Shown(Protocol):
    """What is served of one version without waiting."""

    stat: Stat
    opens: int

    @property
    def pages(self) -> PageFile: ...

    def seen(self, start: int, stop: int) -> None:
        """Somebody reads these bytes."""

    async def load(self, run: Run) -> tuple[bytearray, list[Run], list[int]]:
        """As :meth:`PageFile.load`."""


class HotObject:
    """A :class:`doma.store.protocol.Hot`: what is here, checked and in memory, without waiting."""

    __slots__ = (
        "_counters",
        "_fetcher",
        "_from",
        "_pages",
        "_seen",
        "_to",
        "cached",
        "lines",
        "single",
        "stat",
    )

    def __init__(self, fetcher: Shown, seen: Seen, counters: Counters, lines: bytes) -> None:
        self._fetcher = fetcher
        self._pages = fetcher.pages
        self.stat = fetcher.stat
        self._seen = seen
        self._counters = counters
        self._from = self._to = 0
        self.lines = lines
        """:attr:`headers` as on the wire."""
        self.single = True
        """It serves one answer: bytes that are asked for again, after a short write, are counted once."""
        self.cached: Cached | None = None
        """Where a door adds up what it took, if it does."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Answer headers of a hit."""
        return self._seen.headers("HIT")

    def view(self, start: int, stop: int) -> memoryview | None:
        # A door may ask for the span of many small ranges at once; what it then takes of it is not known, so
        # long spans are refused here and its ranges are counted one by one.
        if not 0 <= start <= stop <= self.stat.size or stop - start > PIECE:
            return None
        view = self._pages.view(start, stop)
        if view is not None:
            self._count(start, stop)
        return view

    def views(self, spans: Sequence[tuple[int, int]]) -> list[memoryview] | None:
        """:meth:`view` of several spans of one answer, none empty, for the price of one; None unless all."""
        size = self.stat.size
        for start, stop in spans:
            if not 0 <= start < stop <= size:
                return None
        views = self._pages.views(spans)
        if views is not None:
            self._count_all(spans)
        return views

    def fileno(self, start: int, stop: int) -> int | None:
        if not 0 <= start <= stop <= self.stat.size:
            return None
        found = self._pages.fileno(start, stop)
        if found is not None:
            self._count(start, stop)
        return found

    async def load(self, start: int, stop: int) -> memoryview | None:
        """What left memory while an answer ran, from the disk after a check (F9); None: it is not there."""
        run = pages_of(start, stop)
        buffer, missing, _ = await self._fetcher.load(run)
        if missing:
            return None
        self._count(start, stop)
        return memoryview(buffer)[start - run[0] * PAGE : stop - run[0] * PAGE]

    def interleaved(self, start: int, stop: int, data: Buffer | None = None) -> memoryview | None:
        """As :meth:`CachedReader.interleaved`."""
        if not 0 <= start <= stop <= self.stat.size:
            return None
        wire = self._pages.interleaved(start, stop, data)
        if wire is not None and data is None:
            self._count(start, stop)
        return wire

    def _count_all(self, spans: Sequence[tuple[int, int]]) -> None:
        total = ahead = 0
        look_ahead, seen = self._pages.ahead_left, self._fetcher.seen
        for start, stop in spans:
            total += stop - start
            if look_ahead:
                ahead += self._pages.take_ahead(pages_of(start, stop))
            seen(start, stop)
        ahead = min(total, ahead * PAGE)
        self._counters.prefetched += ahead
        self._counters.hit += total - ahead
        if self.cached is not None:
            self.cached.hit += total
            self._tell(self.cached)

    def _count(self, start: int, stop: int) -> None:
        """Count each byte of one answer once, though a door asks again after a short write."""
        if not (self.single and self._from <= start <= self._to):
            self._from, self._to = start, start
        if stop > self._to:
            cached, counters = self.cached, self._counters
            if cached is not None and not cached.held:
                self._tell(cached)
            if self._pages.ahead_left:
                count_hit(counters, cached, self._pages, self._to, stop)
            else:
                counters.hit += stop - self._to
                if cached is not None:
                    cached.hit += stop - self._to
            self._fetcher.seen(self._to, stop)
            self._to = stop

    def _tell(self, cached: Cached) -> None:
        """Say once what the cache has of the file."""
        if not cached.held:
            cached.held, cached.accesses = self._pages.held, self._fetcher.opens


def count_hit(
    counters: Counters, cached: Cached | None, pages: PageFile, start: int, stop: int, less: int = 0
) -> None:
    """Count delivered bytes, less those that were counted otherwise, as hit or as fetched ahead."""
    here = stop - start - less
    ahead = min(here, pages.take_ahead(pages_of(start, stop)) * PAGE) if pages.ahead_left else 0
    counters.prefetched += ahead
    counters.hit += here - ahead
    if cached is not None:
        cached.hit += here
