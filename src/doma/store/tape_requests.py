"""Requests to stage files: taken at once, looked into by and by, kept until they are old.

A request is written in one transaction before its stores are asked anything, so that 100 000 files are taken
in a second or two; then every file is looked up, and is complete, failed or queued for the drives. A kill at
any time leaves rows that say what is still to be done.

Source: WLCG Tape REST API v1; rules W81-W93 of the storage contract.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from sqlalchemy import Row

from doma.core.config import Staging
from doma.core.errors import DomaError, NotFound
from doma.core.paths import normalise
from doma.db.engine import Database
from doma.store import tape_stages as rows
from doma.store.protocol import CanStage, Stat, Store
from doma.store.tape_stages import Looked, Wanted, chunks

log = logging.getLogger(__name__)

BATCH = 1000
"""Files that are looked up, or answered, at once."""
INTERVAL = 5.0
"""Seconds between two looks at what other processes have submitted."""
TIDY = 3600.0


class StageRequests:
    """The requests of one site.

    Args:
        db: Where they are.
        stores: The stores by name: the first component of a path.
        options: Limits.
        clock: Unix seconds.
    """

    def __init__(
        self,
        db: Database,
        stores: Mapping[str, Store],
        options: Staging,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db, self._stores, self._options, self._clock = db, stores, options, clock
        self._wake = asyncio.Event()
        self._tidied = 0.0

    async def submit(self, owner: str, wanted: Sequence[Wanted]) -> str:
        """Take a request; returns its id, which nobody can guess.

        Args:
            owner: ``issuer#subject``.
            wanted: Its files, each path once.

        Raises:
            TooManyRequests: too many files of the owner wait already.
        """
        ident, most = str(uuid4()), self._options.open_files
        await self._db.run(lambda tx: rows.submit(tx, ident, owner, wanted, self._clock(), most))
        self._wake.set()
        return ident

    async def find(self, ident: str, issuer: str) -> Row[Any]:
        """A request of somebody of this issuer. Raises NotFound, also for those of others."""
        found = await self._db.look(partial(rows.find, ident=ident, issuer=issuer))
        if found is None:
            raise NotFound(
                f"stage request {ident[:40]}: there is none of yours; it ended long ago, or never was"
            )
        return found

    async def pages(self, ident: str) -> AsyncIterator[Sequence[Row[Any]]]:
        """The files of a request, a thousand at a time."""
        last = ""
        while page := await self._db.look(partial(rows.page, ident=ident, after=last, limit=BATCH)):
            last = page[-1].path
            yield page

    async def cancel(self, ident: str, paths: Sequence[str]) -> None:
        """Stop waiting for files. Raises BadRequest for a path that is not in the request."""
        await self._db.run(lambda tx: rows.cancel(tx, ident, paths, self._clock()))
        self._call()

    async def remove(self, ident: str) -> None:
        """Cancel and forget a request."""
        await self._db.run(lambda tx: rows.remove(tx, ident, self._clock()))
        self._call()

    async def release(self, ident: str | None, owner: str, paths: Sequence[str]) -> None:
        """Give up pins: those of one request, or all of an owner."""
        await self._db.run(lambda tx: rows.release(tx, ident, owner, paths))
        self._call()

    async def run(self) -> None:
        """Look into what is submitted until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.look()
                await self._tidy()
            except DomaError as e:
                log.warning("stage requests wait: %s", e)
            try:
                async with asyncio.timeout(INTERVAL):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Ask the stores about everything that was submitted and not looked into yet."""
        while batch := await self._db.look(partial(rows.unseen, limit=BATCH)):
            answers: list[Looked] = []
            for some in chunks(batch, 250):
                answers += await self._ask(some)
            await self._db.run(partial(rows.seen, answers=answers, now=self._clock()))
            self._call()

    async def localities(self, paths: Sequence[str]) -> list[Stat | DomaError]:
        """The stat of each path, or why there is none."""
        found: list[Stat | DomaError] = []
        for some in chunks(paths, 250):
            answers = await self._found(some)
            found += [a if isinstance(a, DomaError) else a[0] for a in answers]
        return found

    async def _ask(self, batch: Sequence[tuple[int, str]]) -> list[Looked]:
        answers = await self._found([path for _, path in batch])
        return [
            Looked(row, error=answer.message) if isinstance(answer, DomaError) else Looked(row, *answer)
            for (row, _), answer in zip(batch, answers, strict=True)
        ]

    async def _found(self, paths: Sequence[str]) -> list[tuple[Stat, str] | DomaError]:
        """Each path's stat and ticket, asked store by store."""
        found: list[tuple[Stat, str] | DomaError] = [NotFound("unknown")] * len(paths)
        groups: dict[str, list[tuple[int, str]]] = {}
        for i, path in enumerate(paths):
            try:
                name, _, inner = normalise(path)[1:].partition("/")
            except DomaError as e:
                found[i] = e
                continue
            if name not in self._stores:
                found[i] = NotFound(f"{path}: there is no endpoint {name!r} here")
            else:
                groups.setdefault(name, []).append((i, "/" + inner))
        for name, mine in groups.items():
            answers = await _tickets(self._stores[name], [path for _, path in mine])
            for (i, inner), answer in zip(mine, answers, strict=True):
                if isinstance(answer, DomaError) and answer.message.startswith(f"{inner}:"):
                    answer.message = f"/{name}{answer.message}"  # people know it with the endpoint's name
                found[i] = answer
        return found

    def _call(self) -> None:
        for store in self._stores.values():
            if isinstance(store, CanStage):
                store.wake()

    async def _tidy(self) -> None:
        now = self._clock()
        if now - self._tidied >= TIDY:
            self._tidied = now
            await self._db.run(lambda tx: rows.tidy(tx, now, self._options.retention))


async def _tickets(store: Store, paths: Sequence[str]) -> Sequence[tuple[Stat, str] | DomaError]:
    if isinstance(store, CanStage):
        return await store.tickets(paths)

    async def one(path: str) -> tuple[Stat, str] | DomaError:
        try:
            return await store.stat(path), ""
        except DomaError as e:
            return e

    return await asyncio.gather(*map(one, paths))
