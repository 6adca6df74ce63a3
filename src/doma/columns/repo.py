"""The rows of requests: submit, look, settle, cancel, remove. Every function is one transaction's work.

Source: servicex.md §3.3, §3.4 and §4.1 of the project's contracts.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from doma.columns import dataset_repo
from doma.columns.finder import Lookup
from doma.columns.model import (
    FILES,
    FINAL,
    FileEvent,
    FileResult,
    FileState,
    Grant,
    Input,
    Progressed,
    Request,
    State,
    Submission,
    verdict,
)
from doma.columns.tables import cache, files, requests
from doma.core.events import Event
from doma.db import outbox

BATCH = 500
ENDED = (FileState.DONE, FileState.FAILED, FileState.CANCELED)
"""What the counters of a request are about."""


def unfinished(tx: Connection, owner: str) -> int:
    """Files that are still to be done for an owner; each of the unfinished requests counts as one more."""
    c = requests.c
    left = func.coalesce(func.sum(c.files - c.completed - c.failed + 1), 0)
    return int(tx.execute(select(left).where(c.owner == owner, c.state.not_in(FINAL))).scalar_one())


def add(
    tx: Connection,
    id_: str,
    grant: Grant,
    ask: Submission,
    digest: str,
    now: float,
    *,
    inputs: Sequence[Input] | None = None,
    dataset: int | None = None,
    state: State = State.SUBMITTED,
) -> None:
    """Store a request with its files; an empty list of files is complete at once.

    Args:
        tx: A write transaction.
        id_: The new request.
        grant: In whose name its inputs are read.
        ask: The question.
        digest: Of the question in canonical form.
        now: Unix seconds.
        inputs: The files with their replicas; None: those of the question.
        dataset: Number of the dataset.
        state: Lookup or Pending Lookup for a dataset whose files are not known yet.
    """
    found = [Input(url) for url in ask.files] if inputs is None else inputs
    did = ask.did or hashlib.sha256(" ".join(ask.files).encode()).hexdigest()
    if state is State.SUBMITTED and not found:
        state = State.COMPLETE
    tx.execute(
        insert(requests).values(
            id=id_, owner=grant.owner, issuer=grant.issuer, subject=grant.subject, scopes=list(grant.scopes),
            title=ask.title, did=did, dataset=dataset, selection=ask.selection, digest=digest,
            codegen=ask.codegen, format=ask.format, destination=ask.destination, state=state, wanted="",
            failure=None, files=len(found), completed=0, failed=0, submitted=now,
            finished=now if state is State.COMPLETE else None, visible=0, served=0.0,
        )
    )  # fmt: skip
    _store(tx, id_, found)
    tell(tx, "request.submitted", id_, grant.owner, now, {"files": len(found), "state": state})


def settled(tx: Connection, dataset: int, now: float) -> None:
    """Move the requests on that waited for a dataset, whose look-up has ended."""
    end = dataset_repo.found(tx, dataset)
    c = requests.c
    waiting = select(c.id, c.owner).where(c.dataset == dataset, c.state.in_([State.LOOKUP, State.PENDING]))
    rows = tx.execute(waiting).all()
    if end is None or not rows:
        return
    inputs = dataset_repo.inputs(tx, dataset) if end.state is Lookup.COMPLETE else []
    values: dict[str, Any] = {"files": len(inputs), "state": State.SUBMITTED}
    if end.state is not Lookup.COMPLETE:
        values = {"state": State.BAD, "failure": end.reason or f"{end.name}: {end.state}", "finished": now}
    elif not inputs:
        values |= {"state": State.COMPLETE, "finished": now}
    for row in rows:
        _store(tx, row.id, inputs)
        tx.execute(update(requests).where(c.id == row.id).values(**values))
        ended = values["state"] in FINAL
        kind = "request.finished" if ended else "request.advanced"
        tell(tx, kind, row.id, row.owner, now, {"files": len(inputs), "state": values["state"]})


def get(tx: Connection, id_: str, owner: str) -> Request | None:
    """A request, if it is this owner's."""
    row = tx.execute(select(requests).where(requests.c.id == id_, requests.c.owner == owner)).one_or_none()
    return None if row is None else _request(row)


