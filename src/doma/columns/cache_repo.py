"""The rows of cached results, and of who computes one. Every function is one transaction's work.

A result is known by the question (canonical digest, language, format, engine) and the input (URL, version).
Who takes it over has opened the input in the own name and seen its version.

What is asked of one input several times at once is computed by one process, which holds a leased row; the
others look again until the result is there or the lease has run out. That saves work, no more: each
publishes its own object under its own claim of the file, so two that compute the same are both right.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from doma.columns.model import ENGINE
from doma.columns.tables import cache, leads

SHELF = "/.cache"
"""Where the cache's own objects lie in the result store."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an input."""

    digest: str
    codegen: str
    format: str

    def of(self, url: str) -> str:
        """The question about one input, whatever its version."""
        parts = (self.digest, url, self.format, self.codegen, ENGINE)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """A file whose result is looked for."""

    question: Question
    urls: tuple[str, ...]
    """Where the file is read, its names in the cache."""
    since: float
    """Results that nobody asked for since this instant are not given out."""
    now: float
    key: str = ""
    """What is led: the question about the file as it was asked for; empty: nothing is."""
    owner: str = ""
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Cached:
    """A result that can be taken over."""

    key: str
    input: str
    version: str
    path: str
    object_version: str
    bytes: int
    events: int
    entries: int
    """Entries of the input."""

    @property
    def own(self) -> str:
        """The path of the cache's own object."""
        return f"{SHELF}/{self.key}"


def known(tx: Connection, asked: Sequence[tuple[Question, Sequence[str], float]]) -> list[list[Cached]]:
    """Results of each question to its URLs, asked for since an instant, whatever the inputs' versions."""
    c = cache.c
    places = [[question.of(url) for url in urls] for question, urls, _ in asked]
    wanted = select(cache).where(c.input.in_({p for some in places for p in some})).order_by(c.made.desc())
    by_input: dict[str, list[Row[Any]]] = {}
    for row in tx.execute(wanted.limit(16 * len(asked))):
        by_input.setdefault(row.input, []).append(row)
    found = []
    for some, (_, _, since) in zip(places, asked, strict=True):
        rows = [r for place in dict.fromkeys(some) for r in by_input.get(place, ()) if r.used >= since]
        found.append([_cached(r) for r in sorted(rows, key=lambda r: r.made, reverse=True)[:16]])
    return found


def known_or_led(tx: Connection, asked: Sequence[Asked]) -> list[tuple[list[Cached], bool]]:
    """As :func:`known`; and where nothing is known, whether the owner is the one who computes it now."""
    found = known(tx, [(a.question, a.urls, a.since) for a in asked])
    led = _led(tx, {a.key: a for a, some in zip(asked, found, strict=True) if a.key and not some})
    if led:  # what was finished between the look and the lease
        mine = [i for i, a in enumerate(asked) if a.key in led and not found[i]]
        again = known(tx, [(asked[i].question, asked[i].urls, asked[i].since) for i in mine])
        for i, some in zip(mine, again, strict=True):
            found[i] = some
    return [(some, a.key in led) for a, some in zip(asked, found, strict=True)]


def _led(tx: Connection, wanted: Mapping[str, Asked]) -> set[str]:
    """Take the lead where nobody has it, or has let it run out; which are the owner's now."""
    if not wanted:
        return set()
    kind: Any = postgresql if tx.dialect.name == "postgresql" else sqlite
    # In one order, so that two processes wait for one another only in one direction.
    rows = [{"key": k, "owner": wanted[k].owner, "lease_until": wanted[k].until} for k in sorted(wanted)]
    made = kind.insert(leads).values(rows)
    now = min(a.now for a in wanted.values())
    free = or_(leads.c.lease_until < now, leads.c.owner == made.excluded.owner)
    change = {"owner": made.excluded.owner, "lease_until": made.excluded.lease_until}
    taken = made.on_conflict_do_update(index_elements=["key"], set_=change, where=free)
    return {r.key for r in tx.execute(taken.returning(leads.c.key))}


