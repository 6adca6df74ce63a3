"""The current version of one object while it is in memory: how fresh, who reads it, who may.

Source: cache contract F1, F10, F12, §8.
"""

from collections import OrderedDict

from doma.cache.fetch import Fetcher
from doma.cache.freshness import Directives, fresh_until, parse
from doma.cache.hot import Seen
from doma.cache.record import Record

_GRANTS = 1024
"""Callers that are remembered for one object."""


class Entry:
    """The current version of one object, in memory."""

    __slots__ = (
        "accessed",
        "asked",
        "expires",
        "fetcher",
        "fresh_until",
        "grants",
        "hit",
        "noted",
        "readers",
        "record",
        "said",
        "stale",
        "suspect",
        "touched",
        "used",
    )

    def __init__(self, record: Record, fetcher: Fetcher, accessed: float) -> None:
        self.fetcher = fetcher
        self.readers = 0
        self.accessed = self.touched = accessed
        self.asked = 0.0
        """When a client last forced a validation."""
        self.stale = False
        """Served beyond its lifetime because the origin is away."""
        self.suspect = False
        """The origin contradicted it: validate before the next open."""
        self.grants: OrderedDict[str, float] = OrderedDict()
        """Callers that the origin has let read it, and until when that is believed."""
        self.hit: tuple[int, Seen | None, bytes] = (-1, None, b"")
        """What is said of a hit in this second, and how it stands in an answer's head."""
        self.used = 0
        self.noted = record.validated
        """The last validation that the record on disk knows of."""
        self.renew(record)

    def renew(self, record: Record) -> None:
        """Take over what a validation found."""
        self.record = record
        self.said: Directives = parse(record.cache_control)
        self.expires = self.fresh_until = fresh_until(
            self.said, record.validated, record.age, record.lifetime, record.key
        )
        self.stale = self.suspect = False
        self.hit = (-1, None, b"")

    def excuse(self, until: float) -> None:
        """Serve it stale until then, without another question to the unreachable origin."""
        self.stale, self.fresh_until = True, until
        self.hit = (-1, None, b"")

    def grant(self, caller: str, until: float) -> None:
        """Believe until then that the origin lets this caller read it."""
        self.grants[caller] = until
        while len(self.grants) > _GRANTS:
            self.grants.popitem(last=False)

    def granted(self, caller: str, now: float) -> bool:
        """Whether the origin has let this caller read it not long ago."""
        return self.grants.get(caller, now) > now

    def fresh(self, now: float) -> bool:
        """Whether it may be served without a question to the origin."""
        return now < self.fresh_until and not self.suspect
