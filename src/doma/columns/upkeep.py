"""Housekeeping: old requests go, kept results stay within bounds, nothing waits for ever."""

import contextlib
import logging
from functools import partial

from sqlalchemy import Connection

from doma.columns import cache_repo, repo
from doma.columns.attempt import Workshop
from doma.columns.cache_repo import SHELF, Cached
from doma.core.errors import AlreadyExists, NotFound, PreconditionFailed
from doma.store.protocol import Store

log = logging.getLogger(__name__)

STRAY = 24 * 3600.0
"""Seconds after which an object that no row names is removed."""


class Upkeep:
    """The housekeeping of one process.

    Args:
        shop: Database, store, configuration and clock.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop

    async def turn(self) -> list[str]:
        """One round; the requests that it ended because nothing worked on them."""
        shop, now = self._shop, self._shop.clock()
        lost = await shop.db.run(partial(repo.stranded, now=now))
        for id_ in lost:
            log.warning("columns: nothing worked on request %s; it was ended", id_)
        await shop.gathered.run(partial(cache_repo.end_all, owners=[], now=now))
        for id_ in await shop.db.look(partial(repo.expired, before=now - shop.config.retention)):
            await self.remove(id_)
        await self._evict(now)
        return lost

    async def begin(self) -> None:
        """Remove the objects that a killed process left and no row names."""
        store, now = self._shop.results, self._shop.clock()
        old = []
        with contextlib.suppress(NotFound):
            old = [s async for s in store.list(SHELF) if s.modified < now - STRAY]
        for start in range(0, len(old), repo.BATCH):
            some = old[start : start + repo.BATCH]
            keys = [s.path.rpartition("/")[2] for s in some]
            used = await self._shop.db.look(partial(cache_repo.shelved, keys=keys))
            for stat, key in zip(some, keys, strict=True):
                if key not in used:
                    with contextlib.suppress(NotFound, PreconditionFailed):
                        await store.delete(stat.path, version=stat.version)

    async def remove(self, id_: str) -> None:
        """Remove a request and its objects; the cache keeps those that others may want.

        Objects go first: a crash in between leaves rows, and the whole is repeated.
        """
        shop, now = self._shop, self._shop.clock()
        since = now - shop.config.cache_age
        kept: list[tuple[Cached, str]] = []
        if shop.config.cache_size:
            for hit in await shop.db.look(partial(cache_repo.of_request, id_=id_, since=since)):
                version = await _shelved(shop.results, hit)
                kept += [(hit, version)] if version is not None else []
        with contextlib.suppress(NotFound):
            await shop.results.delete(f"/{id_}", recursive=True)

        def forget(tx: Connection) -> None:
            for hit, version in kept:
                cache_repo.shelve(tx, hit, version)
            repo.remove(tx, id_, now)

        await shop.db.run(forget)

    async def _evict(self, now: float) -> None:
        """Forget what nobody asked for in time, and what exceeds the size; least recently used first."""
        shop = self._shop
        gone = await shop.db.look(partial(cache_repo.old, before=now - shop.config.cache_age))
        gone += await shop.db.look(partial(cache_repo.surplus, most=shop.config.cache_size))
        for hit in gone:
            await shop.gathered.run(partial(cache_repo.forget, key=hit.key, path=hit.path))
            if hit.path == hit.own:
                with contextlib.suppress(NotFound, PreconditionFailed):
                    await shop.results.delete(hit.path, version=hit.object_version)


async def _shelved(store: Store, hit: Cached) -> str | None:
    """Make a request's object one of the cache's own; its version there, None if it is not what it was."""
    with contextlib.suppress(AlreadyExists):
        await store.make_dir(SHELF)
    with contextlib.suppress(NotFound):
        found = await store.stat(hit.path)
        if found.version != hit.object_version:
            return None
        await store.rename(hit.path, hit.own)
    try:
        return (await store.stat(hit.own)).version
    except NotFound:
        return None