def listed(tx: Connection, owner: str, limit: int) -> list[Request]:
    """An owner's requests, youngest first."""
    wanted = select(requests).where(requests.c.owner == owner).order_by(requests.c.submitted.desc())
    return [_request(r) for r in tx.execute(wanted.limit(limit))]


def open_ones(tx: Connection, owner: str) -> list[str]:
    """The requests of an owner that have not ended, youngest first."""
    c = requests.c
    wanted = select(c.id).where(c.owner == owner, c.finished.is_(None), c.state.not_in(FINAL))
    return list(tx.execute(wanted.order_by(c.submitted.desc())).scalars())


def results(tx: Connection, id_: str, later_than: int = -1) -> list[FileResult]:
    """Finished files (done or failed) that became visible after an instant in microseconds."""
    wanted = (
        select(files)
        .where(files.c.request == id_, files.c.visible > max(later_than, 0))
        .order_by(files.c.visible)
    )
    return [_file(r) for r in tx.execute(wanted)]


def all_files(tx: Connection, id_: str, limit: int, after: int = -1) -> list[FileResult]:
    """Files of a request in any state, by number."""
    c = files.c
    wanted = select(files).where(c.request == id_, c.number > after).order_by(c.number).limit(limit)
    return [_file(r) for r in tx.execute(wanted)]


def progress(tx: Connection, id_: str) -> Progressed:
    """How far a request is: what has ended is counted in its row already."""
    r = tx.execute(select(requests).where(requests.c.id == id_)).one()
    entries, passed, read, running = _moved(tx, id_, FileState.RUNNING)
    return Progressed(
        r.files, r.completed, r.failed, running, r.entries + entries, r.passed + passed, r.read + read,
        r.bytes, r.events, r.seconds, r.quickest or 0.0, r.slowest or 0.0, r.pushed,
    )  # fmt: skip


def _moved(tx: Connection, id_: str, state: FileState) -> tuple[int, int, int, int]:
    """Entries, those passed, bytes read, and number of the files in a state."""
    c = files.c
    sums = [func.coalesce(func.sum(x), 0) for x in (c.entries, c.passed, c.read)]
    found = tx.execute(select(*sums, func.count()).where(c.request == id_, c.state == state)).one()
    entries, passed, read, count = map(int, found)
    return entries, passed, read, count


def cancel(tx: Connection, id_: str, now: float) -> None:
    """Stop a request: what is not done will not be done."""
    tx.execute(
        update(files)
        .where(files.c.request == id_, files.c.state.in_(FILES.before(FileEvent.CANCEL)))
        .values(state=FileState.CANCELED, owner=None, lease_until=None)
    )
    entries, passed, read, _ = _moved(tx, id_, FileState.CANCELED)
    ended = tx.execute(
        update(requests)
        .where(requests.c.id == id_, requests.c.state.not_in(FINAL))
        .values(
            state=State.CANCELED,
            wanted=State.CANCELED,
            finished=now,
            entries=requests.c.entries + entries,
            passed=requests.c.passed + passed,
            read=requests.c.read + read,
        )
        .returning(requests.c.owner)
    ).one_or_none()
    if ended is not None:
        tell(tx, "request.finished", id_, ended.owner, now, {"state": State.CANCELED})


def remove(tx: Connection, id_: str, now: float) -> None:
    """Forget a request, its files and the cached results that its objects are."""
    tx.execute(delete(cache).where(cache.c.request == id_))
    tx.execute(delete(files).where(files.c.request == id_))
    gone = tx.execute(delete(requests).where(requests.c.id == id_).returning(requests.c.owner)).one_or_none()
    if gone is not None:
        tell(tx, "request.deleted", id_, gone.owner, now, {})


def expired(tx: Connection, before: float) -> list[str]:
    """Requests that ended before an instant."""
    old = select(requests.c.id).where(requests.c.finished < before, requests.c.state.in_(FINAL))
    return [r.id for r in tx.execute(old.limit(100))]


