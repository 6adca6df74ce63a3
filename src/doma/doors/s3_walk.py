"""The keys below a directory in S3's order, from a store that lists one directory at a time.

S3 sorts whole keys: ``a-b`` stands before ``a/x``, though ``a`` stands before ``a-b``. So a directory waits
until its name with the slash has its turn. Directories that are empty appear as marker keys ending in ``/``.
"""

import heapq
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from dataclasses import dataclass
from itertools import count

from doma.core.errors import Conflict, NotFound
from doma.core.paths import nameable
from doma.store.protocol import Stat, Store

WAITING = 8
"""Walks that are kept; one of a directory with 100,000 entries takes some 10 MB."""
PATIENCE = 60.0
"""Seconds for which one is kept."""


@dataclass(frozen=True, slots=True)
class Found:
    """A key, or with ``is_prefix`` a directory with all that is in it."""

    key: str
    stat: Stat
    is_prefix: bool = False


class Walks:
    """Walks that wait for somebody to ask for the next page, so that a page costs only its own keys.

    One that was forgotten, or went on in another process, begins anew after the last key.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, Found, AsyncGenerator[Found, None]]] = OrderedDict()

    def take(self, name: Hashable) -> tuple[Found, AsyncGenerator[Found, None]] | None:
        """The walk of that name and the key that it was at, if it is still kept; no longer afterwards."""
        kept = self._kept.pop(name, None)
        return kept[1:] if kept is not None and self._clock() - kept[0] < PATIENCE else None

    async def keep(self, name: Hashable, found: Found, walk: AsyncGenerator[Found, None]) -> None:
        """Keep a walk that has just found one key more than it needed."""
        now = self._clock()
        self._kept[name] = now, found, walk
        while len(self._kept) > WAITING or now - next(iter(self._kept.values()))[0] > PATIENCE:
            _, (_, _, old) = self._kept.popitem(last=False)
            await old.aclose()


async def walk(
    store: Store, base: str, prefix: str, after: str, *, deep: bool
) -> AsyncGenerator[Found, None]:
    """The keys that begin with a prefix and come after another key.

    Args:
        store: Where they are.
        base: Directory that is the top of the bucket, ``""`` for the store's.
        prefix: What keys begin with.
        after: Only greater keys; of a directory, those below it still count.
        deep: Whether to go into directories; else each is one result.
    """
    folder, _, _ = prefix.rpartition("/")
    if folder:
        folder += "/"
    if any(part in {"", ".", ".."} for part in folder[:-1].split("/")) and folder:
        return  # no such key can be
    async for found in _below(store, base, folder, prefix, after, deep):
        yield found


async def _below(
    store: Store, base: str, folder: str, prefix: str, after: str, deep: bool
) -> AsyncIterator[Found]:
    empty = True
    try:
        async for entry in _in_order(store, f"{base}/{folder}".rstrip("/") or "/"):
            empty = False
            name = entry.path.rpartition("/")[2]
            key = folder + name + ("/" if entry.is_dir else "")
            if not key.startswith(prefix) or not nameable(name):
                continue
            if key <= after and not (entry.is_dir and after.startswith(key)):
                continue
            if not entry.is_dir:
                yield Found(key, entry)
            elif deep:
                async for found in _below(store, base, key, prefix, after, deep):
                    yield found
            elif key > after:
                yield Found(key, entry, True)
    except (NotFound, Conflict):
        return
    if empty and folder and folder.startswith(prefix) and folder > after:
        yield Found(folder, await store.stat(f"{base}/{folder}".rstrip("/")))


async def _in_order(store: Store, path: str) -> AsyncIterator[Stat]:
    """A directory's entries as their keys sort."""
    waiting: list[tuple[str, int, Stat]] = []
    number = count()
    async for entry in store.list(path):
        while waiting and waiting[0][0] < entry.path + ("/" if entry.is_dir else ""):
            yield heapq.heappop(waiting)[2]
        if entry.is_dir:
            heapq.heappush(waiting, (entry.path + "/", next(number), entry))
        else:
            yield entry
    while waiting:
        yield heapq.heappop(waiting)[2]
