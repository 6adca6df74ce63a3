"""What pages show: everybody's requests for operators, and one request with its files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, or_, select

from doma.columns import repo
from doma.columns.model import FileState, Glance, Overview, Progressed, Request, State
from doma.columns.tables import files, requests
from doma.core.url import redacted

_SHOWN = [requests.c[name] for name in Glance.__slots__]


def overview(tx: Connection, since: float, limit: int) -> Overview:
    """Counts by state of what is unfinished or ended after ``since``, and some requests.

    Cheap however many requests are kept: everything here goes by the index over ``finished``.
    """
    c = requests.c
    states = select(c.state, func.count()).where(or_(c.finished.is_(None), c.finished >= since))
    counts = Counter({State(state): count for state, count in tx.execute(states.group_by(c.state))})
    running = select(*_SHOWN).where(c.finished.is_(None)).order_by(c.submitted.desc()).limit(limit)
    ended = select(*_SHOWN).where(c.finished.is_not(None)).order_by(c.finished.desc()).limit(limit)
    rows = [*tx.execute(running), *tx.execute(ended)]
    return Overview(
        waiting=counts[State.SUBMITTED],
        running=counts[State.RUNNING],
        complete=counts[State.COMPLETE],
        failed=counts[State.FATAL],
        canceled=counts[State.CANCELED],
        recent=tuple(_glance(row._mapping) for row in rows[:limit]),
    )


@dataclass(frozen=True, slots=True)
class Watched:
    """One request as its page shows it."""

    request: Request
    progress: Progressed
    files: Sequence[Mapping[str, Any]]
    """Rows of ``column_files``: what failed first, then what runs, what waits, what is done."""
    more: int
    """Files that are not among them."""


def recent(tx: Connection, owner: str | None, limit: int) -> list[Glance]:
    """The youngest requests of an owner; None: of everybody."""
    wanted = select(*_SHOWN).order_by(requests.c.submitted.desc()).limit(limit)
    if owner is not None:
        wanted = wanted.where(requests.c.owner == owner)
    return [_glance(row._mapping) for row in tx.execute(wanted)]


def watched(
    tx: Connection, id_: str, owner: str | None, limit: int, *, failed: bool = False
) -> Watched | None:
    """A request of an owner (None: of anybody) with at most ``limit`` files; only failed ones if so asked."""
    whose = tx.execute(select(requests.c.owner).where(requests.c.id == id_)).scalar()
    if whose is None or owner not in {None, whose}:
        return None
    found = repo.get(tx, id_, whose)
    if found is None:
        return None
    c = files.c
    mine = c.request == id_
    if failed:
        mine &= c.state == FileState.FAILED
    rank = case(
        (c.state == FileState.FAILED, 0),
        (c.state == FileState.RUNNING, 1),
        (c.state == FileState.WAITING, 2),
        else_=3,
    )
    rows = tx.execute(select(files).where(mine).order_by(rank, c.number).limit(limit)).mappings()
    listed = [{**row, "url": redacted(row["url"])} for row in rows]  # operators see it, too
    of = found.failed if failed else found.files
    return Watched(found, repo.progress(tx, id_), listed, max(0, of - len(listed)))


def _glance(row: Mapping[Any, Any]) -> Glance:
    return Glance(**{**row, "state": State(row["state"])})