def stranded(tx: Connection, now: float) -> list[str]:
    """End the requests that nothing works on any more: no file waits or runs, and no look-up is under way.

    Counters and states change together, so there should be none; whatever the cause, nobody waits for ever.
    """
    c = requests.c
    open_ = select(files.c.id).where(
        files.c.request == c.id, files.c.state.in_([FileState.WAITING, FileState.RUNNING])
    )
    lost = select(requests).where(c.finished.is_(None), c.state.not_in(FINAL), ~open_.exists())
    ended = []
    for row in tx.execute(lost).all():
        if row.state in {State.LOOKUP, State.PENDING}:
            end = None if row.dataset is None else dataset_repo.found(tx, row.dataset)
            if end is not None and not end.state.final:
                continue
            if end is not None:
                settled(tx, end.id, now)
                continue
        _end(tx, row, now)
        ended.append(row.id)
    return ended


def _end(tx: Connection, row: Row[Any], now: float) -> None:
    """Set a request's counters to what its files say, and its state to what follows."""
    sums = _tally(tx, row.id)
    state = verdict(row.files, sums["completed"], sums["failed"])
    values: dict[str, Any] = {**sums, "finished": now}
    if state not in FINAL or row.state in {State.LOOKUP, State.PENDING}:
        missing = row.files - sums["completed"] - sums["failed"]
        what = f"{missing} of its files are lost" if missing else f"the look-up of {row.did} was lost"
        state, values["failure"] = State.FATAL, f"request {row.id}: {what}; submit it again"
    tx.execute(update(requests).where(requests.c.id == row.id).values(**values, state=state))
    tell(tx, "request.finished", row.id, row.owner, now, {"state": state})


def _tally(tx: Connection, id_: str) -> dict[str, Any]:
    """A request's counters by what its files say."""
    c = files.c
    done = c.state == FileState.DONE
    sums = {n: func.coalesce(func.sum(c[n]), 0) for n in ("entries", "passed", "read", "bytes", "events")}
    mine = {
        "completed": func.count().filter(done),
        "failed": func.count().filter(c.state == FileState.FAILED),
        "pushed": func.count().filter(done, c.pushed),
        "seconds": func.coalesce(func.sum(c.seconds).filter(done), 0.0),
        "quickest": func.min(c.seconds).filter(done),
        "slowest": func.max(c.seconds).filter(done),
    }
    wanted = select(*(x.label(n) for n, x in (sums | mine).items())).where(c.request == id_)
    return dict(tx.execute(wanted.where(c.state.in_(ENDED))).one()._mapping)


def tell(tx: Connection, kind: str, id_: str, owner: str, now: float, data: dict[str, Any]) -> None:
    """Add an event to the outbox."""
    outbox.append(
        tx, Event(kind, id_, {k: str(v) if isinstance(v, State) else v for k, v in data.items()}, owner), now
    )


def _store(tx: Connection, id_: str, inputs: Sequence[Input]) -> None:
    blank = {"request": id_, "state": FileState.WAITING, "attempt": 0, "bytes": 0, "events": 0,
             "seconds": 0.0, "read": 0, "visible": 0, "cached": False, "entries": 0, "passed": 0,
             "history": []}  # fmt: skip
    rows = [
        {**blank, "number": i, "url": file.url, "replicas": list(file.replicas)}
        for i, file in enumerate(inputs)
    ]
    for start in range(0, len(rows), BATCH):
        tx.execute(insert(files), rows[start : start + BATCH])


def _request(r: Row[Any]) -> Request:
    return Request(
        r.id, r.owner, r.title, r.did, r.selection, r.codegen, r.format, r.destination, State(r.state),
        r.wanted, r.failure, r.files, r.completed, r.failed, r.submitted, r.finished, r.dataset,
        r.read, r.bytes, r.events, r.pushed,
    )  # fmt: skip


def _file(r: Row[Any]) -> FileResult:
    return FileResult(
        r.id, r.request, r.number, r.url, FileState(r.state), r.reason, r.name, r.bytes, r.events, r.seconds,
        r.read, r.visible, r.attempt, r.cached, r.entries, r.passed, r.moved, r.place, r.log,
        tuple(r.history), r.pushed,
    )  # fmt: skip
