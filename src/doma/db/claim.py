"""Claimed work: a row belongs to one worker for the length of a lease, and every attempt has a number.

Works on any table with a primary key of one column and ``state``, ``owner``, ``lease_until`` (Unix seconds
or NULL) and ``attempt`` (int, from 0). Killing a worker loses nothing (the lease runs out, another claims
the row) and its late word changes nothing (the attempt number no longer fits).

Few claimers with batches beat many: about 200 batches of 100 rows a second on PostgreSQL. Give the table a
partial index on its open states, and no global order (dataplane.md T29).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, and_, or_, select, update


def claim(
    tx: Connection,
    table: Table,
    *,
    ready: Iterable[str],
    running: str,
    owner: str,
    now: float,
    lease: float,
    limit: int,
    where: ColumnElement[bool] | None = None,
    order: Sequence[ColumnElement[Any]] = (),
) -> Sequence[Row[Any]]:
    """Take up to ``limit`` rows that are ready, or whose worker has let its lease run out.

    Args:
        tx: A write transaction.
        table: Where the rows are.
        ready: States in which nobody works on a row.
        running: State of a claimed row.
        owner: Who claims: unique to the worker process.
        now: Unix seconds.
        lease: Seconds until others may take the row; see :func:`renew`.
        limit: Most rows to take.
        where: Further condition on a row.
        order: Which to take first; empty: any (cheapest).

    Returns:
        The rows as they are now, with the attempt number that :func:`settle` needs; in no order.
    """
    c, key = table.c, _key(table)
    free = or_(c.state.in_(list(ready)), and_(c.state == running, c.lease_until < now))
    wanted = select(key).where(free).order_by(*order).limit(limit)
    if where is not None:
        wanted = wanted.where(where)
    # The CTE is run once; as a plain sub-select PostgreSQL may run it again for each row and overtake the
    # limit. SQLite knows no row locks and needs none: the transaction began IMMEDIATE.
    picked = wanted.with_for_update(skip_locked=True).cte("picked")
    taken = (
        update(table)
        .where(key.in_(select(picked.c[key.name])))
        .values(state=running, owner=owner, lease_until=now + lease, attempt=c.attempt + 1)
        .returning(table)
    )
    return tx.execute(taken).all()


def renew(
    tx: Connection, table: Table, held: Mapping[Any, int], *, running: str, now: float, lease: float
) -> set[Any]:
    """Prolong the leases of rows (key to attempt); returns the keys that are still ours.

    A key that is missing from the result was cancelled or went to another worker: stop working on it.
    """
    key = _key(table)
    ours: set[Any] = set()
    for value, attempt in held.items():
        mine = _mine(table, value, attempt, running)
        done = tx.execute(update(table).where(mine).values(lease_until=now + lease).returning(key))
        ours.update(row[0] for row in done)
    return ours


def settle(
    tx: Connection, table: Table, value: Any, attempt: int, *, running: str, state: str, **columns: Any
) -> bool:
    """Write how an attempt ended; False, and nothing changed, if the row is no longer that attempt's.

    Args:
        tx: A write transaction.
        table: Where the row is.
        value: Its key.
        attempt: The number that :func:`claim` gave.
        running: State of a claimed row.
        state: The new state; a ready one gives the row back.
        **columns: Further values to write in the same statement.
    """
    change = update(table).where(_mine(table, value, attempt, running))
    done = tx.execute(change.values(state=state, owner=None, lease_until=None, **columns))
    return done.rowcount == 1


def give_back(tx: Connection, table: Table, owner: str, *, running: str, ready: str) -> int:
    """Free everything that a worker holds, when it stops in good order; returns how many rows."""
    c = table.c
    held = update(table).where(c.state == running, c.owner == owner)
    return tx.execute(held.values(state=ready, owner=None, lease_until=None)).rowcount


def _key(table: Table) -> Column[Any]:
    (key,) = table.primary_key.columns
    return key


def _mine(table: Table, value: Any, attempt: int, running: str) -> ColumnElement[bool]:
    return and_(_key(table) == value, table.c.state == running, table.c.attempt == attempt)
