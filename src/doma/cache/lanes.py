"""Slots for requests to origins, dealt out fairly, and rest for origins that fail.

An origin has at most a share of the slots while others could use them, and nearly all when it is alone, so
one that stalls starves nobody. Within an origin the caller with the fewest requests under way is next. What
somebody waits for goes before what is fetched ahead. After five failures in a row an origin is left alone for
a while, then one request tries it.

Source: cache contract §6: O2, O3, O4, O9; "circuit opens per origin after 5 in a row, half-open after 15 s".
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from doma.core.errors import DomaError, OriginFailed, Replaced, StorageUnavailable, TimedOut, TooManyRequests

FAILURES = 5
"""In a row, after which an origin is left alone."""
REST = 15.0
"""Seconds for which it is."""
TRIAL = 2.0
"""Seconds that others wait, if they like, for the request that tries it after that."""
AHEAD = 0.5
"""The part of an origin's slots that fetches ahead may hold."""


class Turn:
    """One wish for a slot.

    Args:
        who: Names the caller.
        urgent: Somebody waits for the bytes.
    """

    __slots__ = ("ahead", "granted", "lane", "urgent", "who")

    def __init__(self, who: str, *, urgent: bool = True) -> None:
        self.who = who
        self.urgent = urgent
        self.ahead = False
        """Runs since before anybody waited for it."""
        self.granted: asyncio.Future[None] | None = None
        self.lane: _Lane | None = None


class _Lane:
    """One origin."""

    def __init__(self) -> None:
        self.running = self.ahead = 0
        self.by: Counter[str] = Counter()
        """Callers to their running requests."""
        self.waiting: dict[str, deque[Turn]] = {}
        """Callers to their turns that somebody waits for."""
        self.later: deque[Turn] = deque()
        """Turns that can wait."""
        self.failures = 0
        self.since = 0.0
        """When it was last found failing."""
        self.trial: asyncio.Event | None = None
        """Set when the request that tries the origin has ended."""

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting or self.later or self.failures)

    def number(self, who: str | None = None) -> int:
        """How many turns wait, of one caller or of all; those that can wait do not count."""
        if who is not None:
            return len(self.waiting.get(who, ()))
        return sum(map(len, self.waiting.values()))

    def tried(self) -> None:
        """The trial, if there was one, is over."""
        if self.trial is not None:
            self.trial.set()
            self.trial = None

    def add(self, turn: Turn) -> None:
        if turn.urgent:
            self.waiting.setdefault(turn.who, deque()).append(turn)
        else:
            self.later.append(turn)

    def remove(self, turn: Turn) -> None:
        queue = self.waiting.get(turn.who) if turn.urgent else self.later
        if queue is not None and turn in queue:
            queue.remove(turn)
            if turn.urgent and not queue:
                del self.waiting[turn.who]

    def next(self, ahead: int) -> Turn | None:
        """Take out whose turn it is, if there is one; ``ahead``: how many may run that nobody waits for."""
        if self.waiting:
            who = min(self.waiting, key=self.by.__getitem__)
            self.waiting[who] = self.waiting.pop(who)  # among equals, next time it is the others' turn
            turn = self.waiting[who][0]
        elif self.later and self.ahead < ahead:
            turn = self.later[0]
        else:
            return None
        self.remove(turn)
        return turn


