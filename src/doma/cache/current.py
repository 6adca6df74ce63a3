"""Settles which version of an object is current, asking the origin when that is due.

Questions to the origin run once for any number of callers that wait for the same object, with the token of
the first; its 401, 403 or 404 is the first caller's alone, and the others ask for themselves.

Source: cache contract §4 (F1-F17), §8, R28.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from doma.cache.catalogue import Catalogue
from doma.cache.entry import Entry
from doma.cache.freshness import FOREVER, Control, may_serve_stale, parse
from doma.cache.lanes import Lanes
from doma.cache.origins import Place, caller
from doma.cache.replicas import Answer, CanProbe, ask
from doma.cache.stats import Counters
from doma.core.config import Cache
from doma.core.errors import (
    DomaError,
    Forbidden,
    NotCached,
    NotFound,
    OriginFailed,
    ServiceUnavailable,
    Unauthenticated,
)
from doma.core.paths import covers
from doma.store.protocol import Stat

log = logging.getLogger(__name__)

NEGATIVE = 30.0
"""Seconds that "there is no such file" is remembered, for the caller that was told so (R28)."""
PAUSE = 15.0
"""Seconds between questions to an origin that did not answer, while stale content is served."""
FORCED = 1.0
"""Seconds between validations of one object that clients force (F12)."""
GRANT = 300.0
"""Seconds that an origin's leave to read is believed, where the client named the origin."""


@dataclass(frozen=True, slots=True)
class Unkept:
    """Something that is served but not stored: a directory, ``no-store``, larger than the cache."""

    stat: Stat
    answer: Answer


