"""The rows of files at work: claim, renew, record, count. Every function is one transaction's work.

A file's result and the counters of its request change in the same transaction, fenced by the attempt
number: a late answer of an earlier attempt changes nothing, and nothing is counted twice.

Source: servicex.md §3.4 (strictly increasing times) and §12 of the project's contracts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, or_, select, update

from doma.columns import cache_repo
from doma.columns.cache_repo import Cached, Question
from doma.columns.fair import Open, shares
from doma.columns.model import FINAL, FileState, Grant, Outcome, Progress, State, verdict
from doma.columns.repo import tell
from doma.columns.tables import files, requests
from doma.core.url import redacted
from doma.db import claim as claims

OPEN = 1000
"""Requests that are looked at for one claim."""
KEPT = 20
"""Failed attempts of a file that are remembered."""


@dataclass(frozen=True, slots=True)
class Job:
    """One claimed file with all that running it needs."""

    file: int
    attempt: int
    """How often it was begun, this time included."""
    tries: int
    """How often it has failed."""
    request: str
    url: str
    replicas: tuple[str, ...]
    number: int
    selection: str
    question: Question
    grant: Grant
    dataset: int | None
    holder: str
    """The service process that claimed it."""

    @property
    def key(self) -> str:
        """What asks the same of the same file."""
        return self.question.of(self.url)


@dataclass(frozen=True, slots=True)
class Published:
    """A result whose object is readable."""

    name: str
    path: str
    object_version: str
    outcome: Outcome
    hit: Cached | None = None
    """The cached result that was taken over."""


def take(tx: Connection, worker: str, now: float, lease: float, limit: int) -> list[Job]:
    """Claim files for this process, users and requests in turn."""
    jobs: list[Job] = []
    while len(jobs) < limit:
        given = shares(_open(tx, now, limit), _busy(tx, now), limit - len(jobs))
        rows = [r for id_, count in given.items() for r in _claim(tx, id_, worker, now, lease, count)]
        jobs += _jobs(tx, rows, now)
        if not rows or len(rows) == sum(given.values()):
            break
    return jobs


def renew(tx: Connection, held: Sequence[tuple[int, int, float]]) -> list[bool]:
    """Prolong leases, given as (file, attempt, until); for each whether the file is still that attempt's."""
    ours = _held(tx, {file: attempt for file, attempt, _ in held})
    if ours:
        until = max(until for _, _, until in held)
        tx.execute(update(files).where(files.c.id.in_(ours)).values(lease_until=until))
    return [file in ours for file, _, _ in held]


def release(tx: Connection, workers: Sequence[str], now: float) -> int:
    """Give back everything that stopped or dead service processes hold; how many files."""
    cache_repo.end_all(tx, workers, now)
    return sum(
        claims.give_back(tx, files, w, running=FileState.RUNNING, ready=FileState.WAITING) for w in workers
    )


def holders(tx: Connection) -> list[str]:
    """The service processes that hold files or lead something."""
    held = select(files.c.owner).where(files.c.state == FileState.RUNNING).distinct()
    return list({r.owner for r in tx.execute(held) if r.owner} | set(cache_repo.leaders(tx)))


def done(tx: Connection, ended: Sequence[tuple[Job, Published, float]]) -> list[State | None]:
    """Record results whose objects are readable already, and count them.

    Args:
        tx: A write transaction.
        ended: Claimed files, each with its result and the instant (Unix seconds).

    Returns:
        For each the state of its request now; None: it is no longer this attempt's, nothing was changed.
    """
    cache_repo.end_lead(tx, [(job.key, job.holder) for job, _, _ in ended])
    ours = _held(tx, {job.file: job.attempt for job, _, _ in ended})
    mine = [one for one in ended if one[0].file in ours]
    states: dict[str, State] = {}
    for id_ in sorted({job.request for job, _, _ in mine}):
        some = [one for one in mine if one[0].request == id_]
        now = max(at for _, _, at in some)
        ask, visible = _tick(tx, id_, now)
        tx.execute(_DONE, [_row(job, r, now, visible + i) for i, (job, r, _) in enumerate(some)])
        hits = [r.hit.key for _, r, _ in some if r.hit is not None]
        made = [_entry(job, r) for job, r, _ in some if r.hit is None and r.outcome.version]
        cache_repo.used(tx, hits, now)
        cache_repo.remember(tx, made, id_, now)
        states[id_] = _count(
            tx,
            ask,
            now,
            visible + len(some) - 1,
            _sums([r.outcome for _, r, _ in some]),
            took=[r.outcome.seconds for _, r, _ in some],
        )
    return [states[job.request] if job.file in ours else None for job, _, _ in ended]