class Lanes:
    """Slots for requests, for one cache.

    Args:
        slots: How many at once.
        clock: Seconds.
        share: The part of them that an origin may hold while another one waits for its share.
        alone: The part that it may hold otherwise.
        waiting: Turns that may wait for one origin, half of them of one caller.
        label: Gives the name under which an origin is counted.
    """

    def __init__(
        self,
        slots: int,
        clock: Callable[[], float],
        *,
        share: float = 0.25,
        alone: float = 0.9,
        waiting: int = 4096,
        label: Callable[[str], str] = str,
    ) -> None:
        self._label = label
        self._slots = slots
        self._clock = clock
        self._share = max(1, int(slots * share))
        self._alone = max(1, int(slots * alone))
        self._waiting = waiting
        self._running = 0
        self._lanes: dict[str, _Lane] = {}

    def depth(self) -> dict[str, int]:
        """How many requests wait for a slot, by label of the origin."""
        found: Counter[str] = Counter()
        for origin, lane in self._lanes.items():
            found[self._label(origin)] += lane.number()
        return found

    def forget(self, origin: str) -> bool:
        """Forget how an origin has done; False: requests to it run or wait."""
        lane = self._lanes.get(origin)
        if lane is not None and (lane.running or lane.waiting or lane.later):
            return False
        self._lanes.pop(origin, None)
        return True

    def resting(self, origin: str) -> float:
        """Seconds for which an origin is left alone from now; 0: ask it."""
        lane = self._lanes.get(origin)
        if lane is None or lane.failures < FAILURES:
            return 0.0
        left = lane.since + REST - self._clock()
        return left if 0 < left <= REST else 1.0 if lane.trial is not None else 0.0

    async def tried(self, origin: str) -> None:
        """Wait, not for long, while a request finds out how an origin does that was left alone."""
        lane = self._lanes.get(origin)
        if lane is not None and lane.trial is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(lane.trial.wait(), TRIAL)

    def blame(self, origin: str) -> None:
        """Count a failure that shows only later: bytes that turned out to be wrong (C11)."""
        self._failed(origin, self._lanes.setdefault(origin, _Lane()))

    @asynccontextmanager
    async def slot(self, origin: str, turn: Turn) -> AsyncIterator[None]:
        """Wait for a slot, hold it, and judge the origin by how it ends.

        Raises:
            StorageUnavailable: the origin is left alone for now.
            TooManyRequests: too many wait for it.
        """
        await self._enter(origin, turn)
        lane = self._lanes[origin]
        try:
            yield
        except DomaError as e:
            if _is_failure(e):
                self._failed(origin, lane)
            else:
                lane.failures = 0
            raise
        else:
            lane.failures = 0
        finally:
            lane.tried()
            self._leave(origin, lane, turn)

    def hurry(self, turn: Turn) -> None:
        """Somebody waits now for what could wait before."""
        if turn.urgent:
            return
        lane = turn.lane
        waits = lane is not None and turn in lane.later
        if lane is not None and waits:
            lane.remove(turn)
        turn.urgent = True
        if lane is not None and waits:
            lane.add(turn)
            self._deal()

    async def _enter(self, origin: str, turn: Turn) -> None:
        lane = self._lanes.setdefault(origin, _Lane())
        if left := self.resting(origin):
            raise _at_rest(origin, left)
        if turn.urgent and (
            lane.number() >= self._waiting or lane.number(turn.who) >= max(1, self._waiting // 2)
        ):
            raise TooManyRequests(
                f"{origin}: {lane.number()} requests wait for this origin already; try again soon",
                retry_after=max(1.0, lane.number() / 100),
            )
        turn.lane = lane
        lane.trial = asyncio.Event() if lane.failures >= FAILURES else None
        turn.granted = asyncio.get_running_loop().create_future()
        lane.add(turn)
        self._deal()
        try:
            await turn.granted
        except asyncio.CancelledError:
            if turn.granted.done() and not turn.granted.cancelled() and turn.granted.exception() is None:
                self._leave(origin, lane, turn)
            lane.remove(turn)
            lane.tried()
            raise

    def _leave(self, origin: str, lane: _Lane, turn: Turn) -> None:
        self._running -= 1
        lane.running -= 1
        lane.ahead -= turn.ahead
        lane.by[turn.who] -= 1
        if not lane.by[turn.who]:
            del lane.by[turn.who]
        if lane.idle:
            self._lanes.pop(origin, None)
        self._deal()

    def _deal(self) -> None:
        """Give free slots to those whose turn it is, to the origin with the fewest first."""
        while self._running < self._slots:
            for lane in sorted(self._lanes.values(), key=lambda lane: (not lane.waiting, lane.running)):
                limit = self._limit(lane)
                turn = lane.next(max(1, int(limit * AHEAD))) if lane.running < limit else None
                if turn is not None:
                    break
            else:
                return
            assert turn.granted is not None
            if turn.granted.done():
                continue
            self._running += 1
            lane.running += 1
            turn.ahead = not turn.urgent
            lane.ahead += turn.ahead
            lane.by[turn.who] += 1
            turn.granted.set_result(None)

    def _limit(self, lane: _Lane) -> int:
        """How many requests to an origin may run; one that has its share does not count as waiting."""
        contested = any(
            other is not lane and other.waiting and other.running < self._share
            for other in self._lanes.values()
        )
        return self._share if contested else self._alone

    def _failed(self, origin: str, lane: _Lane) -> None:
        lane.failures += 1
        lane.since = self._clock()
        if lane.failures < FAILURES:
            return
        waiting = [turn for queue in (*lane.waiting.values(), lane.later) for turn in queue]
        lane.waiting.clear()
        lane.later.clear()
        for turn in waiting:
            if turn.granted is not None and not turn.granted.done():
                turn.granted.set_exception(_at_rest(origin, REST))


def _at_rest(origin: str, left: float) -> StorageUnavailable:
    return StorageUnavailable(
        f"{origin}: it failed {FAILURES} times in a row and is left alone; try again in {left:.0f} s",
        retry_after=max(1.0, left),
    )


def _is_failure(error: DomaError) -> bool:
    """Whether an error speaks against the origin as a whole."""
    if isinstance(error, Replaced) or error.detail.get("status") == 500:  # about this one file
        return False
    return isinstance(error, StorageUnavailable | TimedOut | OriginFailed)
