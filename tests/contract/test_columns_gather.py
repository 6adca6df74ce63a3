"""Small transactions that go together: one call for many, one that fails is alone with that."""

import asyncio

import pytest
from sqlalchemy import Connection, insert, select, text

from doma.columns.gather import Gathered
from doma.core.errors import Conflict
from doma.db.tables import cursors

CALLS: list[list[int]] = []


def keep(tx: Connection, numbers: list[int]) -> list[int]:
    CALLS.append(numbers)
    rows = [{"consumer": f"c{n}", "position": n, "at": 0.0} for n in numbers]
    tx.execute(insert(cursors), rows)
    return [10 * n for n in numbers]


def kept(database) -> list[int]:
    wanted = select(cursors.c.position).order_by(cursors.c.position)
    return list(database.look_sync(lambda tx: tx.execute(wanted).scalars().all()))


async def test_what_comes_while_a_transaction_is_committed_goes_together_in_the_next(database):
    CALLS.clear()
    gathered = Gathered(database)
    gathered.linger = 0.01
    found = await asyncio.gather(*(gathered.each(keep, n) for n in range(9)))
    assert found == [10 * n for n in range(9)]
    assert kept(database) == list(range(9))
    assert len(CALLS) == 1
    await gathered.close()


async def test_a_piece_that_fails_fails_alone_and_the_others_are_written_once(database):
    gathered = Gathered(database)
    await gathered.each(keep, 3)
    pieces = [gathered.each(keep, n) for n in range(6)]
    found = await asyncio.gather(*pieces, gathered.run(lambda tx: tx.execute(text("SELECT 7")).scalar()),
                                 return_exceptions=True)  # fmt: skip
    assert isinstance(found[3], Conflict)
    assert [*found[:3], *found[4:]] == [0, 10, 20, 40, 50, 7]
    assert kept(database) == list(range(6))
    await gathered.close()


async def test_whoever_gives_up_waiting_undoes_nothing_and_only_changes_with_events_are_told(database):
    told = []
    database.after_commit.append(lambda: told.append(1))
    gathered = Gathered(database)
    await gathered.each(keep, 1, quiet=True)
    assert told == []
    await gathered.each(keep, 2)
    assert told == [1]
    gathered.linger = 60.0
    waiting = asyncio.create_task(gathered.each(keep, 3))
    await asyncio.wait({waiting}, timeout=10)
    assert kept(database) == [1, 2, 3]
    lingers = asyncio.create_task(gathered.each(keep, 4))
    await asyncio.sleep(0)
    lingers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lingers