_DONE = (
    update(files)
    .where(files.c.id == bindparam("file"))
    .values({"state": FileState.DONE, "owner": None, "lease_until": None, "reason": None})
)


def _row(job: Job, result: Published, now: float, visible: int) -> dict[str, Any]:
    o = result.outcome
    return {
        "file": job.file, "name": result.name, "bytes": o.bytes, "events": o.rows, "seconds": o.seconds,
        "read": o.read, "visible": visible, "cached": o.cached, "entries": o.events, "passed": o.events,
        "moved": now, "place": o.url or None, "log": o.log or None, "pushed": o.pushed,
    }  # fmt: skip


def _entry(job: Job, result: Published) -> Cached:
    o = result.outcome
    return cache_repo.entry(
        job.question, o.url or job.url, o.version, result.path, result.object_version, o.bytes, o.rows,
        o.events,
    )  # fmt: skip


def _held(tx: Connection, held: Mapping[int, int]) -> set[int]:
    """Those of these files (to attempt) that are still that attempt's; nobody changes them meanwhile."""
    c = files.c
    wanted = select(c.id, c.attempt).where(c.id.in_(list(held)), c.state == FileState.RUNNING)
    rows = tx.execute(wanted.order_by(c.id).with_for_update())
    return {r.id for r in rows if held[r.id] == r.attempt}


def failed(tx: Connection, job: Job, reason: str, now: float, log: str = "") -> State | None:
    """Record that a file cannot be done; the state of its request, None as :func:`done`."""
    cache_repo.end_lead(tx, [(job.key, job.holder)])
    (ask, visible), mine = _tick(tx, job.request, now), (job.file, job.attempt)
    ended: dict[str, Any] = {"state": FileState.FAILED, "reason": reason, "visible": visible}
    ended |= {"history": _history(tx, job, reason, now), "log": log or None}
    if not claims.settle(tx, files, *mine, running=FileState.RUNNING, **ended):
        return None
    c = files.c
    row = tx.execute(select(c.entries, c.passed, c.read).where(c.id == job.file)).one()
    return _count(tx, ask, now, visible, {"failed": 1, **row._mapping}, _named(job.url, reason))


def again(
    tx: Connection,
    job: Job,
    reason: str,
    now: float = 0.0,
    *,
    not_before: float | None = None,
    replicas: Sequence[str] | None = None,
) -> bool:
    """Give a file back for another attempt, which does not begin before an instant."""
    c = files.c
    cache_repo.end_lead(tx, [(job.key, job.holder)])
    values: dict[str, Any] = {"history": _history(tx, job, reason, now)}
    if replicas is not None:
        values |= {"url": replicas[0], "replicas": list(replicas[1:])}
    mine = and_(c.id == job.file, c.state == FileState.RUNNING, c.attempt == job.attempt)
    change = update(files).where(mine)
    freed = {"state": FileState.WAITING, "owner": None, "lease_until": not_before, "reason": reason}
    return tx.execute(change.values(**freed, **values)).rowcount == 1


def advance(tx: Connection, progress: Mapping[tuple[int, int], Progress], now: float) -> None:
    """Write how far running files are, by (file, attempt)."""
    c = files.c
    for (file, attempt), p in progress.items():
        mine = and_(c.id == file, c.attempt == attempt, c.state == FileState.RUNNING)
        values = {"entries": p.of, "passed": p.events, "read": p.read, "moved": now}
        tx.execute(update(files).where(mine).values(**values))


def pace(tx: Connection, request: str) -> tuple[int, list[float]]:
    """How many files of a request wait, and the seconds that the last computed ones took."""
    c = files.c
    waiting = select(func.count()).where(c.request == request, c.state == FileState.WAITING)
    took = (
        select(c.seconds)
        .where(c.request == request, c.state == FileState.DONE, c.cached.is_(False))
        .order_by(c.visible.desc())
        .limit(50)
    )
    return tx.execute(waiting).scalar_one(), [r.seconds for r in tx.execute(took)]


def _named(url: str, reason: str) -> str:
    """A reason that names the file, once."""
    shown = redacted(url)
    return (reason if reason.startswith(shown) else f"{shown}: {reason}")[:2000]


def _open(tx: Connection, now: float, waiting: int) -> list[Open]:
    """Requests with files to claim, those first that were served longest ago."""
    c = requests.c
    some = select(files.c.id).where(files.c.request == c.id, _free(now)).exists()
    wanted = (
        select(c.id, c.owner, c.served)
        .where(c.finished.is_(None), c.wanted == "", c.state.in_([State.SUBMITTED, State.RUNNING]), some)
        .order_by(c.served, c.submitted)
        .limit(OPEN)
    )
    return [Open(r.id, r.owner, waiting, r.served) for r in tx.execute(wanted)]


