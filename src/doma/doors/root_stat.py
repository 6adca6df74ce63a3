"""Stat lines of the root:// door: what a client may know of a file or directory, in one line of text.

Source: §8 of the project's root:// contract; §7 of the cache contract for the flag of what is held.
"""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

from doma.auth.model import Identity, Verb
from doma.cache.store import CacheStore
from doma.doors.endpoint import Endpoint
from doma.doors.root_call import Target
from doma.net.xroot_text import BACKUP, DIRECTORY, OFFLINE, READABLE, SEARCHABLE, WRITABLE
from doma.store.protocol import Locality, Stat

CACHED = 512
"""Flag: the cache holds all of it."""
TURN = 64
"""Entries of a cache that are looked up before others get a turn."""
_MODES = {
    (True, True): "0755",
    (True, False): "0555",
    (False, True): "0644",
    (False, False): "0444",
}
TOP = Stat("/", 0, "top", 0.0, is_dir=True)
"""What lies above all endpoints."""


async def line_of(target: Target, stat: Stat) -> str:
    """The stat line of what a target was found to be."""
    return (await lines_of(target.endpoint, target.identity, [stat]))[0]


async def lines_of(endpoint: Endpoint, who: Identity | None, stats: Sequence[Stat]) -> list[str]:
    """The stat lines of some entries of one endpoint, for one identity.

    The time of access is that of a cache, and 0 for what it does not hold as a whole.
    """
    store = endpoint.store
    if not isinstance(store, CacheStore):
        return [line(stat, rights(endpoint, who, stat), int(stat.modified)) for stat in stats]
    told = []
    for stat in stats:
        here = None if stat.is_dir else store.held(stat.path)
        flags = rights(endpoint, who, stat)
        if here is not None and here.complete:
            told.append(line(stat, flags | CACHED, int(here.accessed or 0)))
        else:
            told.append(line(stat, flags, 0))
        if len(told) % TURN == 0:
            await asyncio.sleep(0)
    return told


def line(stat: Stat, flags: int, accessed: int) -> str:
    """``id size flags mtime ctime atime mode owner group``.

    Args:
        stat: What there is.
        flags: Those of :func:`rights`, and more that the caller knows of.
        accessed: Unix seconds.
    """
    mode, changed = _MODES[stat.is_dir, bool(flags & WRITABLE)], int(stat.modified)
    return f"{number(stat)} {stat.size} {flags} {changed} {changed} {accessed} {mode} doma doma"


def number(stat: Stat) -> int:
    """What stands for device and inode: 63 bits that are another number for every version, never 0."""
    text = stat.version or f"{stat.path}\0{stat.size}\0{stat.modified}"
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1 or 1


def rights(endpoint: Endpoint, who: Identity | None, stat: Stat) -> int:
    """The flags that say what it is, where its bytes are, and what this identity may do with it."""
    gate, path, is_dir = endpoint.gate, stat.path, stat.is_dir
    flags = DIRECTORY | SEARCHABLE if is_dir else 0
    if stat.locality is Locality.TAPE:
        flags |= OFFLINE
    elif stat.locality is Locality.DISK_AND_TAPE:
        flags |= BACKUP
    if gate.may(who, Verb.LIST if is_dir else Verb.READ, path, is_dir):
        flags |= READABLE
    if endpoint.writable and (
        gate.may(who, Verb.MODIFY, path, is_dir) or (is_dir and gate.may(who, Verb.CREATE, path, is_dir))
    ):
        flags |= WRITABLE
    return flags
