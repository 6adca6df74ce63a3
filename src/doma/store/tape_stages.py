"""The rows of requests to stage files. Every function is the work of one transaction, or a part of it.

A request counts its files that are not final; the last one completes it. Every change of files writes its
events (``stage.changed``, subject: the request) in the same transaction.

Source: WLCG Tape REST API v1; rules W81-W93 of the storage contract.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from doma.core.errors import BadRequest, TooManyRequests
from doma.core.events import Event
from doma.db import outbox
from doma.store.protocol import Stat
from doma.store.tape_tables import COPIES, OPEN, Held, Stage, files, requests, staged

T = TypeVar("T")

CHUNK = 500
"""Values in one ``IN``, and files in one event."""

CANCELLED = "cancelled by the client"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file of a new request."""

    path: str
    """As the client sent it, double slashes collapsed."""
    lifetime: float
    """Seconds for which it is to stay on disk."""
    activity: str = ""
    error: str | None = None
    """Why it is refused at once."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a store said about one path of a request."""

    row: int
    stat: Stat | None = None
    ticket: str = ""
    error: str | None = None


def chunks(values: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Lists of at most so many values."""
    some: list[T] = []
    for value in values:
        some.append(value)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def submit(tx: Connection, ident: str, owner: str, wanted: Sequence[Wanted], now: float, most: int) -> None:
    """Write a request with all its files.

    Raises:
        TooManyRequests: its owner would have more than ``most`` files waiting.
    """
    issuer = owner.partition("#")[0]
    mine = and_(requests.c.owner == owner, requests.c.completed.is_(None))
    waiting = tx.execute(select(func.sum(requests.c.open)).where(mine)).scalar() or 0
    refused = sum(1 for file in wanted if file.error is not None)
    count = len(wanted) - refused
    if waiting and waiting + count > most:
        raise TooManyRequests(
            f"stage: {waiting} files of yours wait already, {count} more would be above {most};"
            " submit them when some have come",
            retry_after=60,
        )
    done = {"completed": now} if not count else {}
    row = {"id": ident, "owner": owner, "issuer": issuer, "created": now, "files": len(wanted), "open": count}
    tx.execute(insert(requests), row | done)
    for some in chunks((file for file in wanted if file.error is None), 5000):
        tx.execute(insert(staged), [_row(ident, file) for file in some])
    for some in chunks((file for file in wanted if file.error is not None), 5000):
        failed = {"state": Stage.FAILED, "looked": 1, "finished": now}
        tx.execute(insert(staged), [_row(ident, f) | failed | {"error": f.error} for f in some])
    data = {"files": len(wanted), "open": count}
    outbox.append(tx, Event("stage.submitted", ident, data, owner), now)


def _row(request: str, file: Wanted) -> dict[str, Any]:
    return {
        "request": request,
        "path": file.path,
        "state": "SUBMITTED",
        "looked": 0,
        "lifetime": file.lifetime,
        "activity": file.activity,
    }


def unseen(tx: Connection, limit: int) -> list[tuple[int, str]]:
    """Files that no store was asked about yet: row and path."""
    wanted = select(staged.c.id, staged.c.path).where(staged.c.looked == 0).order_by(staged.c.id)
    return [(row.id, row.path) for row in tx.execute(wanted.limit(limit))]


def seen(tx: Connection, answers: Sequence[Looked], now: float) -> None:
    """Take what the stores said: what is on disk is complete, what is on tape is queued to be recalled."""
    held: dict[str, Held] = {}
    for some in chunks({a.ticket for a in answers if a.ticket}):
        found = tx.execute(select(files.c.id, files.c.state).where(files.c.id.in_(some)).with_for_update())
        held |= {row.id: Held(row.state) for row in found}
    here, away, failed = list[int](), list[int](), dict[int, str]()
    for a in answers:
        state = held.get(a.ticket, Held.DOOMED) if a.ticket else Held.DISK
        error = a.error or _hopeless(a, state)
        if error:
            failed[a.row] = error
        else:
            (here if state in COPIES else away).append(a.row)
    _link(tx, [a for a in answers if a.ticket])
    for rows in chunks(a.row for a in answers):
        tx.execute(update(staged).where(staged.c.id.in_(rows)).values(looked=1))
    for rows in chunks(here):
        advance(tx, staged.c.id.in_(rows), OPEN, Stage.COMPLETED, now)
    for rows in chunks(failed):
        _fail(tx, {row: failed[row] for row in rows}, now)
    _queue(tx, away, now)


def _fail(tx: Connection, causes: Mapping[int, str], now: float) -> None:
    """Files that will not come, each for its own cause."""
    still = staged.c.id.in_(list(causes)), staged.c.state.in_(OPEN)
    rows = tx.execute(select(staged.c.id, staged.c.request, staged.c.path).where(*still)).all()
    if not rows:
        return
    each = update(staged).where(staged.c.id == bindparam("row"))
    values = each.values(state=Stage.FAILED, finished=now, error=bindparam("why"))
    tx.execute(values, [{"row": row.id, "why": causes[row.id]} for row in rows])
    for request, count in Counter(row.request for row in rows).items():
        _count(tx, request, count, now)
    _tell(tx, rows, Stage.FAILED, now, None)


def _link(tx: Connection, answers: Sequence[Looked]) -> None:
    link = update(staged).where(staged.c.id == bindparam("row")).values(file=bindparam("ticket"))
    for some in chunks(answers):
        tx.execute(link, [{"row": a.row, "ticket": a.ticket} for a in some])


def _hopeless(answer: Looked, state: Held) -> str | None:
    stat = answer.stat
    if stat is None or state is Held.DOOMED:
        return "the file was deleted or replaced"
    if stat.is_dir:
        return "this is a directory; stage the files in it"
    if stat.size == 0:
        return "the file is empty; there is nothing to stage"
    return "the file is lost on tape" if state is Held.LOST else None


def _queue(tx: Connection, rows: Sequence[int], now: float) -> None:
    """Queue the files of rows to be recalled, each once, whoever wants it."""
    for some in chunks(rows):
        waits = select(staged.c.file, staged.c.activity).where(
            staged.c.id.in_(some), staged.c.state.in_(OPEN), staged.c.file.is_not(None)
        )
        for activity, idents in _grouped((row.activity, row.file) for row in tx.execute(waits)).items():
            fresh = and_(files.c.id.in_(idents), files.c.state == Held.TAPE)
            queued = {"state": Held.QUEUED, "activity": activity, "since": now, "ready": 0.0, "attempt": 0}
            tx.execute(update(files).where(fresh).values(**queued, error=None))
        running = select(files.c.id).where(files.c.state == Held.RECALLING)
        mine = and_(staged.c.id.in_(some), staged.c.file.in_(running))
        advance(tx, mine, (Stage.SUBMITTED,), Stage.STARTED, now)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return groups


def advance(
    tx: Connection,
    where: ColumnElement[bool],
    before: Iterable[Stage],
    after: Stage,
    now: float,
    *,
    error: str | None = None,
) -> list[str]:
    """Bring files of requests into a state; returns the requests that changed.

    Completion pins each for its own lifetime.
    """
    values: dict[str, Any] = {"state": after, "error": error}
    if after is Stage.STARTED:
        values["started"] = now
    else:
        values["finished"] = now
    if after is Stage.COMPLETED:
        values["pinned_until"] = case((staged.c.lifetime > 0, now + staged.c.lifetime))
    changed = update(staged).where(where, staged.c.state.in_(list(before))).values(**values)
    rows = tx.execute(changed.returning(staged.c.request, staged.c.path)).all()
    if not rows:
        return []
    counts = Counter(row.request for row in rows)
    for request, count in counts.items():
        _count(tx, request, 0 if after is Stage.STARTED else count, now)
    _tell(tx, rows, after, now, error)
    return list(counts)


def _count(tx: Connection, request: str, ended: int, now: float) -> None:
    c = requests.c
    done = case((c.open - ended <= 0, func.coalesce(c.completed, now)), else_=c.completed)
    change = update(requests).where(c.id == request)
    tx.execute(change.values(open=c.open - ended, started=func.coalesce(c.started, now), completed=done))


def _tell(tx: Connection, rows: Iterable[Any], state: Stage, now: float, error: str | None) -> None:
    paths = _grouped((row.request, row.path) for row in rows)
    owners: dict[str, str] = {}
    for some in chunks(paths):
        found = tx.execute(select(requests.c.id, requests.c.owner).where(requests.c.id.in_(some)))
        owners |= {row.id: row.owner for row in found}
    facts = {"state": state} | ({"error": error} if error else {})
    events = [
        Event("stage.changed", request, {**facts, "paths": some}, owners.get(request, ""))
        for request, mine in paths.items()
        for some in chunks(mine)
    ]
    outbox.append_many(tx, events, now)


# --- what clients do with their requests ---


def find(tx: Connection, ident: str, issuer: str) -> Row[Any] | None:
    """A request, if it was made by somebody of this issuer."""
    mine = and_(requests.c.id == ident, requests.c.issuer == issuer)
    return tx.execute(select(requests).where(mine)).first()


def page(tx: Connection, ident: str, after: str, limit: int) -> Sequence[Any]:
    """The files of a request, in the order of their paths (which has an index), in pages."""
    c = staged.c
    mine = and_(c.request == ident, c.path > after)
    shown = select(c.path, c.state, c.started, c.finished, c.error)
    return tx.execute(shown.where(mine).order_by(c.path).limit(limit)).all()


def cancel(tx: Connection, ident: str, paths: Sequence[str] | None, now: float) -> None:
    """Stop waiting for files of a request (None: for all), and give up their pins.

    Raises:
        BadRequest: a path is not in the request; nothing was changed.
    """
    for some in chunks(paths) if paths is not None else [None]:
        mine: ColumnElement[bool] = staged.c.request == ident
        if some is not None:
            mine = and_(mine, staged.c.path.in_(some))
            known = set(tx.execute(select(staged.c.path).where(mine)).scalars())
            if strangers := sorted(set(some) - known):
                raise BadRequest(f"{strangers[0]}: is not a file of this request; nothing was cancelled")
        advance(tx, mine, OPEN, Stage.CANCELLED, now, error=CANCELLED)
        tx.execute(update(staged).where(mine).values(looked=1))
    _unqueue(tx, ident)


def _unqueue(tx: Connection, ident: str) -> None:
    """Take the files of a request, for which nobody waits any more, out of the queue."""
    mine = select(staged.c.file).where(staged.c.request == ident, staged.c.state == Stage.CANCELLED)
    other = staged.alias()
    waited = exists().where(other.c.file == files.c.id, other.c.state.in_(OPEN))
    idle = and_(files.c.id.in_(mine), files.c.state == Held.QUEUED, ~waited)
    tx.execute(update(files).where(idle).values(state=Held.TAPE))


def remove(tx: Connection, ident: str, now: float) -> None:
    """Cancel what runs, give up the pins, forget the request."""
    owner = tx.execute(select(requests.c.owner).where(requests.c.id == ident)).scalar()
    cancel(tx, ident, None, now)
    tx.execute(delete(requests).where(requests.c.id == ident))
    outbox.append(tx, Event("stage.removed", ident, {}, owner or ""), now)


def release(tx: Connection, ident: str | None, owner: str, paths: Sequence[str]) -> None:
    """Give up the pins of a request on files; without a request, all pins of its owner on them.

    What has not come yet will not be pinned when it comes.
    """
    for some in chunks(paths):
        mine: ColumnElement[bool] = staged.c.path.in_(some)
        if ident is not None:
            mine = and_(mine, staged.c.request == ident)
        else:
            own = select(requests.c.id).where(requests.c.owner == owner)
            mine = and_(mine, staged.c.request.in_(own))
        tx.execute(update(staged).where(mine).values(pinned_until=None, lifetime=0.0))


def tidy(tx: Connection, now: float, retention: float) -> int:
    """Forget requests that ended so long ago and hold no pin; returns how many."""
    held = exists().where(staged.c.request == requests.c.id, staged.c.pinned_until > now)
    old = and_(requests.c.completed < now - retention, ~held)
    return tx.execute(delete(requests).where(old)).rowcount
