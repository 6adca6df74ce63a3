"""Pins: what must stay in the cache until an instant, each somebody's, within a quota.

A file may be pinned before it is here: the pin holds when it arrives. Its size is asked of the origin before,
so that it counts at once.

Source: cache contract §7 (pin, unpin).
"""

import asyncio
import math
from collections.abc import Callable

from doma.cache.index import Index, Pin
from doma.core.config import Cache
from doma.core.errors import BadRequest, NotFound, StorageFull

MOST = 10_000
"""Pins of one identity."""


class Pins:
    """The pins of one cache.

    Args:
        index: Keeps them.
        config: Section ``cache``.
        clock: Unix seconds.
    """

    def __init__(self, index: Index, config: Cache, clock: Callable[[], float]) -> None:
        self._index = index
        self._config = config
        self._clock = clock
        self._lock = asyncio.Lock()

    async def pin(self, path: str, key: str, size: int, owner: str, lifetime: float | None) -> Pin:
        """Keep a file from now on for a time; a pin of the same owner is replaced. Idempotent.

        Args:
            path: In the cache's name space.
            key: The object's name.
            size: Bytes of the file.
            owner: ``issuer#subject``.
            lifetime: Seconds; None: as configured.

        Raises:
            BadRequest: no good lifetime. StorageFull: over the quota of the owner, or of all.
        """
        lifetime = self._config.pin if lifetime is None else lifetime
        if not 0 < lifetime <= self._config.longest_pin or math.isnan(lifetime):
            raise BadRequest(
                f"lifetime: {lifetime:g} s; say more than 0 and at most {self._config.longest_pin:g} s"
            )
        pin = Pin(path, owner, self._clock() + lifetime, size)
        async with self._lock:  # who counts must not be overtaken
            await asyncio.to_thread(self._pin, pin, key)
        return pin

    async def unpin(self, path: str, owner: str | None) -> None:
        """Take a pin away; None: everybody's pins of the path.

        Raises:
            NotFound: there is none.
        """
        if not await asyncio.to_thread(self._index.unpin, path, owner):
            whose = "no pin" if owner is None else f"no pin of {owner}"
            raise NotFound(f"{path}: there is {whose}", path=path)

    async def pins(
        self, owner: str | None, top: str = "/", after: str = "", limit: int | None = None
    ) -> list[Pin]:
        """The pins that count now at and below a path, in the order of their names; None: everybody's."""
        return await asyncio.to_thread(self._index.pins, self._clock(), owner, top, after, limit)

    def _pin(self, pin: Pin, key: str) -> None:
        now, size = self._clock(), self._config.size
        count, mine, others = self._index.pinned_bytes(now, pin.owner, key)
        if count >= MOST:
            raise StorageFull(f"{pin.path}: {pin.owner} has {count} pins, {MOST} may be; unpin something")
        for used, share, whose in (
            (mine, self._config.pin_quota, pin.owner),
            (others, self._config.pin_share, "everybody together"),
        ):
            if used + pin.size > share * size:
                raise StorageFull(
                    f"{pin.path}: {whose} would pin {used + pin.size} bytes,"
                    f" {int(share * size)} may be; unpin something"
                )
        self._index.pin(pin, key)
