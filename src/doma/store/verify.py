"""Reading every file again, to see whether its bytes still have the checksum that was stored with them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from doma.core.checksum import hasher, same
from doma.core.errors import Conflict, DomaError, NotFound, PreconditionFailed
from doma.store.protocol import PIECE, Locality, Stat, Store


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one file."""

    stat: Stat
    algorithm: str
    stored: str
    """Hex; empty: none was stored. The one that was found is stored now."""
    found: str
    """Hex; empty: the file could not be read."""
    problem: str = ""
    """Why it could not be read."""

    @property
    def good(self) -> bool:
        """Whether the bytes are those that were written, as far as anybody can tell."""
        return bool(self.found) and (not self.stored or same(self.algorithm, self.stored, self.found))


async def verify(store: Store, path: str = "/", algorithm: str = "adler32") -> AsyncIterator[Verified]:
    """Read all files at and below a path, in the order of their names; one at a time, in bounded memory.

    Files that are gone or replaced meanwhile are left out, and so are those whose bytes are on tape only.

    Raises:
        NotFound: there is nothing of that name.
        Unsupported: the algorithm cannot be computed.
    """
    hasher(algorithm)
    top = await store.stat(path)
    waiting = [top]
    while waiting:
        stat = waiting.pop()
        if stat.is_dir:
            try:
                below = [entry async for entry in store.list(stat.path)]
            except (NotFound, Conflict):
                continue
            waiting += reversed(below)
        elif stat.locality is Locality.DISK or stat.locality is Locality.DISK_AND_TAPE:
            one = await _file(store, stat, algorithm)
            if one is not None:
                yield one


async def _file(store: Store, stat: Stat, algorithm: str) -> Verified | None:
    digest, stored = hasher(algorithm), stat.checksums.get(algorithm, "")
    try:
        reader = await store.open(stat.path)
        try:
            for start in range(0, reader.stat.size, PIECE):
                digest.update(await reader.read(start, min(start + PIECE, reader.stat.size)))
        finally:
            await reader.close()
        if reader.stat.version != stat.version:
            return None
        if not stored:
            await store.checksum(stat.path, algorithm)
    except (NotFound, PreconditionFailed):
        return None
    except DomaError as e:
        return Verified(stat, algorithm, stored, "", e.message)
    return Verified(stat, algorithm, stored, digest.hexdigest())
