"""Datasets: what one can ask of them, and the loop that looks up what was asked for.

A look-up is claimed work: a process that is killed in one loses its lease, and another takes it. What was
found, and what the waiting requests become by it, is written in one transaction.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from doma.columns import dataset_repo as repo
from doma.columns.dataset_repo import File, Found, Name, Work
from doma.columns.finder import Did, Finder, FoundFile, Lookup, chosen
from doma.columns.model import Grant, Input
from doma.core import config
from doma.core.errors import BadQuery, BadRequest, ConfigError, DomaError, NotFound, TimedOut
from doma.db.engine import Database

T = TypeVar("T")

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a catalogue in trouble is asked."""
AT_ONCE = 8
"""Look-ups of this process."""
LOOK = 5.0
"""Seconds between two looks for work of other processes."""
LEASE = 15.0
"""Seconds for which a killed process keeps its look-ups from others."""
TIDY = 3600.0
AGAIN = 60.0
"""Seconds that lie at least between two look-ups of one dataset."""

Settled = Callable[[Connection, int, float], None]
"""``(tx, dataset, now)``: moves on the requests that waited for a dataset, in the transaction of its end."""


class Datasets:
    """Datasets and their look-ups.

    Args:
        db: The database, migrated.
        finders: What is offered; closed by :meth:`stop`.
        section: Our section of the configuration.
        settled: What the end of a look-up means for requests.
        clock: Unix seconds.
    """

    def __init__(
        self,
        db: Database,
        finders: Sequence[Finder],
        section: config.Datasets,
        settled: Settled,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._section, self._settled, self._clock = db, section, settled, clock
        self._finders: Mapping[str, Finder] = {f.word: f for f in finders}
        self._name = f"{socket.gethostname()[:60]}/{os.getpid()}/{secrets.token_hex(4)}"
        self._wake = asyncio.Event()
        self._running: dict[int, tuple[Work, asyncio.Task[None]]] = {}
        self._fresh: dict[int, tuple[float, asyncio.Task[dict[str, tuple[str, ...]]]]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self.after: list[Callable[[], None]] = []
        """Called when requests were moved on."""

    @property
    def words(self) -> tuple[str, ...]:
        """Schemes that are offered."""
        return tuple(self._finders)

    @property
    def age(self) -> float:
        """Seconds for which an answer counts."""
        return self._section.age

    def named(self, did: str, grant: Grant) -> Name:
        """What a data identifier means, without looking it up. Raises BadQuery."""
        parsed = Did.parse(did, self._section.default)
        finder = self._finders.get(parsed.word)
        if finder is None:
            offered = ", ".join(f"{w}://" for w in self._finders) or "none; give the files as file-list"
            raise BadQuery(f"did: no catalogue for {parsed.word[:20]}:// is configured; offered: {offered}")
        return Name(parsed.word, str(parsed), grant.owner if finder.private else "")

    def wake(self) -> None:
        """There is a new dataset to look up."""
        self._wake.set()

    async def start(self) -> None:
        """Begin to look up."""
        self._loops = [
            asyncio.create_task(self._forever(self._pump)),
            asyncio.create_task(self._forever(self._hold)),
            asyncio.create_task(self._forever(self._tidy)),
        ]

    async def stop(self) -> None:
        """Stop in good order: what is under way is given back. Idempotent."""
        tasks = [*self._loops, *(t for _, t in self._running.values()), *(t for _, t in self._fresh.values())]
        self._loops = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(DomaError):
            await self._db.run(lambda tx: repo.release(tx, self._name))
        for finder in self._finders.values():
            await finder.close()

    async def mine(self, owner: str, finder: str | None = None, *, stale: bool = False) -> Sequence[Found]:
        """The datasets that an owner's requests used, youngest first."""
        return await self._db.look(lambda tx: repo.listed(tx, owner, finder, stale=stale))

    async def show(self, owner: str, id_: int) -> tuple[Found, Sequence[File]]:
        """A dataset that own requests used, with its files. Raises NotFound."""

        def look(tx: Connection) -> tuple[Found | None, Sequence[File]]:
            found = repo.seen(tx, id_, owner)
            return found, repo.files(tx, id_) if found is not None else ()

        found, files = await self._db.look(look)
        if found is None:
            raise _unknown(id_)
        return found, files

    async def forget(self, owner: str, id_: int) -> None:
        """Have the next request look a dataset up anew. Raises NotFound; BadRequest if it will already."""

        def mark(tx: Connection) -> bool:
            if repo.seen(tx, id_, owner) is None:
                raise _unknown(id_)
            return repo.mark_stale(tx, id_)

        if not await self._db.run(mark):
            raise BadRequest(f"dataset {id_}: it is marked stale already")

    async def catalogue(self, look: Callable[[Connection], T]) -> T:
        """Read this server's own catalogue (:mod:`doma.columns.dataset_catalogue`)."""
        return await self._db.look(look)

    async def change(self, work: Callable[[Connection, float], T]) -> T:
        """Change it; the function is given the time."""
        return await self._db.run(lambda tx: work(tx, self._clock()))

    async def again(self, id_: int, url: str, tried: Sequence[str] = ()) -> Input | None:
        """Where else a file lies that does not open; None: its catalogue knows no other place.

        The dataset is looked up anew, once for all that ask at the same time, and at most once a minute.

        Args:
            id_: Its dataset.
            url: Where it lay.
            tried: Where it lay, too.
        """
        begun, task = self._fresh.get(id_, (0.0, None))
        since = self._clock() - AGAIN
        if task is None or (task.done() and begun < since):
            self._fresh = {k: v for k, v in self._fresh.items() if not v[1].done() or v[0] >= since}
            task = asyncio.create_task(self._refresh(id_))
            self._fresh[id_] = (self._clock(), task)
        known = (await asyncio.shield(task)).get(url, ())
        places = [place for place in known if place != url and place not in tried]
        return Input(places[0], tuple(places[1:])) if places else None

    # --- inside ---

    async def _forever(self, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await turn()
            except DomaError as e:
                log.warning("datasets: %s; trying again", e)
                await asyncio.sleep(1)

    async def _pump(self) -> None:
        """Claim as many look-ups as may run, then wait for news."""
        self._wake.clear()
        free, now = AT_ONCE - len(self._running), self._clock()
        if free > 0:
            works = await self._db.run(lambda tx: repo.take(tx, self._name, now, LEASE, free), tell=False)
            for work in works:
                task = asyncio.create_task(self._work_on(work))
                self._running[work.id] = (work, task)
                task.add_done_callback(lambda t, id_=work.id: self._ended(id_, t))  # type: ignore[misc]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await self._wake.wait()

    def _ended(self, id_: int, task: "asyncio.Task[None]") -> None:
        self._running.pop(id_, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("datasets: a look-up ended in an unexpected way", exc_info=error)
        self._wake.set()

    async def _hold(self) -> None:
        """Keep the leases; drop the look-ups that are no longer ours."""
        await asyncio.sleep(LEASE / 3)
        held = {id_: work.attempt for id_, (work, _) in self._running.items()}
        if held:
            ours = await self._db.run(lambda tx: repo.renew(tx, held, self._clock(), LEASE), tell=False)
            for id_ in held.keys() - ours:
                if id_ in self._running:
                    self._running[id_][1].cancel()

    async def _tidy(self) -> None:
        await self._db.run(lambda tx: repo.tidy(tx, self._clock() - 30 * 24 * 3600.0), tell=False)
        await asyncio.sleep(TIDY)

    async def _work_on(self, work: Work) -> None:
        """One look-up, whatever comes of it."""
        try:
            result = await self._found(work)
        except DomaError as e:
            state, reason = _word(e), e.message
            log.info("datasets: %s: %s", work.name, reason)
            await self._end(work, lambda tx, now: repo.fail(tx, work, state, reason, now))
        else:
            await self._end(work, lambda tx, now: repo.complete(tx, work, result, now))

    async def _end(self, work: Work, write: Callable[[Connection, float], bool]) -> None:
        def both(tx: Connection) -> None:
            now = self._clock()
            if write(tx, now):
                self._settled(tx, work.id, now)

        await self._db.run(both)
        for hook in self.after:
            hook()

    async def _found(self, work: Work) -> list[FoundFile]:
        """Ask a catalogue, again if its trouble may pass."""
        did, finder = Did.parse(work.name, work.finder), self._finders.get(work.finder)
        if finder is None:
            raise ConfigError(f"{work.name}: its catalogue is not configured any more")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self._section.timeout):
                    return chosen(await finder.find(did.name, work.grant), did.files)
            except TimeoutError as e:
                trouble: DomaError = TimedOut(
                    f"{work.name}: its catalogue did not answer within {self._section.timeout:.0f} s"
                )
                trouble.__cause__ = e
            except DomaError as e:
                trouble = e
            if trouble.retry == "no" or attempt == ATTEMPTS:
                raise trouble
            await asyncio.sleep(0.2 * 4 ** (attempt - 1))
        raise AssertionError("unreachable")

    async def _refresh(self, id_: int) -> dict[str, tuple[str, ...]]:
        """Look a dataset up anew; all replicas of a file by each of them. A list of files has no others."""
        row = await self._db.look(lambda tx: repo.work_of(tx, id_))
        if row is None or row.finder not in self._finders:
            return {}
        try:
            result = await self._found(row)
        except DomaError as e:
            log.info("datasets: %s: %s", row.name, e)
        else:
            await self._db.run(lambda tx: repo.refresh(tx, id_, result, self._clock()))
        files = await self._db.look(lambda tx: repo.files(tx, id_))
        return {url: f.file.replicas for f in files for url in f.file.replicas}


def _word(error: DomaError) -> Lookup:
    if isinstance(error, NotFound):
        return Lookup.MISSING
    return Lookup.BAD if isinstance(error, BadRequest) else Lookup.FAILED


def _unknown(id_: int) -> NotFound:
    return NotFound(f"dataset {id_}: there is none of that number among those of your requests")