def keep_lead(tx: Connection, owner: str, until: float) -> None:
    """Prolong all that an owner leads."""
    tx.execute(update(leads).where(leads.c.owner == owner).values(lease_until=until))


def end_lead(tx: Connection, led: Sequence[tuple[str, str]]) -> list[None]:
    """Give up what is led, by (key, owner); what another has taken over stays."""
    for owner in sorted({owner for _, owner in led}):
        keys = [key for key, whose in led if whose == owner]
        tx.execute(delete(leads).where(leads.c.key.in_(keys), leads.c.owner == owner))
    return [None] * len(led)


def leaders(tx: Connection) -> list[str]:
    """The service processes that lead something."""
    return list(tx.execute(select(leads.c.owner).distinct()).scalars())


def end_all(tx: Connection, owners: Sequence[str], now: float) -> None:
    """Give up what stopped or dead processes lead, and what has run out."""
    tx.execute(delete(leads).where(or_(leads.c.owner.in_(owners), leads.c.lease_until < now)))


def remember(tx: Connection, made: Sequence[Cached], request: str, now: float) -> None:
    """Keep new results (see :func:`entry`), objects of a request."""
    rows = [
        {"key": m.key, "input": m.input, "version": m.version, "path": m.path,
         "object_version": m.object_version, "bytes": m.bytes, "events": m.events, "entries": m.entries,
         "request": request, "made": now, "used": now}
        for m in {m.key: m for m in made}.values()
    ]  # fmt: skip
    if rows:
        tx.execute(delete(cache).where(cache.c.key.in_([r["key"] for r in rows])))
        tx.execute(insert(cache), rows)


def entry(
    question: Question,
    url: str,
    version: str,
    path: str,
    object_version: str,
    bytes_: int,
    events: int,
    entries: int,
) -> Cached:
    """A result as the cache knows it."""
    place = question.of(url)
    key = hashlib.sha256(f"{place}\0{version}".encode()).hexdigest()
    return Cached(key, place, version, path, object_version, bytes_, events, entries)


def used(tx: Connection, keys: Sequence[str], now: float) -> None:
    """Note that results were taken over."""
    if keys:
        tx.execute(update(cache).where(cache.c.key.in_(keys)).values(used=now))


def forget(tx: Connection, key: str, path: str) -> None:
    """Drop a cached result, if it still lies there."""
    tx.execute(delete(cache).where(cache.c.key == key, cache.c.path == path))


def of_request(tx: Connection, id_: str, since: float) -> list[Cached]:
    """The results that are objects of a request and were asked for since then."""
    c = cache.c
    return [_cached(r) for r in tx.execute(select(cache).where(c.request == id_, c.used >= since))]


def shelve(tx: Connection, kept: Cached, object_version: str) -> None:
    """A request's object became the cache's own."""
    moved = update(cache).where(cache.c.key == kept.key)
    tx.execute(moved.values(path=kept.own, object_version=object_version, request=""))


def old(tx: Connection, before: float) -> list[Cached]:
    """Some results that nobody asked for since an instant."""
    wanted = select(cache).where(cache.c.used < before).order_by(cache.c.used)
    return [_cached(r) for r in tx.execute(wanted.limit(500))]


def surplus(tx: Connection, most: int) -> list[Cached]:
    """The cache's own objects, least recently used first, that exceed a number of bytes."""
    own = cache.c.request == ""
    over = (tx.execute(select(func.coalesce(func.sum(cache.c.bytes), 0)).where(own)).scalar_one()) - most
    found = []
    for row in tx.execute(select(cache).where(own).order_by(cache.c.used).limit(500)).all():
        if over <= 0:
            break
        found.append(_cached(row))
        over -= row.bytes
    return found


def shelved(tx: Connection, keys: Sequence[str]) -> set[str]:
    """Those of these keys whose own object is in use."""
    rows = tx.execute(select(cache.c.key).where(cache.c.key.in_(keys), cache.c.request == ""))
    return {r.key for r in rows}


def _cached(r: Row[Any]) -> Cached:
    return Cached(r.key, r.input, r.version, r.path, r.object_version, r.bytes, r.events, r.entries)
