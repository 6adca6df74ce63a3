"""Reads ranges of one version from whichever of its replicas can give them.

A replica that fails is left for another one at the same offset, in the middle of a file too, once it is shown
to hold the same. What is definite (no such file, no right) counts more than an origin that is busy.

Source: cache contract O4, O12, C11, F8, F16; "retry 3 with jitter, on another replica first".
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar

from doma.cache.connections import Connections
from doma.cache.lanes import Lanes, Turn
from doma.cache.origins import Place
from doma.cache.record import Record
from doma.cache.replicas import Replica, alike, ordered
from doma.cache.stats import Counters
from doma.core.errors import (
    DomaError,
    Forbidden,
    NotFound,
    OriginFailed,
    PreconditionFailed,
    RangeNotSatisfiable,
    Replaced,
    TooManyRequests,
    Unauthenticated,
)
from doma.monitor.opens import Cached
from doma.store.protocol import Buffer, Stat

TRIES = 3

account: ContextVar[Cached | None] = ContextVar("cache_account", default=None)
"""The open file for which a fetch was begun."""


class Source:
    """The replicas of one version of one object.

    Args:
        place: The object.
        record: The version.
        lanes: Slots.
        connections: Open readers.
        counters: Where to count.
        jitter: Gives numbers between 0 and 1.
        by_size: As :func:`doma.cache.replicas.alike` takes it.
    """

    def __init__(
        self, place: Place, record: Record, lanes: Lanes, connections: Connections, counters: Counters,
        jitter: Callable[[], float], *, by_size: bool,
    ) -> None:  # fmt: skip
        self._place = place
        self._record = record
        self._lanes = lanes
        self._connections = connections
        self._counters = counters
        self._jitter = jitter
        self._by_size = by_size
        self._home = record.replica or place.origin
        self._best = self._home
        """The replica that gave bytes last."""
        self._same: dict[str, tuple[str, int]] = {}
        """Other replicas that hold the same, with version and size there."""

    @property
    def origin(self) -> str:
        """Whom the next request goes to, as far as is known."""
        return ordered(self._place.everywhere, self._lanes, self._best)[0].name

    async def read(self, start: int, stop: int, turn: Turn) -> Buffer:
        """The bytes ``[start, stop)``.

        Raises:
            Replaced: the origin has another version.
            DomaError: none of the replicas can give them.
        """
        problems: dict[str, DomaError] = {}
        replicas = self._place.everywhere
        for attempt in range(1, TRIES + len(replicas)):
            left = [r for r in ordered(replicas, self._lanes, self._best) if r.name not in problems]
            if not left:
                left = [r for r in replicas if _passing(problems[r.name])]
                for replica in left:  # somebody, maybe this very reader, may be trying it now
                    await self._lanes.tried(replica.name)
                if not left or attempt > TRIES or all(self._lanes.resting(r.name) for r in left):
                    break
                await asyncio.sleep(0.1 * 4 ** (attempt - 1) * (0.5 + self._jitter()))
                left = ordered(left, self._lanes, self._best)
            replica = left[0]
            if problems:
                self._retried()
            try:
                data = await self._once(replica, start, stop, turn)
            except DomaError as e:
                if isinstance(e, Replaced) and replica.name == self._home:
                    raise
                problems[replica.name] = e
                self._connections.drop(self._place.key, self._record.generation, replica.name)
                continue
            self._best = replica.name
            return data
        raise self._worst(problems)

    async def _once(self, replica: Replica, start: int, stop: int, turn: Turn) -> Buffer:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        cached = account.get()
        try:
            async with (
                self._lanes.slot(replica.name, turn),
                self._connections.reader(replica, self._place.key, self._record.generation) as reader,
            ):
                if not await self._fits(replica, reader.stat):
                    raise self._replaced()
                data = await reader.read(start, stop)
                self._counters.origin += len(data)
                if len(data) != stop - start:
                    raise OriginFailed(
                        f"{self._place.shown}: {replica.name} sent {len(data)} bytes instead of"
                        f" {stop - start}; try again"
                    )
        except (PreconditionFailed, RangeNotSatisfiable) as e:
            raise self._replaced() from e
        finally:
            if cached is not None:
                cached.wait_origin += loop.time() - began
        if cached is not None and replica.server not in cached.remotes:
            cached.remotes.append(replica.server)
        return data

    async def _fits(self, replica: Replica, stat: Stat) -> bool:
        """Whether a replica holds this version."""
        found = stat.version, stat.size
        if replica.name == self._home or len(self._place.everywhere) == 1:
            return found == (self._record.version, self._record.size)
        if self._same.get(replica.name) != found:
            if not await alike(self._record, replica, stat, by_size=self._by_size):
                return False
            self._same[replica.name] = found
        return True

    def _retried(self) -> None:
        self._counters.retries += 1
        if (cached := account.get()) is not None:
            cached.retries += 1

    def _worst(self, problems: dict[str, DomaError]) -> DomaError:
        """What to say when nobody could: what is definite before what may pass."""
        definite = [e for e in problems.values() if isinstance(e, NotFound | Unauthenticated | Forbidden)]
        others = [e for e in problems.values() if not isinstance(e, Replaced)]
        return (definite or others or list(problems.values()))[0]

    def _replaced(self) -> Replaced:
        return Replaced(
            f"{self._place.shown}: the origin has another version than the one being read; open it again",
            path=self._place.shown,
        )


def _passing(error: DomaError) -> bool:
    """Whether the same replica may do better in a moment; one that is busy says itself when to come again."""
    return error.retry != "no" and not isinstance(error, Replaced | TooManyRequests)
