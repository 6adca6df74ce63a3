"""Brings missing pages from an origin: each once, for any number of readers, within a memory budget.

A *flight* is one request of at most 1 MiB that is under way. Readers join flights that cover their pages;
the last one that gives up cancels it (case R26). A flight runs with the token of who started it, and its
verdict (401, 403, 404) is that caller's alone: others ask again with their own.

Source: cache contract §9; O1, O7, O10, F8, F16, C9, C11.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

from doma.cache.connections import Connections, heard
from doma.cache.extents import GAP, PAGE, Run, joined, pages_of, pieces, without
from doma.cache.flight import Budget, Flight
from doma.cache.foresight import Foresight
from doma.cache.lanes import Lanes, Turn
from doma.cache.origins import Place, caller
from doma.cache.pages import PageFile
from doma.cache.prefetch import Prefetcher
from doma.cache.record import Record
from doma.cache.source import Source, account
from doma.cache.stats import Counters
from doma.core.errors import DomaError, NotFound, Replaced, ServiceUnavailable
from doma.store.protocol import Buffer

log = logging.getLogger(__name__)

DISK = 0.1
"""Seconds that readers wait for the cache disk at least, even where the origin was faster (O13)."""
SLOW = 0.5
"""Seconds that readers wait for it before they turn to the origin instead."""
JOIN = 0.002
"""Seconds that a miss waits for neighbours while other fetches of the object are under way."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all fetches of one cache share."""

    counters: Counters
    budget: Budget
    connections: Connections
    lanes: Lanes
    rng: Random
    by_size: bool
    """Whether a replica of the same size is taken for the same where nothing else can tell."""
    room: Callable[[int], Awaitable[bool]]
    """Whether so many more bytes may go to disk; makes room if it can and holds it if so."""
    landed: Callable[["Fetcher", int], None]
    """Called after that, with the bytes that room was held for, whether or not they got there."""
    distrust: Callable[["Fetcher", DomaError], None]
    """Called when the origin no longer has, or contradicts, the version being fetched."""
    foresee: Callable[["Fetcher"], Foresight | None]
    """Says what knows which bytes will be wanted next."""
    passing: dict[object, str] = field(default_factory=dict)
    """Open readers of what is not kept, and the origin of each."""