def _free(now: float) -> ColumnElement[bool]:
    c = files.c
    rested = or_(c.lease_until.is_(None), c.lease_until < now)
    return or_(
        and_(c.state == FileState.WAITING, rested), and_(c.state == FileState.RUNNING, c.lease_until < now)
    )


def _busy(tx: Connection, now: float) -> dict[tuple[str, str], int]:
    """(owner, request) to files that run."""
    running = (
        select(requests.c.owner, requests.c.id, func.count())
        .join(files, files.c.request == requests.c.id)
        .where(files.c.state == FileState.RUNNING, files.c.lease_until >= now)
        .group_by(requests.c.owner, requests.c.id)
    )
    return {(owner, id_): count for owner, id_, count in tx.execute(running)}


def _claim(
    tx: Connection, request: str, worker: str, now: float, lease: float, limit: int
) -> Sequence[Row[Any]]:
    c = files.c
    return claims.claim(
        tx, files, ready=[FileState.WAITING], running=FileState.RUNNING, owner=worker, now=now, lease=lease,
        limit=limit, where=and_(c.request == request, _free(now)), order=[c.attempt, c.number],
    )  # fmt: skip


def _jobs(tx: Connection, rows: Sequence[Row[Any]], now: float) -> list[Job]:
    """Claimed rows with the questions they belong to, in the order of their numbers; requests start."""
    asked = {row.request for row in rows}
    asks = {r.id: r for r in tx.execute(select(requests).where(requests.c.id.in_(asked)))} if asked else {}
    for id_, ask in asks.items():
        mark = update(requests).where(requests.c.id == id_)
        if ask.state == State.SUBMITTED:
            tx.execute(mark.values(state=State.RUNNING, served=now))
            tell(tx, "request.started", id_, ask.owner, now, {"state": State.RUNNING})
        else:
            tx.execute(mark.values(served=now))
    return [_job(row, asks[row.request]) for row in sorted(rows, key=lambda r: (r.attempt, r.id))]


def _job(row: Row[Any], ask: Row[Any]) -> Job:
    return Job(
        row.id, row.attempt, len(row.history), ask.id, row.url, tuple(row.replicas), row.number,
        ask.selection, Question(ask.digest, ask.codegen, ask.format),
        Grant(ask.issuer, ask.subject, tuple(ask.scopes)), ask.dataset, row.owner or "",
    )  # fmt: skip


def _history(tx: Connection, job: Job, reason: str, now: float) -> list[dict[str, Any]]:
    past = tx.execute(select(files.c.history).where(files.c.id == job.file)).scalar_one_or_none() or []
    return [*past, {"attempt": job.attempt, "reason": reason[:2000], "at": now}][-KEPT:]


def _tick(tx: Connection, id_: str, now: float) -> tuple[Any, int]:
    """The row of a request, locked, and when its next result becomes visible: later than all before it."""
    row = tx.execute(select(requests).where(requests.c.id == id_).with_for_update()).one_or_none()
    return row, max(int(now * 1e6), (row.visible if row else 0) + 1)


def _sums(made: Sequence[Outcome]) -> dict[str, Any]:
    """What done files add to the counters of their request."""
    entries = sum(o.events for o in made)
    return {
        "completed": len(made), "entries": entries, "passed": entries, "read": sum(o.read for o in made),
        "bytes": sum(o.bytes for o in made), "events": sum(o.rows for o in made),
        "seconds": sum(o.seconds for o in made), "pushed": sum(o.pushed for o in made),
    }  # fmt: skip


def _count(
    tx: Connection,
    ask: Any,
    now: float,
    visible: int,
    more: Mapping[str, Any],
    reason: str = "",
    took: Sequence[float] = (),
) -> State:
    """Raise the counters of a request, and end it when all its files have ended; its state."""
    values = {name: getattr(ask, name) + number for name, number in more.items()} | {"visible": visible}
    completed, failed = values.get("completed", ask.completed), values.get("failed", ask.failed)
    state = verdict(ask.files, completed, failed)
    if took:
        values["quickest"] = min(took) if ask.quickest is None else min(ask.quickest, *took)
        values["slowest"] = max(took) if ask.slowest is None else max(ask.slowest, *took)
    if reason and not ask.failure:
        values["failure"] = reason
    if ask.state not in FINAL:
        values["state"] = state
        if state in FINAL:
            values["finished"] = now
    tx.execute(update(requests).where(requests.c.id == ask.id).values(**values))
    facts = {"completed": completed, "failed": failed, "files": ask.files, "state": str(state)}
    tell(tx, "request.finished" if state in FINAL else "request.advanced", ask.id, ask.owner, now, facts)
    return state
