"""Which objects a purge takes, in which order, and why: a decision over the index, nothing is done.

Order: what was given up by command, what has to be validated anyway, what lies above a quota, the longest
unread. A VO or path above its quota loses just what it is above; on top of a factor on everybody's age, that
was refused, its loss is known beforehand. Quotas do not start a purge: while there is room, all may use it.

Source: cache contract §7 "Purge rules".
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from doma.cache.index import Index, Row

FIRST, EXPIRED, LEAST = "evicted, first in line", "expired", "least recently read"


@dataclass(frozen=True, slots=True)
class Victim:
    """An object that a purge takes, or would take."""

    path: str
    used: int
    """Disk bytes."""
    accessed: float
    """Unix seconds; 0 if it was given up by command."""
    reason: str
    key: str
    """Its name on disk."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of the purge."""

    quotas: Mapping[str, int]
    """Path to disk bytes."""
    vo_quotas: Mapping[str, int]
    age: float
    """Seconds without a read after which an object goes, room or not; 0: never."""


def plan(index: Index, rules: Rules, excess: int, now: float, kept: Collection[str]) -> list[Victim]:
    """What to remove, in order. Blocks.

    Args:
        index: What there is.
        rules: Quotas and age.
        excess: Disk bytes to free; what is too old goes even if it is 0.
        now: Unix seconds.
        kept: Keys of what is in use; it stays, as does what is pinned.
    """
    chosen = _Chosen(excess, frozenset(kept) | index.pinned(now))
    if rules.age:
        for row in index.oldest(before=now - rules.age):
            chosen.take(row, f"not read for {rules.age / 86400:g} days")
    chosen.fill(index.first_in_line(), FIRST)
    chosen.fill(index.expired(now), EXPIRED)
    for top, quota in sorted(rules.quotas.items(), key=lambda item: -item[0].count("/")):
        if not chosen.done:
            over = index.used_below(top) - quota
            inner = top.rstrip("/") + "/"
            over -= sum(v.used for v in chosen.victims if f"{v.path}/".startswith(inner))
            chosen.fill(index.oldest_below(top), f"over the quota of {top}", over)
    for vo, quota in sorted(rules.vo_quotas.items()):
        if not chosen.done:
            over = index.used_by(vo) - quota - chosen.of.get(vo, 0)
            chosen.fill(index.oldest_of(vo), f"over the quota of the VO {vo}", over)
    chosen.fill(index.oldest(), LEAST)
    return chosen.victims


class _Chosen:
    """The victims so far."""

    def __init__(self, excess: int, kept: frozenset[str]) -> None:
        self.victims: list[Victim] = []
        self.of: dict[str, int] = {}
        """Bytes of the victims by VO."""
        self._left = excess
        self._out = set(kept)

    @property
    def done(self) -> bool:
        return self._left <= 0

    def fill(self, rows: Iterator[Row], reason: str, most: int | None = None) -> None:
        """Take rows until there is enough, or ``most`` bytes of these."""
        for row in rows if not self.done else ():
            if self.done or (most is not None and most <= 0):
                return
            if self.take(row, reason) and most is not None:
                most -= row.used

    def take(self, row: Row, reason: str) -> bool:
        if row.key in self._out:
            return False
        self._out.add(row.key)
        self.victims.append(Victim(row.path, row.used, row.accessed, reason, row.key))
        self.of[row.vo] = self.of.get(row.vo, 0) + row.used
        self._left -= row.used
        return True