class Fetcher:
    """Fetches of one version of one object."""

    def __init__(self, place: Place, record: Record, pages: PageFile, context: Context) -> None:
        self.place = place
        self.record = record
        self.pages = pages
        self.stat = record.stat(place.shown)
        """What clients are told of it."""
        self.broken = False
        """Set when the origin has contradicted this version: nothing more of it is fetched or stored."""
        self.whole = False
        """Set when the last page landed, so that the whole is checked once."""
        self.opens = 0
        """Since it is in memory."""
        self.source = Source(
            place, record, context.lanes, context.connections, context.counters, context.rng.random,
            by_size=context.by_size,
        )  # fmt: skip
        self._context = context
        self._foresight: Foresight | None = None
        self._looked = False
        self._prefetcher: Prefetcher | None = None
        self._flights: list[Flight] = []
        self._queue: list[tuple[list[Run], asyncio.Future[list[Flight]]]] = []

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._flights or self._queue)

    async def flights(self, runs: list[Run]) -> list[Flight]:
        """The flights that bring these missing pages, started where needed; the caller holds them.

        A page that none of them covers has landed meanwhile, or there is no memory to fetch it.
        """
        flying = [flight.run for flight in self._under_way()]
        if not flying and not self._queue:
            self._launch(runs)
            return self._held(runs)
        if not any(without(run, flying) for run in runs):
            return self._held(runs)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Flight]] = loop.create_future()
        if not self._queue:
            loop.call_later(JOIN, self._dispatch)
        self._queue.append((runs, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():  # it came, and nobody is there to hear it
                self.let_go(answer.result())
            raise

    def ahead(self, run: Run) -> list[Flight]:
        """Start to fetch what is missing of a run that nobody asked for yet; the caller holds the flights."""
        wanted = self.pages.missing(run)
        missing = [r for m in wanted for r in without(m, [f.run for f in self._under_way()])]
        held = [flight for r in missing for piece in pieces(r) if (flight := self._start(piece, []))]
        for flight in held:
            flight.wanted += 1
        return held

    async def gather(self, flights: list[Flight], *, soon: bool = False) -> list[Buffer]:
        """The bytes of flights that the caller holds, until then (``soon``: not yet on disk, maybe)."""
        for flight in flights:
            self._context.lanes.hurry(flight.turn)
        try:
            return [await asyncio.shield(f.come if soon else f.data) for f in flights]
        except asyncio.CancelledError:
            if any(flight.data.cancelled() for flight in flights) and not _cancelled():
                raise ServiceUnavailable(
                    f"{self.place.shown}: what was on its way was given up; try again"
                ) from None
            raise
        finally:
            self.let_go(flights)

    def let_go(self, flights: list[Flight]) -> None:
        """Want flights no longer."""
        for flight in flights:
            self.release(flight)

    def release(self, flight: Flight) -> None:
        """Want a flight no longer; the last to give up on it cancels it."""
        flight.wanted -= 1
        if flight.wanted <= 0 and not flight.landing and not flight.task.done():
            if flight in self._flights:
                self._flights.remove(flight)
            flight.task.cancel()
        self._settle(flight)

    async def direct(self, start: int, stop: int) -> Buffer:
        """Bytes straight from the origin, for one caller, kept nowhere (O10)."""
        data = await self._read(start, stop, Turn(caller()))
        self._context.counters.bypass += stop - start
        if (cached := account.get()) is not None:
            cached.bypass += stop - start
        return data

    async def content(self, start: int, stop: int) -> Buffer:
        """Bytes of this version for the cache's own use, through the cache; at most 8 MiB at once.

        What is missing is fetched, and counted as ``prefetch``.
        """
        run = pages_of(start, stop)
        for _ in range(2):
            buffer, missing, _ = await self.load(run)
            if not missing:
                return memoryview(buffer)[start - run[0] * PAGE : stop - run[0] * PAGE]
            held = [flight for m in missing for flight in self.ahead(m)]
            try:
                await self.gather(self._held(missing))
            finally:
                self.let_go(held)
        return await self._read(start, stop, Turn(caller()))

    async def load(self, run: Run, *, passing: bool = False) -> tuple[bytearray, list[Run], list[int]]:
        """As :meth:`PageFile.load`; what the disk did is counted, and damage is reported."""
        pages, counters = self.pages, self._context.counters
        try:
            found = await pages.load(run, passing=passing)
        finally:
            if pages.waited:
                counters.disk_seconds += pages.waited
                counters.disk_errors += pages.refused
                pages.waited, pages.refused = 0.0, 0
        if found[2]:
            self.damaged(found[2])
        return found

    @property
    def disk_patience(self) -> float:
        """Seconds after which a reader who waits for the disk is better served by the origin (O13)."""
        return max(SLOW, 2 * self._context.connections.latency(self.source.origin))

    def look_ahead(self) -> None:
        """Somebody opened it: find out, once, whether what will be wanted next can be foreseen."""
        self.opens += 1
        if not self._looked:
            self._looked = True
            self._foresight = self._context.foresee(self)

    @property
    def guided(self) -> bool:
        """Whether something else may know better than plain read-ahead what will be wanted."""
        return self._foresight is not None

    def seen(self, start: int, stop: int) -> None:
        """Somebody reads these bytes: fetch what will be wanted next."""
        if self._foresight is None:
            return
        if self._prefetcher is not None:
            self._prefetcher.read()
        if wanted := self._foresight.seen(start, stop):
            self.prefetch(wanted)

    def reach(self, stop: int) -> int:
        """How far beyond a read that ended there plain read-ahead makes sense."""
        return self.record.size if self._foresight is None else self._foresight.reach(stop)

    def prefetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Fetch these bytes when nothing better is to be done, while somebody reads the object."""
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self.ahead, self.release)
            self._prefetcher.read()
        self._prefetcher.add(spans)

    def damaged(self, pages: list[int]) -> None:
        """Count and report pages whose bytes did not fit their checksum; they are missing now."""
        self._context.counters.repair += len(pages) * PAGE
        if (cached := account.get()) is not None:
            cached.repair += len(pages) * PAGE
            cached.bad_pages += len(pages)
        for page in pages[:8]:
            log.warning("%s: damaged in the cache at offset %d; fetched again", self.place.shown, page * PAGE)

    async def close(self) -> None:
        """Stop everything under way."""
        if self._prefetcher is not None:
            await self._prefetcher.close()
        for flight in self._flights:
            if not flight.landing:
                flight.task.cancel()
        await asyncio.gather(*(flight.task for flight in self._flights), return_exceptions=True)

    @staticmethod
    def _settle(flight: Flight) -> None:
        """Return a flight's memory once it has ended and nobody holds its bytes."""
        if flight.wanted <= 0 and flight.task.done() and flight.give_back is not None:
            flight.give_back()
            flight.give_back = None

    def _dispatch(self) -> None:
        queue, self._queue = self._queue, []
        waiting = [(runs, answer) for runs, answer in queue if not answer.done()]
        self._launch([run for runs, _ in waiting for run in runs])
        for runs, answer in waiting:
            answer.set_result(self._held(runs))

    def _launch(self, runs: list[Run]) -> None:
        flying = [flight.run for flight in self._under_way()]
        asked = [left for run in runs for left in without(run, flying)]
        # Where the columns are known, what lies between two reads is another column.
        end = max((last for _, last in asked), default=0) * PAGE
        gap = GAP if self.reach(end) >= min(end, self.record.size) + GAP else PAGE
        for run in joined(asked, GAP if self._foresight is None else gap):
            for missing in self.pages.missing(run):  # the gap between two runs may be here already
                for left in without(missing, flying):
                    for piece in pieces(left):
                        self._start(piece, asked)

    def _held(self, runs: list[Run]) -> list[Flight]:
        """The flights over these runs, held from here on: else who lets go meanwhile would cancel them."""
        flights = self._under_way()
        found = [f for f in flights if any(f.run[0] < last and first < f.run[1] for first, last in runs)]
        for flight in found:
            flight.wanted += 1
        return found

    def _under_way(self) -> list[Flight]:
        # One that has ended may still stand in the list for a moment, with a verdict that was another's.
        return [flight for flight in self._flights if not flight.task.done()]

    def _start(self, run: Run, asked: list[Run]) -> Flight | None:
        length = min(run[1] * PAGE, self.record.size) - run[0] * PAGE
        origin = self.source.origin
        if not self._context.budget.take(origin, length, ahead=not asked):
            return None
        flight = Flight(run, caller(), asked, urgent=bool(asked))
        flight.give_back = partial(self._context.budget.give, origin, length, ahead=not asked)
        # The task copies the caller's context and with it the token that the origin sees.
        flight.task = asyncio.create_task(self._fly(flight))
        self._flights.append(flight)

        def landed(task: asyncio.Task[None]) -> None:
            flight.ended(task)
            if flight in self._flights:
                self._flights.remove(flight)
            heard(task)
            self._settle(flight)

        flight.task.add_done_callback(landed)
        return flight

    async def _fly(self, flight: Flight) -> None:
        counters = self._context.counters
        start, stop = flight.run[0] * PAGE, min(flight.run[1] * PAGE, self.record.size)
        ahead, cached = flight.unasked(), account.get()
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        data = await self._read(start, stop, flight.turn)
        flight.landing = True
        unasked = min(sum(last - first for first, last in ahead) * PAGE, stop - start)
        counters.prefetch += unasked
        if cached is not None:
            cached.prefetch += unasked
        for run in ahead:
            self.pages.mark_ahead(run)
        flight.kept = not self.broken and await self._context.room(len(data))
        if flight.kept:
            flight.come.set_result(data)
            saving = loop.time()
            late = loop.call_later(max(DISK, saving - began), flight.give, data)
            try:
                await self.pages.save(flight.run[0], data)
                counters.stored += len(data)
                if cached is not None:
                    cached.stored += len(data)
            except OSError as e:
                flight.kept = False
                counters.disk_errors += 1
                log.warning("%s: the cache disk refused %d bytes: %s", self.place.shown, len(data), e)
            finally:
                late.cancel()
                counters.disk_seconds += loop.time() - saving
                self._context.landed(self, len(data))
        flight.give(data)

    async def _read(self, start: int, stop: int, turn: Turn) -> Buffer:
        if self.broken:
            raise Replaced(
                f"{self.place.shown}: the origin has another version than the one being read; open it again",
                path=self.place.shown,
            )
        try:
            return await self.source.read(start, stop, turn)
        except Replaced as e:
            if not self.broken:
                self.broken = True
                self._context.distrust(self, e)
            raise
        except DomaError as e:
            if isinstance(e, NotFound):
                self._context.distrust(self, e)
            self._context.counters.origin_errors += 1
            raise


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
