"""The rows of the column service: requests, files, cached results. Every function is one transaction's work.

A file's result and the counters of its request change in the same transaction, fenced by the attempt
number: a late answer of an earlier attempt changes nothing, and nothing is counted twice.

Source: servicex.md §3.4 (strictly increasing times) and §12 of the project's contracts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from doma.columns.model import (
    ENGINE,
    FILES,
    FINAL,
    FileEvent,
    FileResult,
    FileState,
    Grant,
    Outcome,
    Request,
    State,
    Submission,
    verdict,
)
from doma.columns.tables import cache, files, requests
from doma.core.events import Event
from doma.db import claim as claims
from doma.db import outbox


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed file with all that running it needs."""

    file: int
    attempt: int
    request: str
    url: str
    replicas: tuple[str, ...]
    number: int
    selection: str
    codegen: str
    digest: str
    format: str
    grant: Grant


@dataclass(frozen=True, slots=True)
class Cached:
    """A result that can be taken over."""

    key: str
    version: str
    path: str
    object_version: str
    bytes: int
    events: int


def add(tx: Connection, id_: str, grant: Grant, ask: Submission, digest: str, now: float) -> None:
    """Store a request with its files; an empty list of files is complete at once."""
    did = ask.did or hashlib.sha256(" ".join(ask.files).encode()).hexdigest()
    state = State.SUBMITTED if ask.files else State.COMPLETE
    tx.execute(
        insert(requests).values(
            id=id_, owner=grant.owner, issuer=grant.issuer, subject=grant.subject, scopes=list(grant.scopes),
            title=ask.title, did=did, selection=ask.selection, digest=digest, codegen=ask.codegen,
            format=ask.format, destination=ask.destination, state=state, wanted="", failure=None,
            files=len(ask.files), completed=0, failed=0, submitted=now,
            finished=None if ask.files else now, visible=0,
        )
    )  # fmt: skip
    blank = {"request": id_, "state": FileState.WAITING, "attempt": 0, "bytes": 0, "events": 0,
             "seconds": 0.0, "read": 0, "visible": 0, "replicas": [], "cached": False, "entries": 0,
             "passed": 0}  # fmt: skip
    rows = [{**blank, "number": i, "url": url} for i, url in enumerate(ask.files)]
    for start in range(0, len(rows), 500):
        tx.execute(insert(files), rows[start : start + 500])
    _tell(tx, "request.submitted", id_, grant.owner, now, {"files": len(ask.files), "state": state})


def get(tx: Connection, id_: str, owner: str) -> Request | None:
    """A request, if it is this owner's."""
    row = tx.execute(select(requests).where(requests.c.id == id_, requests.c.owner == owner)).one_or_none()
    return None if row is None else _request(row)


def listed(tx: Connection, owner: str, limit: int) -> list[Request]:
    """An owner's requests, youngest first."""
    wanted = select(requests).where(requests.c.owner == owner).order_by(requests.c.submitted.desc())
    return [_request(r) for r in tx.execute(wanted.limit(limit))]


def results(tx: Connection, id_: str, later_than: int = -1) -> list[FileResult]:
    """Finished files (done or failed) that became visible after an instant in microseconds."""
    wanted = (
        select(files)
        .where(files.c.request == id_, files.c.visible > max(later_than, 0))
        .order_by(files.c.visible)
    )
    return [_file(r) for r in tx.execute(wanted)]


