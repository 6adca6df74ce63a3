"""A request target worked out: where it points, and what is said of all answers of one version.

Source: dataplane.md §3.5 of the project's contracts.
"""

from collections.abc import Awaitable, Callable
from typing import cast

from doma.core.errors import DomaError
from doma.doors.endpoint import Endpoint
from doma.doors.fast_ask import offers
from doma.doors.intake import lines
from doma.doors.landing import described
from doma.doors.reply import content_type, kept
from doma.net.exchange import Buffer
from doma.store.protocol import CanPeek, CanWarm, Hot, Stat


class Place:
    """A request target: where it points, and what was found there last."""

    __slots__ = ("cached", "cold", "endpoint", "fixed", "kind", "path", "peek", "stat", "warm")

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        store = endpoint.store
        self.endpoint = endpoint
        self.path = path
        self.peek = cast("CanPeek", store).peek
        self.warm = cast("CanWarm", store).warm if offers(type(store), CanWarm) else None
        self.kind = content_type(path).encode()
        self.stat: Stat | None = None
        self.fixed = b""
        self.cached = False
        """It is read through a cache, which has lines of its own and counts where the bytes come from."""
        self.cold: Callable[[int, int], Awaitable[Buffer]]

    def see(self, hot: Hot) -> None:
        """Work out what holds for all answers of one version."""
        known, self.stat = self.stat, hot.stat
        if known == self.stat:
            return  # opened once more
        self.fixed = described(hot.stat) + lines(kept(hot.stat))
        self.cached = hasattr(hot, "cached")
        self.cold = _Cold(self, hot.stat.version).read


class _Cold:
    """Reads pieces that fell out of memory while an answer ran; of the same version or not at all."""

    __slots__ = ("_place", "_version")

    def __init__(self, place: Place, version: str) -> None:
        self._place, self._version = place, version

    async def read(self, start: int, stop: int) -> Buffer:
        reader = await self._place.endpoint.store.open(self._place.path)
        try:
            if reader.stat.version != self._version:
                raise DomaError(f"{self._place.path}: was replaced while it was sent; read it again")
            return await reader.read(start, stop)
        finally:
            await reader.close()
