"""Reads what is on disk against its checksums: of the pages (C12), of the whole object (C11).

A megabyte at a time, so that neither memory nor the event loop notices.
"""

import asyncio

from doma.cache.extents import pieces
from doma.cache.fetch import Fetcher
from doma.core.checksum import hasher
from doma.core.errors import Unsupported

_WHOLE = ("adler32", "crc32c", "md5", "sha-256")
"""Cheapest first."""


async def damaged(fetcher: Fetcher) -> list[int]:
    """The pages that were there and did not fit their checksum; they are missing now."""
    bad: list[int] = []
    for run in pieces((0, fetcher.pages.count)):
        if fetcher.pages.missing(run) != [run]:
            bad += (await fetcher.load(run))[2]
    return bad


async def digest(fetcher: Fetcher, algorithm: str) -> str | None:
    """The checksum of a complete object from its pages; None if a page is missing or damaged.

    Raises:
        Unsupported: no such algorithm.
    """
    sums = hasher(algorithm)
    for run in pieces((0, fetcher.pages.count)):
        data, missing, _ = await fetcher.load(run)
        if missing:
            return None
        await asyncio.to_thread(sums.update, data)
    return sums.hexdigest()


async def check_whole(fetcher: Fetcher) -> str | None:
    """What is wrong with a complete object by the checksum that its origin announced; None: nothing."""
    announced = fetcher.record.checksums
    for algorithm in _WHOLE:
        if algorithm not in announced:
            continue
        try:
            found = await digest(fetcher, algorithm)
        except Unsupported:
            continue
        if found is not None and found != announced[algorithm].lower():
            return f"{algorithm} of the fetched bytes is {found}, the origin announced {announced[algorithm]}"
        return None
    return None
