"""The rows of datasets. Every function is one transaction's work.

A name is looked up once, whoever and however many ask: ``current`` is unique, so the first request makes the
row and the others wait for it. A stale, outdated or failed row loses its ``current``; the next request makes
another one.

Source: servicex.md §3.6, §4.1 and §6 of the project's contracts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from doma.columns.dataset_tables import dataset_files, datasets
from doma.columns.finder import MAX_REPLICAS, FoundFile, Lookup
from doma.columns.model import Grant, Input
from doma.columns.tables import requests
from doma.db import claim as claims

USER = "user"
"""Finder of the datasets that are file lists."""
BATCH = 500


@dataclass(frozen=True, slots=True)
class Name:
    """A dataset as it is asked for."""

    finder: str
    name: str
    """The whole identifier, ``rucio://scope:name?files=3``."""
    realm: str = ""
    """Who shares the answer: empty for everybody, else one owner."""

    @property
    def key(self) -> str:
        return hashlib.sha256("\0".join((self.finder, self.name, self.realm)).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """A dataset as it stands now."""

    id: int
    finder: str
    name: str
    state: Lookup
    reason: str | None
    stale: bool
    files: int
    bytes: int
    events: int
    used: float
    updated: float


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed look-up."""

    id: int
    attempt: int
    finder: str
    name: str
    grant: Grant


@dataclass(frozen=True, slots=True)
class File:
    """A file of a dataset with its row's number."""

    id: int
    file: FoundFile


def hold(tx: Connection, name: Name, grant: Grant, now: float, age: float) -> tuple[Found, bool]:
    """The dataset of a name, made if there is none, or none younger than ``age``; True: this call made it."""
    c = datasets.c
    outdated = (c.current == name.key) & (c.state == Lookup.COMPLETE) & (c.updated < now - age)
    tx.execute(update(datasets).where(outdated).values(current=None, stale=True))
    made = _make(tx, name, grant, now, Lookup.CREATED)
    row = tx.execute(update(datasets).where(c.current == name.key).values(used=now).returning(datasets)).one()
    return _found(row), made


def hold_list(tx: Connection, urls: Sequence[str], grant: Grant, now: float) -> Found:
    """The dataset that a list of files is; equal lists are one dataset."""
    name = Name(USER, hashlib.sha256(" ".join(urls).encode()).hexdigest())
    made = _make(tx, name, grant, now, Lookup.COMPLETE)
    c = datasets.c
    row = tx.execute(update(datasets).where(c.current == name.key).values(used=now).returning(datasets)).one()
    if made:
        _store(tx, row.id, [FoundFile(url, (url,)) for url in urls])
        row = tx.execute(
            update(datasets).where(c.id == row.id).values(files=len(urls)).returning(datasets)
        ).one()
    return _found(row)


def found(tx: Connection, id_: int) -> Found | None:
    """A dataset, whosever it is."""
    return _one(tx, datasets.c.id == id_)


def current(tx: Connection, name: Name) -> Found | None:
    """The dataset that a name has now, however old its answer is."""
    return _one(tx, datasets.c.current == name.key)


def inputs(tx: Connection, id_: int) -> list[Input]:
    """The files of a dataset as a request takes them, in order."""
    c = dataset_files.c
    rows = tx.execute(select(c.replicas).where(c.dataset == id_).order_by(c.number))
    return [Input(r.replicas[0], tuple(r.replicas[1:])) for r in rows]


def files(tx: Connection, id_: int) -> list[File]:
    """The files of a dataset, in order."""
    c = dataset_files.c
    rows = tx.execute(select(dataset_files).where(c.dataset == id_).order_by(c.number))
    return [File(r.id, file_of(r)) for r in rows]


def take(tx: Connection, worker: str, now: float, lease: float, limit: int) -> list[Work]:
    """Claim look-ups for this process."""
    rows = claims.claim(
        tx, datasets, ready=[Lookup.CREATED], running=Lookup.LOOKING, owner=worker, now=now, lease=lease,
        limit=limit, order=[datasets.c.id],
    )  # fmt: skip
    return [_work(r) for r in rows]


def work_of(tx: Connection, id_: int) -> Work | None:
    """What looking up a dataset again needs."""
    r = tx.execute(select(datasets).where(datasets.c.id == id_)).one_or_none()
    return None if r is None else _work(r)


def renew(tx: Connection, held: dict[int, int], now: float, lease: float) -> set[int]:
    """Prolong leases; returns the datasets that are still ours."""
    return claims.renew(tx, datasets, held, running=Lookup.LOOKING, now=now, lease=lease)


def release(tx: Connection, worker: str) -> int:
    """Give back what a process holds that stops in good order."""
    return claims.give_back(tx, datasets, worker, running=Lookup.LOOKING, ready=Lookup.CREATED)


def complete(tx: Connection, work: Work, result: Sequence[FoundFile], now: float) -> bool:
    """Record what a look-up found; False: it is no longer this attempt's."""
    total = {"bytes": sum(f.bytes for f in result), "events": sum(f.events for f in result)}
    if not claims.settle(
        tx, datasets, work.id, work.attempt, running=Lookup.LOOKING, state=Lookup.COMPLETE,
        files=len(result), updated=now, reason=None, **total,
    ):  # fmt: skip
        return False
    _store(tx, work.id, result)
    return True


def fail(tx: Connection, work: Work, state: Lookup, reason: str, now: float) -> bool:
    """Record that a look-up came to nothing; the next request begins a new one."""
    return claims.settle(
        tx, datasets, work.id, work.attempt, running=Lookup.LOOKING, state=state, reason=reason[:2000],
        updated=now, current=None,
    )  # fmt: skip


def refresh(tx: Connection, id_: int, result: Sequence[FoundFile], now: float) -> None:
    """Take over where the files of a dataset lie now; which files it has stays as it is.

    Places that are gone stand behind the new ones: who was sent there finds the file by them.
    """
    places = {f.name: f.replicas for f in result}
    c = dataset_files.c
    for row in tx.execute(select(c.id, c.name, c.replicas).where(c.dataset == id_)).all():
        all_ = list(dict.fromkeys([*places.get(row.name, ()), *row.replicas]))[:MAX_REPLICAS]
        if all_ != row.replicas:
            tx.execute(update(dataset_files).where(c.id == row.id).values(replicas=all_))
    tx.execute(update(datasets).where(datasets.c.id == id_).values(updated=now))


def listed(
    tx: Connection, owner: str, finder: str | None, *, stale: bool, limit: int = 10_000
) -> list[Found]:
    """The datasets that an owner's requests used, youngest first."""
    wanted = select(datasets).where(_seen(owner))
    if finder is not None:
        wanted = wanted.where(datasets.c.finder == finder)
    if not stale:
        wanted = wanted.where(datasets.c.stale.is_(False))
    return [_found(r) for r in tx.execute(wanted.order_by(datasets.c.id.desc()).limit(limit))]


def seen(tx: Connection, id_: int, owner: str) -> Found | None:
    """A dataset, if a request of this owner used it."""
    return _one(tx, datasets.c.id == id_, _seen(owner))


def mark_stale(tx: Connection, id_: int) -> bool:
    """Have the next request look the dataset up anew; False: it was marked already."""
    c = datasets.c
    done = tx.execute(
        update(datasets).where(c.id == id_, c.stale.is_(False)).values(stale=True, current=None)
    )
    return done.rowcount == 1


def outdate(tx: Connection, finder: str, name: str) -> None:
    """Mark all datasets of a name stale, whatever number of files they ask for."""
    c = datasets.c
    whole = f"{finder}://{name}"
    part = c.name.startswith(f"{whole}?files=", autoescape=True)
    tx.execute(
        update(datasets)
        .where(c.finder == finder, c.state == Lookup.COMPLETE, (c.name == whole) | part)
        .values(stale=True, current=None)
    )


def tidy(tx: Connection, before: float, limit: int = 100) -> int:
    """Remove datasets that no request uses any more and nobody asked for since an instant."""
    used = exists().where(requests.c.dataset == datasets.c.id)
    over = datasets.c.state.in_([s for s in Lookup if s.final])
    old = select(datasets.c.id).where(datasets.c.used < before, ~used, over).limit(limit)
    ids = [r.id for r in tx.execute(old)]
    tx.execute(delete(dataset_files).where(dataset_files.c.dataset.in_(ids)))
    return tx.execute(delete(datasets).where(datasets.c.id.in_(ids))).rowcount


def _seen(owner: str) -> ColumnElement[bool]:
    return exists().where(requests.c.dataset == datasets.c.id, requests.c.owner == owner)


def _make(tx: Connection, name: Name, grant: Grant, now: float, state: Lookup) -> bool:
    """Make the row of a name unless there is one; two that do it at once make one."""
    kind: Any = postgresql if tx.dialect.name == "postgresql" else sqlite
    made = kind.insert(datasets).values(
        current=name.key, finder=name.finder, name=name.name, issuer=grant.issuer, subject=grant.subject,
        scopes=list(grant.scopes), state=state, attempt=0, stale=False, files=0, bytes=0, events=0,
        used=now, updated=now,
    )  # fmt: skip
    once = made.on_conflict_do_nothing(index_elements=["current"]).returning(datasets.c.id)
    return tx.execute(once).first() is not None


def _store(tx: Connection, id_: int, result: Sequence[FoundFile]) -> None:
    tx.execute(delete(dataset_files).where(dataset_files.c.dataset == id_))
    rows = [{"dataset": id_, "number": i, **row_of(f)} for i, f in enumerate(result)]
    for start in range(0, len(rows), BATCH):
        tx.execute(insert(dataset_files), rows[start : start + BATCH])


def _one(tx: Connection, *which: ColumnElement[bool]) -> Found | None:
    row = tx.execute(select(datasets).where(*which)).one_or_none()
    return None if row is None else _found(row)


def file_of(r: Row[Any]) -> FoundFile:
    """A file from its row, here and in the catalogue."""
    return FoundFile(r.name, tuple(r.replicas), r.bytes, r.events, r.adler32)


def row_of(f: FoundFile) -> dict[str, Any]:
    """What its row holds besides its place."""
    replicas = list(f.replicas[:MAX_REPLICAS])
    return {"name": f.name, "replicas": replicas, "bytes": f.bytes, "events": f.events, "adler32": f.adler32}


def _found(r: Row[Any]) -> Found:
    return Found(
        r.id, r.finder, r.name, Lookup(r.state), r.reason, r.stale, r.files, r.bytes, r.events, r.used,
        r.updated,
    )  # fmt: skip


def _work(r: Row[Any]) -> Work:
    return Work(r.id, r.attempt, r.finder, r.name, Grant(r.issuer, r.subject, tuple(r.scopes)))
