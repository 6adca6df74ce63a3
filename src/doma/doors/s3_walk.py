"""The keys below a directory in S3's order, from a store that lists one directory at a time.

S3 sorts whole keys: ``a-b`` stands before ``a/x``, though ``a`` stands before ``a-b``. So a directory waits
until its name with the slash has its turn. Directories that are empty appear as marker keys ending in ``/``.
"""

import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count

from doma.core.errors import Conflict, NotFound
from doma.doors.dav_call import nameable
from doma.store.protocol import Stat, Store


@dataclass(frozen=True, slots=True)
class Found:
    """A key, or with ``is_prefix`` a directory with all that is in it."""

    key: str
    stat: Stat
    is_prefix: bool = False


async def walk(store: Store, base: str, prefix: str, after: str, *, deep: bool) -> AsyncIterator[Found]:
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
