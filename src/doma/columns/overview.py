"""What an operator sees of everybody's requests: how many there are, and the youngest."""

from collections import Counter

from sqlalchemy import Connection, func, or_, select

from doma.columns.model import Glance, Overview, State
from doma.columns.tables import requests

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
        recent=tuple(Glance(**{**row._mapping, "state": State(row.state)}) for row in rows[:limit]),
    )
