"""Brings files, or byte ranges of them, into the cache before anybody reads them.

A request is queued at once or refused; then it runs by itself, with the token of who asked, until it is done
or given up. What it fetches is fetched ahead: it counts as ``prefetch``, and readers' misses go before it.

Source: cache contract §7 (prestage); Pelican's ``/pelican/api/v1.0/prestage``.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from doma.cache.columns import Layouts
from doma.cache.entry import Entry
from doma.cache.extents import PAGE, Run, joined, pages_of, pieces
from doma.cache.fetch import Fetcher
from doma.cache.flight import Flight
from doma.core.errors import BadQuery, DomaError, ServiceUnavailable, StorageFull, TooManyRequests

log = logging.getLogger(__name__)

TELL = 2.0
"""Seconds between two reports."""
_AT_ONCE = 4
"""Requests of one file that are under way."""
_LOOK = 0.05
"""Seconds until memory, or a fetch by somebody else, is looked at again."""
_PATIENCE = 120.0
"""Seconds without any progress after which a file is given up."""

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is."""

    path: str
    status: Literal["queued", "active", "success", "failure"]
    offset: int
    """Bytes of what was asked for that are here."""
    size: int
    """Bytes that were asked for; 0 until they are known."""
    error: DomaError | None = None


class Staging:
    """One file on its way; its task runs whether or not anybody looks."""

    def __init__(self, path: str) -> None:
        self.now = Progress(path, "queued", 0, 0)
        self.over = asyncio.Event()
        self.task: asyncio.Task[None]

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """The progress now, every 2 s, and the outcome."""
        while not self.over.is_set():
            yield self.now
            try:
                async with asyncio.timeout(TELL):
                    await self.over.wait()
            except TimeoutError:
                continue
        yield self.now

    async def done(self) -> Progress:
        """Wait for the outcome. Raises what went wrong."""
        await self.over.wait()
        if self.now.error is not None:
            raise self.now.error
        return self.now

    def cancel(self) -> None:
        """Give it up; what came stays. Idempotent."""
        self.task.cancel()


class Prestager:
    """The queue of one cache.

    Args:
        enter: Path to the current version, held until the second part of the answer is called.
        layouts: Knows where columns lie; None: nobody does.
        running: Files at once.
        waiting: Files that may queue.
    """

    def __init__(
        self,
        enter: Callable[[str], Awaitable[tuple[Entry, Callable[[], None]]]],
        layouts: Layouts | None,
        running: int,
        waiting: int,
    ) -> None:
        self._enter = enter
        self._layouts = layouts
        self._slots = asyncio.Semaphore(running)
        self._most = running + waiting
        self._jobs: set[Staging] = set()

    @property
    def queued(self) -> int:
        """Files that are queued or being brought."""
        return len(self._jobs)

    def begin(
        self, paths: Sequence[str], columns: Sequence[str] | None = None, tree: str | None = None
    ) -> list[Staging]:
        """Queue files; all of them or none.

        Args:
            paths: In the cache's name space.
            columns: Globs of those that are wanted; None: whole files.
            tree: The tree or RNTuple that they are in; None: any.

        Raises:
            TooManyRequests: the queue is full.
            BadQuery: columns, and this cache knows none.
        """
        if columns is not None and self._layouts is None:
            raise BadQuery("columns: this cache knows none (cache.foresight = false); prestage whole files")
        if len(self._jobs) + len(paths) > self._most:
            raise TooManyRequests(
                f"prestage: {len(self._jobs)} files are queued, {self._most} may be; try later",
                retry_after=30,
            )
        out = []
        for path in paths:
            job = Staging(path)
            self._jobs.add(job)
            job.task = asyncio.create_task(self._run(job, columns, tree))
            job.task.add_done_callback(partial(self._ended, job))
            out.append(job)
        return out

    async def close(self) -> None:
        """Give up everything."""
        tasks = [job.task for job in self._jobs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: Staging, columns: Sequence[str] | None, tree: str | None) -> None:
        path = job.now.path
        try:
            async with self._slots:
                entry, release = await self._enter(path)
                try:
                    spans = [(0, entry.record.size)]
                    if columns is not None and self._layouts is not None:
                        spans = await self._layouts.columns_ranges(entry.fetcher, columns, tree)
                    async for offset, size in _bring(entry.fetcher, spans):
                        job.now = Progress(path, "active", offset, size)
                finally:
                    release()
            job.now = Progress(path, "success", job.now.size, job.now.size)
        except DomaError as e:
            job.now = Progress(path, "failure", job.now.offset, job.now.size, e)

    def _ended(self, job: Staging, task: asyncio.Task[None]) -> None:
        now = job.now
        if now.status not in {"success", "failure"}:  # cancelled, perhaps before it began; or a fault of ours
            if not task.cancelled():
                log.error("%s: prestage failed", now.path, exc_info=task.exception())
            gone = ServiceUnavailable(f"{now.path}: was given up before it was here; ask again")
            job.now = Progress(now.path, "failure", now.offset, now.size, gone)
        self._jobs.discard(job)
        job.over.set()


async def _bring(fetcher: Fetcher, spans: Iterable[Span]) -> AsyncIterator[Span]:
    """Fetch what is missing; gives bytes that are here and bytes wanted, again and again."""
    runs = [piece for run in joined((pages_of(*span) for span in spans), gap=1) for piece in pieces(run)]
    size, offset = sum(_length(fetcher, run) for run in runs), 0
    yield offset, size
    window: deque[tuple[Run, list[Flight]]] = deque()
    try:
        for run in [*runs, *[(0, 0)] * _AT_ONCE]:
            window.append((run, fetcher.ahead(run)))
            if len(window) <= _AT_ONCE:
                continue
            first, held = window[0]
            await _landed(fetcher, first, held)
            window.popleft()
            if length := _length(fetcher, first):
                offset += length
                yield offset, size
    finally:
        for _, held in window:
            fetcher.let_go(held)


async def _landed(fetcher: Fetcher, run: Run, held: list[Flight]) -> None:
    """Wait until the pages of a run are here; flights that are held already are let go."""
    left = _PATIENCE
    while True:
        try:
            await fetcher.gather(held)
        finally:
            kept = all(flight.kept for flight in held)
            held.clear()
        if not kept:
            raise StorageFull(f"{fetcher.place.shown}: the cache has no room; evict, unpin or enlarge it")
        if not fetcher.pages.missing(run):
            return
        held += fetcher.ahead(run)
        if not held:  # somebody else fetches it, or there is no memory just now
            if left <= 0:
                raise ServiceUnavailable(f"{fetcher.place.shown}: nothing of it came for a while; try again")
            left -= _LOOK
            await asyncio.sleep(_LOOK)


def _length(fetcher: Fetcher, run: Run) -> int:
    return max(0, min(run[1] * PAGE, fetcher.record.size) - run[0] * PAGE)