class Validator:
    """Knows what is current.

    Args:
        catalogue: The objects here.
        config: Section ``cache``.
        clock: Unix seconds.
        counters: Where to count.
        lanes: Slots at the origins.
        negative: Seconds that a 404 is remembered.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        config: Cache,
        clock: Callable[[], float],
        counters: Counters,
        lanes: Lanes,
        negative: float,
    ) -> None:
        self._catalogue = catalogue
        self._config = config
        self._clock = clock
        self._counters = counters
        self._lanes = lanes
        self._negative = negative
        self._asking: dict[str, tuple[asyncio.Task[Entry | Unkept], str]] = {}
        self._missing: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._closed = False

    async def close(self) -> None:
        """Ask nothing more."""
        self._closed = True
        tasks = [task for task, _ in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def current(self, place: Place, how: Control) -> tuple[Entry | Unkept, bool]:
        """The current version of an object, and whether the origin was asked for that."""
        while not self._closed:
            now = self._clock()
            entry = self._catalogue.find(place)
            force = how is Control.REFRESH and (entry is None or now - entry.asked >= FORCED)
            if entry is not None and entry.fresh(now) and not force and granted(place, entry, now):
                return entry, False
            if how is Control.ONLY_IF_CACHED:
                why = "is not in the cache" if entry is None else "has to be validated at its origin"
                raise NotCached(f"{place.shown}: {why}; ask without only-if-cached", path=place.shown)
            if how is not Control.REFRESH:
                self._refuse_known_missing(place, now)
            if force and entry is not None:
                entry.asked = now
            found = await self._ask(place)
            if isinstance(found, Unkept) or (found is not None and granted(place, found, now)):
                return found, True
            # Another caller's answer: this one has to ask in its own name.
        raise ServiceUnavailable(f"{place.shown}: the cache is closing; try again")

    async def _ask(self, place: Place) -> Entry | Unkept | None:
        """Ask the origin, or join who is asking; None: ask again, that caller's answer is not ours."""
        me = caller()
        task, by = self._asking.get(place.key, (None, ""))
        # A finished task may still stand there for a moment; to wait for it again would be to spin.
        if task is None or task.done():
            task, by = asyncio.create_task(self._refresh(place)), me
            self._asking[place.key] = (task, me)
            task.add_done_callback(lambda done: self._answered(place.key, done))
        try:
            found = await asyncio.shield(task)
        except (Unauthenticated, Forbidden, NotFound):
            if by == me:
                raise
            return None
        except asyncio.CancelledError:
            if task.cancelled() and self._closed:
                raise ServiceUnavailable(f"{place.shown}: the cache is closing; try again") from None
            raise
        # What is not kept carries no note of who may see it.
        return None if isinstance(found, Unkept) and place.named and by != me else found

    def _answered(self, key: str, task: asyncio.Task[Entry | Unkept]) -> None:
        if self._asking.get(key, (None, ""))[0] is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # whoever waits gets it too; nobody may be left

    async def _refresh(self, place: Place) -> Entry | Unkept:
        """Ask the origin what it has, with the caller's own token, and act on it (F3-F6, F10, F11)."""
        entry = self._catalogue.find(place)
        usable = entry is not None and entry.record.comparable and not (entry.suspect or entry.fetcher.broken)
        self._counters.validations += entry is not None
        try:
            answer = await ask(
                place.replicas, self._lanes, caller(), entry.record if entry is not None else None,
                usable=usable, by_size=self._config.replicas_by_size,
            )  # fmt: skip
        except NotFound:
            self._remember_missing(place)
            if entry is not None:
                self._catalogue.remove(entry)
            raise
        except (Unauthenticated, Forbidden):
            raise  # this caller's answer; what others may read stays
        except DomaError as e:
            if entry is None or entry.suspect or not self._excusable(place, entry, e):
                self._counters.origin_errors += 1
                raise
            log.warning("%s: served stale, the origin is away: %s", place.shown, e.message)
            self._counters.stale += 1
            entry.excuse(self._clock() + PAUSE)
            entry.grant(caller(), self._clock() + PAUSE)
            return entry
        return await self._settle(place, entry if usable else None, entry, answer)

    async def _settle(
        self, place: Place, usable: Entry | None, entry: Entry | None, answer: Answer
    ) -> Entry | Unkept:
        """Act on an origin's answer; ``usable`` is the entry if its content can be kept when unchanged."""
        stat = answer.stat
        (usable.fetcher.place if usable is not None else place).learn(answer.duplicates)
        if stat is None:
            if usable is None:
                raise OriginFailed(f"{place.shown}: the origin says 'not modified' to an open question")
            stat = replace(usable.record.stat(place.path), version=usable.record.version)
        kept = parse(answer.cache_control).store and not stat.is_dir and 0 <= stat.size <= self._config.size
        if not kept:
            if entry is not None:
                self._catalogue.remove(entry)
            return Unkept(place.here(stat), answer)
        same = entry if entry is not None and entry.record.version == stat.version else None
        if same is not None and same.record.size != stat.size:
            self._counters.discarded += 1
            text = "%s: the origin says %d bytes, before %d, for the same version; fetched again"
            log.warning(text, place.shown, stat.size, same.record.size)
        elif same is not None and usable is not None:
            self._counters.renewed += 1
            await self._catalogue.renew(usable, answer)
            usable.grant(caller(), self._clock() + GRANT)
            return usable
        lifetime = self._lifetime(place)
        try:
            fresh = await self._catalogue.adopt(place, stat, answer, lifetime)
        except OSError as e:
            self._counters.disk_errors += 1
            log.warning("%s: cannot be kept, the cache disk refused: %s", place.shown, e)
            return Unkept(place.here(stat), answer)
        fresh.grant(caller(), self._clock() + GRANT)
        return fresh

    def _lifetime(self, place: Place) -> float:
        """How long what the origin says nothing about is fresh: the longest path of the key wins (F2)."""
        areas = [path for path in self._config.lifetimes if covers(path, place.shown)]
        if areas:
            said = self._config.lifetimes[max(areas, key=len)]
            return FOREVER if said == "immutable" else said
        return self._config.lifetime if isinstance(place.store, CanProbe) else self._config.file_lifetime

    def _excusable(self, place: Place, entry: Entry, error: DomaError) -> bool:
        """Whether to serve stale: the origin is away, and it has let this caller read the object before."""
        return (
            error.retry != "no"
            and (not place.named or caller() in entry.grants)
            and may_serve_stale(entry.said, self._clock(), entry.expires, self._config.stale_if_error)
        )

    def _remember_missing(self, place: Place) -> None:
        self._missing[place.key, caller()] = self._clock() + self._negative
        while len(self._missing) > 4096:
            self._missing.popitem(last=False)

    def _refuse_known_missing(self, place: Place, now: float) -> None:
        name = (place.key, caller())
        until = self._missing.get(name)
        if until is None:
            return
        if now >= until:
            del self._missing[name]
            return
        raise NotFound(
            f"{place.shown}: the origin had no such file a moment ago; "
            "ask with Cache-Control: no-cache to look again",
            path=place.shown,
        )


def granted(place: Place, entry: Entry, now: float) -> bool:
    """Whether the origin lets this caller read the object, as far as is known here."""
    # At the default origin this site's policy decides for both; elsewhere only the origin can.
    return not place.named or entry.granted(caller(), now)
