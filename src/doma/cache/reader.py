"""Hands out the bytes of one version: from memory, from disk after a check, from the origin.

Source: cache contract §3 (never promise what is not delivered), F8, F9, F13, C1-C3, §9.
"""

import asyncio
from collections.abc import Callable, Mapping

from doma.cache.extents import PAGE, Run, Stride, pages_of, without
from doma.cache.fetch import Context, Fetcher
from doma.cache.flight import AHEAD_SHARE, Flight
from doma.cache.freshness import patience
from doma.cache.hot import Seen, count_hit
from doma.cache.origins import caller
from doma.cache.passing import in_time
from doma.cache.source import account
from doma.core.errors import (
    DomaError,
    Forbidden,
    NotCached,
    NotFound,
    RangeNotSatisfiable,
    Unauthenticated,
)
from doma.monitor.opens import Cached
from doma.store.protocol import Buffer, Stat

CHECKSUM = 3019
"""How root:// calls bytes that do not fit their checksum."""
_TURNS = 16
"""How often a read looks again before it goes straight to the origin."""
_KEEP = 1.0
"""Seconds for which a reader that does not read keeps what was fetched ahead of it in memory."""


class CachedReader:
    """One version of one object, open for reading; a :class:`doma.store.protocol.Reader`.

    Args:
        fetcher: Brings what is missing.
        seen: Freshness at the open.
        only_if_cached: Refuse what is not here instead of fetching it.
        context: What all fetches share.
        closed: Called once at close.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        seen: Seen,
        *,
        only_if_cached: bool,
        context: Context,
        closed: Callable[[], None],
    ) -> None:
        self._fetcher = fetcher
        self._pages = fetcher.pages
        self._stat = fetcher.stat
        self._seen = seen
        self._only = only_if_cached
        self._context = context
        self._closed: Callable[[], None] | None = closed
        self._stride = Stride(cautious=fetcher.guided)
        self._ahead: list[Flight] = []
        self._ahead_to = 0
        self._landing: list[Flight] = []
        self._reads = self._rested = 0
        self._rotten: set[int] = set()
        """Pages that were found damaged."""
        self._timer: asyncio.TimerHandle | None = None
        self._end = self._stat.size
        self._limit = int(context.budget.limit * AHEAD_SHARE)
        self._patience = patience.get()
        self.cached = Cached()
        """Where the bytes came from; a door may put its own in place, to add up several opens."""

    @property
    def stat(self) -> Stat:
        return self._stat

    @property
    def headers(self) -> Mapping[str, str]:
        """Answer headers for the whole object; :meth:`headers_for` knows about one range."""
        return self.headers_for(0, self._stat.size)

    def headers_for(self, start: int, stop: int) -> Mapping[str, str]:
        """Answer headers ``Age``, ``Cache-Status``, ``X-Cache`` for the bytes ``[start, stop)``."""
        missing = self.missing(start, stop)
        span = pages_of(start, stop)
        whole = span[1] - span[0]
        present = "HIT" if not missing else "MISS" if missing == whole else "PARTIAL"
        return self._seen.headers(present)

    def missing(self, start: int, stop: int) -> int:
        """How many 4 KiB pages of ``[start, stop)`` are not in the cache."""
        return sum(last - first for first, last in self._pages.missing(pages_of(start, stop)))

    def require(self, start: int, stop: int) -> None:
        """Before an answer is begun: raise NotCached if a fetch would be needed but is not allowed (F13)."""
        if self._only and (missing := self.missing(start, stop)):
            raise NotCached(
                f"{self._stat.path}: {missing} pages of bytes {start}-{stop} are not in the cache; "
                "ask without only-if-cached",
                path=self._stat.path,
            )

    def expect(self, stop: int) -> None:
        """Say where this reader will end (the end of a client's range): nothing is fetched ahead beyond."""
        self._end = min(stop, self._stat.size)
        self._stride.cautious = False

    def prepare(self, start: int, stop: int) -> Mapping[str, str]:
        self.require(start, stop)
        self.expect(stop)
        return self.headers_for(start, stop)

    async def read(self, start: int, stop: int) -> Buffer:
        """Exactly the bytes ``[start, stop)`` of this version.

        Raises:
            NotCached: ``only-if-cached`` and not all there.
            OriginFailed: the origin has another version, or gave a wrong answer.
            RangeNotSatisfiable: beyond the end.
        """
        if not 0 <= start <= stop <= self._stat.size:
            raise RangeNotSatisfiable(
                f"{self._stat.path}: bytes {start}-{stop} are outside 0-{self._stat.size}",
                size=self._stat.size,
            )
        self._reads += 1
        ahead = self._stride.ahead(start, stop, self._limit)
        # Whoever goes on need not wait for the disk; at the end of the range all of it is there.
        soon = ahead > 0 and stop < self._end
        if self._landing and not soon:
            await asyncio.wait([flight.data for flight in self._landing])
            self._landing.clear()
        if (view := self._pages.view(start, stop)) is not None:
            self._hit(start, stop, ahead)
            return view
        if (data := self._flown(start, stop, ahead, soon=soon)) is not None:
            return data
        account.set(self.cached)  # what is fetched for this read is fetched on its account
        async with in_time(self._stat.path, self._patience):
            data = await self._fetched(start, stop, ahead, soon=soon)
        self._fetcher.seen(start, stop)
        return data

    def interleaved(self, start: int, stop: int, data: Buffer | None = None) -> memoryview | None:
        """As :meth:`doma.cache.pages.PageFile.interleaved`: what is here, with its stored checksums (C13)."""
        wire = self._pages.interleaved(start, stop, data)
        if wire is not None and data is None:
            self._hit(start, stop, self._stride.ahead(start, stop, self._limit))
        return wire

    def doubt(self, start: int, stop: int) -> None:
        """As :meth:`doma.cache.pages.PageFile.doubt`: the client says that these bytes arrived damaged."""
        self._pages.doubt(start, stop)

    async def close(self) -> None:
        self._let_go()
        if self._closed is not None:
            self.cached.held, self.cached.accesses = self._pages.held, self._fetcher.opens
            self._closed()
            self._closed = None

    def _hit(self, start: int, stop: int, ahead: int) -> None:
        """Bytes were delivered from memory."""
        count_hit(self._context.counters, self.cached, self._pages, start, stop)
        self._read_ahead(stop, ahead)
        self._fetcher.seen(start, stop)

    def _flown(self, start: int, stop: int, ahead: int, *, soon: bool) -> Buffer | None:
        """What came a moment ago: it need not come from the disk again."""
        parts, at, kept = [], start, True
        for flight in self._ahead:
            if (part := flight.view(at, stop, soon=soon)) is not None:
                parts.append(part)
                at += len(part)
                kept = kept and flight.kept
                if soon:
                    self._note(flight)
                if at == stop:
                    break
        if at < stop:
            return None
        if kept:
            self._hit(start, stop, ahead)
        else:
            self._context.counters.bypass += stop - start
            self.cached.bypass += stop - start
            self._read_ahead(stop, ahead)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _note(self, flight: Flight) -> None:
        """Its bytes were given out and may not be on disk yet."""
        if not flight.data.done() and flight not in self._landing:
            self._landing = [f for f in self._landing if not f.data.done()]
            self._landing.append(flight)

    async def _fetched(self, start: int, stop: int, ahead: int, *, soon: bool) -> Buffer:
        held: list[Flight] = []
        try:
            for _ in range(_TURNS):
                try:
                    return await self._read(start, stop, ahead, soon=soon)
                except _Again as e:
                    held += e.held
            return await self._fetcher.direct(start, stop)
        except DomaError as e:
            first, last = pages_of(start, stop)
            if any(first <= page < last for page in self._rotten):
                e.detail["xrootd"] = CHECKSUM  # what is here is damaged, and the origin is away (C3)
            raise
        finally:
            self._fetcher.let_go(held)

    async def _read(self, start: int, stop: int, ahead: int, *, soon: bool) -> Buffer:
        run = pages_of(start, stop)
        buffer: bytearray | None = None
        missing = self._pages.missing(run)
        if missing != [run]:
            try:
                buffer, missing = await self._load(run)
            except TimeoutError:
                try:
                    return await self._fetcher.direct(start, stop)
                except DomaError:
                    buffer, missing, bad = await self._fetcher.load(run)
                    self._rotten.update(bad)
        if buffer is not None and not missing:
            count_hit(self._context.counters, self.cached, self._pages, start, stop)
            self._read_ahead(stop, ahead)
            return memoryview(buffer)[start - run[0] * PAGE : stop - run[0] * PAGE]
        self.require(start, stop)
        flights = await self._fetcher.flights(missing)
        left = [r for m in missing for r in without(m, [flight.run for flight in flights])]
        if any(self._pages.missing(run) != [run] for run in left):
            raise _Again(flights)
        if left:
            buffer = None  # there is no memory just now: it is not held while the origin is waited for
        self._read_ahead(stop, ahead)
        return await self._assemble(start, stop, run, buffer, missing, flights, soon=soon)

    async def _load(self, run: Run) -> tuple[bytearray, list[Run]]:
        """What is here of a run, and what is not. Raises TimeoutError: the origin may be quicker (O13)."""
        try:
            async with asyncio.timeout(None if self._only else self._fetcher.disk_patience):
                buffer, missing, bad = await self._fetcher.load(run)
        except TimeoutError:
            self._context.counters.disk_late += 1
            raise
        self._rotten.update(bad)
        return buffer, missing

    async def _assemble(
        self,
        start: int,
        stop: int,
        run: Run,
        buffer: bytearray | None,
        missing: list[Run],
        flights: list[Flight],
        *,
        soon: bool,
    ) -> Buffer:
        """Lay fetched bytes over the ones that are here; ``buffer`` begins at the run's first page."""
        mine = caller()
        try:
            parts = await self._fetcher.gather(flights, soon=soon)
        except (Unauthenticated, Forbidden, NotFound) as e:
            if any(flight.by != mine for flight in flights):
                raise _Again([]) from e
            raise
        gaps = [left for m in missing for left in without(m, [f.run for f in flights])]
        straight = [await self._fetcher.direct(max(a * PAGE, start), min(b * PAGE, stop)) for a, b in gaps]
        if gaps == [run]:
            return straight[0]
        if buffer is None and missing != [run]:
            try:
                buffer, lacking = await self._load(run)
            except TimeoutError:
                return await self._fetcher.direct(start, stop)
            if any(without(lost, missing) for lost in lacking):
                raise _Again([])  # damaged
        base, end = run[0] * PAGE, min(run[1] * PAGE, self._stat.size)
        missed = bypassed = 0
        for flight in flights:
            self._note(flight)
            amount = self._missed(flight, missing, start, stop)
            missed, bypassed = missed + amount * flight.kept, bypassed + amount * (not flight.kept)
        if buffer is None and len(flights) == 1 and without(run, [flights[0].run]) == []:
            base, out = flights[0].run[0] * PAGE, memoryview(parts[0])
        else:
            out = memoryview(buffer if buffer is not None else bytearray(end - base))
            for flight, part in zip(flights, parts, strict=True):
                at = flight.run[0] * PAGE
                a, b = max(at, base), min(flight.run[1] * PAGE, end)
                out[a - base : b - base] = memoryview(part)[a - at : b - at]
        direct = sum(map(len, straight))
        for (first, _), data in zip(gaps, straight, strict=True):
            a = max(first * PAGE, start)
            out[a - base : a - base + len(data)] = data
        self._context.counters.miss += missed
        self._context.counters.bypass += bypassed
        self.cached.miss += missed
        self.cached.bypass += bypassed
        less = missed + bypassed + direct
        count_hit(self._context.counters, self.cached, self._pages, start, stop, less=less)
        return out[start - base : stop - base]

    def _missed(self, flight: Flight, missing: list[Run], start: int, stop: int) -> int:
        """The bytes of this read that the flight was started for and nobody counted yet."""
        total = 0
        for first, last in missing:
            fresh = flight.claim((first, last))
            a = max(first, flight.run[0]) * PAGE
            b = min(last, flight.run[1]) * PAGE
            total += max(0, min(fresh * PAGE, min(b, stop) - max(a, start)))
        return total

    def _read_ahead(self, stop: int, window: int) -> None:
        if not window or self._only:
            self._let_go()
            return
        self._drop([f for f in self._ahead if f.task.done() and f.run[1] * PAGE <= stop])
        # By halves of the window: one that slides with every read would become a request per read.
        if stop + window // 2 <= self._ahead_to:
            return
        end = min(self._end, stop + window, self._fetcher.reach(stop))
        first, last = -(-max(stop, self._ahead_to) // PAGE), -(-end // PAGE)
        if first < last:
            self._ahead += self._fetcher.ahead((first, last))
            self._ahead_to = end
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_KEEP, self._rest)

    def _rest(self) -> None:
        """A reader that has paused holds no bytes in memory."""
        self._timer = None
        if self._reads == self._rested:
            self._drop([f for f in self._ahead if f.task.done()])
        self._rested = self._reads
        if self._ahead:
            self._timer = asyncio.get_running_loop().call_later(_KEEP, self._rest)

    def _drop(self, flights: list[Flight]) -> None:
        for flight in flights:
            self._ahead.remove(flight)
            self._fetcher.release(flight)

    def _let_go(self) -> None:
        self._drop(list(self._ahead))
        self._ahead_to = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Again(Exception):
    """Look again: pages landed meanwhile, or a fetch failed by the rights of another caller.

    Args:
        held: Flights that go on, for the next look to find.
    """

    def __init__(self, held: list[Flight]) -> None:
        self.held = held