def take(tx: Connection, worker: str, now: float, lease: float, limit: int) -> list[Job]:
    """Claim files for this process: first those of the users who have least running."""
    open_ = select(requests.c.id).where(requests.c.wanted == "", requests.c.state.not_in(FINAL))
    busy = (
        select(requests.c.owner, func.count().label("n"))
        .join(files, files.c.request == requests.c.id)
        .where(files.c.state == FileState.RUNNING)
        .group_by(requests.c.owner)
        .subquery()
    )
    load = (
        select(func.coalesce(func.max(busy.c.n), 0))
        .select_from(requests.outerjoin(busy, busy.c.owner == requests.c.owner))
        .where(requests.c.id == files.c.request)
        .scalar_subquery()
    )
    jobs: list[Job] = []
    for _ in range(limit):
        # One by one, so that each claim sees the load that the last one made.
        rows = claims.claim(
            tx, files, ready=[FileState.WAITING], running=FileState.RUNNING, owner=worker, now=now,
            lease=lease, limit=1, where=files.c.request.in_(open_), order=[load, files.c.attempt, files.c.id],
        )  # fmt: skip
        if not rows:
            break
        (row,) = rows
        ask = tx.execute(select(requests).where(requests.c.id == row.request)).one()
        grant = Grant(ask.issuer, ask.subject, tuple(ask.scopes))
        file = {"file": row.id, "attempt": row.attempt, "url": row.url, "number": row.number}
        question = {"selection": ask.selection, "codegen": ask.codegen, "digest": ask.digest}
        rest = {"format": ask.format, "replicas": tuple(row.replicas), "grant": grant}
        jobs.append(Job(request=ask.id, **file, **question, **rest))
        if ask.state == State.SUBMITTED:
            tx.execute(update(requests).where(requests.c.id == ask.id).values(state=State.RUNNING))
            _tell(tx, "request.started", ask.id, ask.owner, now, {"state": State.RUNNING})
    return jobs


def renew(tx: Connection, held: dict[int, int], now: float, lease: float) -> set[int]:
    """Prolong leases; returns the files that are still ours."""
    return claims.renew(tx, files, held, running=FileState.RUNNING, now=now, lease=lease)


def release(tx: Connection, workers: Sequence[str]) -> int:
    """Give back everything that stopped or dead service processes hold."""
    return sum(
        claims.give_back(tx, files, w, running=FileState.RUNNING, ready=FileState.WAITING) for w in workers
    )


def holders(tx: Connection) -> list[str]:
    """The service processes that hold files."""
    held = select(files.c.owner).where(files.c.state == FileState.RUNNING).distinct()
    return [r.owner for r in tx.execute(held) if r.owner]


def done(tx: Connection, job: Job, name: str, path: str, version: str, outcome: Outcome, now: float) -> bool:
    """Record a result whose object is readable already, and count it; False: no longer this attempt's."""
    visible = _tick(tx, job.request, now)
    if not claims.settle(
        tx, files, job.file, job.attempt, running=FileState.RUNNING, state=FileState.DONE, name=name,
        bytes=outcome.bytes, events=outcome.rows, seconds=outcome.seconds, read=outcome.read, reason=None,
        visible=visible, cached=outcome.cached, entries=outcome.events, passed=outcome.events,
        place=outcome.url or None, log=outcome.log or None,
    ):  # fmt: skip
        return False
    if outcome.version:
        _remember(tx, job, path, version, outcome, now)
    _count(tx, job.request, now, visible, completed=1)
    return True


def failed(tx: Connection, job: Job, reason: str, now: float) -> bool:
    """Record that a file cannot be done."""
    visible, mine = _tick(tx, job.request, now), (job.file, job.attempt)
    ended: dict[str, Any] = {"state": FileState.FAILED, "reason": reason, "visible": visible}
    if not claims.settle(tx, files, *mine, running=FileState.RUNNING, **ended):
        return False
    _count(tx, job.request, now, visible, failed=1, reason=f"{job.url}: {reason}"[:2000])
    return True


def again(tx: Connection, job: Job, reason: str) -> bool:
    """Give a file back for another attempt."""
    return claims.settle(
        tx, files, job.file, job.attempt, running=FileState.RUNNING, state=FileState.WAITING, reason=reason
    )


def cancel(tx: Connection, id_: str, now: float) -> None:
    """Stop a request: what is not done will not be done."""
    tx.execute(
        update(files)
        .where(files.c.request == id_, files.c.state.in_(FILES.before(FileEvent.CANCEL)))
        .values(state=FileState.CANCELED, owner=None, lease_until=None)
    )
    ended = tx.execute(
        update(requests)
        .where(requests.c.id == id_, requests.c.state.not_in(FINAL))
        .values(state=State.CANCELED, wanted=State.CANCELED, finished=now)
        .returning(requests.c.owner)
    ).one_or_none()
    if ended is not None:
        _tell(tx, "request.finished", id_, ended.owner, now, {"state": State.CANCELED})


