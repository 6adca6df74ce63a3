"""The rows of cached results. Every function is one transaction's work.

A result is known by the question (canonical digest, language, format, engine) and the input (URL, version).
Who takes it over has opened the input in the own name and seen its version.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from doma.columns.model import ENGINE
from doma.columns.tables import cache

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


def known(tx: Connection, question: Question, urls: Sequence[str], since: float = 0.0) -> list[Cached]:
    """Results of the same question to these URLs, asked for since then, whatever the inputs' versions."""
    c = cache.c
    inputs = [question.of(url) for url in urls]
    rows = tx.execute(
        select(cache).where(c.input.in_(inputs), c.used >= since).order_by(c.made.desc()).limit(16)
    )
    return [_cached(r) for r in rows]


def remember(tx: Connection, made: Cached, request: str, now: float) -> None:
    """Keep a new result (see :func:`entry`), an object of a request."""
    tx.execute(delete(cache).where(cache.c.key == made.key))
    tx.execute(
        insert(cache).values(
            key=made.key, input=made.input, version=made.version, path=made.path,
            object_version=made.object_version, bytes=made.bytes, events=made.events,
            entries=made.entries, request=request,
            made=now, used=now,
        )
    )  # fmt: skip


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


def used(tx: Connection, key: str, now: float) -> None:
    """Note that a result was taken over."""
    tx.execute(update(cache).where(cache.c.key == key).values(used=now))


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
