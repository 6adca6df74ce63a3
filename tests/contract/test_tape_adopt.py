"""Files that others put into the buffer of a tape endpoint get their rows, in groups."""

import os
from functools import partial

import pytest
from sqlalchemy import select

from doma.store import tape_files
from doma.store.file import FileStore
from doma.store.tape_buffer import Buffer
from doma.store.tape_reconcile import GROUP, Reconciler
from doma.store.tape_tables import files
from tests.conftest import migrated

MANY = 2 * GROUP + 7


class Restless(FileStore):
    """A folder in which somebody writes to one file whenever it is looked at."""

    async def stat(self, path):
        if path == "/d/restless":
            with (self.place / "d" / "restless").open("ab") as file:
                file.write(b"more")
        return await super().stat(path)


@pytest.fixture
async def buffer(tmp_path):
    db = migrated(tmp_path / "rows.db")
    (tmp_path / "tape").mkdir()
    made = Buffer(tmp_path / "tape", db, "tape", fsync=False)
    (tmp_path / "tape" / "disk" / "d").mkdir()
    yield made
    await made.store.close()
    db.close()


def by_hand(buffer, count):
    for i in range(count):
        (buffer.root / "disk" / "d" / f"{i:03d}").write_bytes(b"data %d" % i)


async def known(buffer):
    """(path, id, size) of every row, by path."""
    every = select(files.c.path, files.c.id, files.c.size).order_by(files.c.path)
    return await buffer.db.look(lambda tx: [tuple(row) for row in tx.execute(every)])


async def test_every_file_gets_one_row_and_a_second_look_changes_nothing(buffer):
    by_hand(buffer, MANY)
    (buffer.root / "disk" / "d" / "empty").touch()
    reconciler = Reconciler(buffer)
    await reconciler.walk()
    rows = await known(buffer)
    assert [(path, size) for path, _, size in rows] == [
        (f"/d/{i:03d}", len(b"data %d" % i)) for i in range(MANY)
    ]
    await reconciler.walk()
    assert await known(buffer) == rows


async def test_what_is_gone_when_its_turn_comes_keeps_nothing_from_the_others(buffer):
    by_hand(buffer, 5)
    (buffer.root / "disk" / "d" / "002").unlink()
    await Reconciler(buffer).adopt([f"/d/{i:03d}" for i in range(5)] + ["/none/at/all", "/d"])
    assert [path for path, *_ in await known(buffer)] == ["/d/000", "/d/001", "/d/003", "/d/004"]


async def test_two_names_of_one_content_have_one_row(buffer):
    by_hand(buffer, 3)
    os.link(buffer.root / "disk" / "d" / "001", buffer.root / "disk" / "d" / "again")
    reconciler = Reconciler(buffer)
    await reconciler.walk()
    rows = await known(buffer)
    assert len(rows) == 3
    await reconciler.walk()
    assert {ident for _, ident, _ in await known(buffer)} == {ident for _, ident, _ in rows}


async def test_a_file_that_somebody_writes_all_the_time_keeps_nothing_from_the_others(buffer):
    by_hand(buffer, 5)
    (buffer.root / "disk" / "d" / "restless").write_bytes(b"data")
    await buffer.store.close()
    buffer.store = Restless(buffer.root / "disk", fsync=False)
    buffer.store.place = buffer.root / "disk"
    await Reconciler(buffer).walk()
    assert [path for path, *_ in await known(buffer)] == [f"/d/{i:03d}" for i in range(5)]


async def test_rows_that_are_behind_are_brought_up_to_date_together(buffer):
    by_hand(buffer, MANY)
    reconciler = Reconciler(buffer)
    await reconciler.walk()
    rows = await known(buffer)
    (buffer.root / "disk" / "d").rename(buffer.root / "disk" / "e")
    await reconciler.walk()
    assert await known(buffer) == [(path.replace("/d/", "/e/"), ident, size) for path, ident, size in rows]


async def test_what_was_deleted_through_us_does_not_come_back(buffer):
    by_hand(buffer, 3)
    reconciler = Reconciler(buffer)
    await reconciler.walk()
    (_, ident, _), *_ = await known(buffer)
    await buffer.db.run(partial(tape_files.doom, idents=[ident], now=1.0))
    await reconciler.walk()
    await reconciler.adopt(["/d/000"])
    assert len(await known(buffer)) == 3