def remove(tx: Connection, id_: str, now: float) -> None:
    """Forget a request, its files and the cached results that its objects are."""
    tx.execute(delete(cache).where(cache.c.request == id_))
    tx.execute(delete(files).where(files.c.request == id_))
    gone = tx.execute(delete(requests).where(requests.c.id == id_).returning(requests.c.owner)).one_or_none()
    if gone is not None:
        _tell(tx, "request.deleted", id_, gone.owner, now, {})


def expired(tx: Connection, before: float) -> list[str]:
    """Requests that ended before an instant."""
    old = select(requests.c.id).where(requests.c.finished < before, requests.c.state.in_(FINAL))
    return [r.id for r in tx.execute(old.limit(100))]


def known(tx: Connection, digest: str, url: str, format_: str) -> list[Cached]:
    """Results of other requests for the same question to the same URL, whatever the input's version."""
    rows = tx.execute(
        select(cache)
        .where(cache.c.input == _input(digest, url, format_))
        .order_by(cache.c.made.desc())
        .limit(8)
    )
    return [Cached(r.key, r.version, r.path, r.object_version, r.bytes, r.events) for r in rows]


def forget(tx: Connection, key: str) -> None:
    """Drop a cached result whose object is gone."""
    tx.execute(delete(cache).where(cache.c.key == key))


def _input(digest: str, url: str, format_: str) -> str:
    return hashlib.sha256("\0".join((digest, url, format_, ENGINE)).encode()).hexdigest()


def _remember(tx: Connection, job: Job, path: str, version: str, outcome: Outcome, now: float) -> None:
    place = _input(job.digest, job.url, job.format)
    key = hashlib.sha256(f"{place}\0{outcome.version}".encode()).hexdigest()
    tx.execute(delete(cache).where(cache.c.key == key))
    tx.execute(
        insert(cache).values(
            key=key, input=place, version=outcome.version, path=path, object_version=version,
            bytes=outcome.bytes, events=outcome.rows, request=job.request, made=now, used=now,
        )
    )  # fmt: skip


def _tick(tx: Connection, id_: str, now: float) -> int:
    """The instant at which the next result of a request becomes visible: later than all before it."""
    row = tx.execute(select(requests.c.visible).where(requests.c.id == id_).with_for_update()).one_or_none()
    return max(int(now * 1e6), (row.visible if row else 0) + 1)


def _count(
    tx: Connection,
    id_: str,
    now: float,
    visible: int,
    *,
    completed: int = 0,
    failed: int = 0,
    reason: str = "",
) -> None:
    c = requests.c
    row = tx.execute(
        update(requests)
        .where(c.id == id_)
        .values(completed=c.completed + completed, failed=c.failed + failed, visible=visible)
        .returning(requests)
    ).one()
    state = verdict(row.files, row.completed, row.failed)
    values: dict[str, Any] = {}
    if reason and not row.failure:
        values["failure"] = reason
    if row.state not in FINAL:
        values["state"] = state
        if state in FINAL:
            values["finished"] = now
    if values:
        tx.execute(update(requests).where(c.id == id_).values(**values))
    facts = {"completed": row.completed, "failed": row.failed, "files": row.files, "state": str(state)}
    _tell(tx, "request.finished" if state in FINAL else "request.advanced", id_, row.owner, now, facts)


def _tell(tx: Connection, kind: str, id_: str, owner: str, now: float, data: dict[str, Any]) -> None:
    outbox.append(
        tx, Event(kind, id_, {k: str(v) if isinstance(v, State) else v for k, v in data.items()}, owner), now
    )


def _request(r: Row[Any]) -> Request:
    return Request(
        r.id, r.owner, r.title, r.did, r.selection, r.codegen, r.format, r.destination, State(r.state),
        r.wanted,
        r.failure, r.files, r.completed, r.failed, r.submitted, r.finished,
    )  # fmt: skip


def _file(r: Row[Any]) -> FileResult:
    return FileResult(
        r.id, r.request, r.number, r.url, FileState(r.state), r.reason, r.name, r.bytes, r.events, r.seconds,
        r.read, r.visible,
    )  # fmt: skip
