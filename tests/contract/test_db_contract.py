"""What both databases promise: whole transactions, ordered events, fenced claims, one schema."""

import asyncio
import contextlib
import importlib.util
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    select,
    text,
    update,
)

from doma.core.errors import ConfigError, Conflict, ServiceUnavailable, StorageUnavailable
from doma.core.events import Event
from doma.db import claim, outbox
from doma.db.engine import Database
from doma.db.tables import cursors, events, metadata

work = Table(
    "work",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("owner", String),
    Column("lease_until", Double),
    Column("attempt", Integer, nullable=False, default=0),
)


@pytest.fixture
def jobs(database: Database) -> Database:
    """Ten ready rows."""

    def make(tx: Connection) -> None:
        work.create(tx)
        tx.execute(insert(work), [{"id": i, "state": "READY", "attempt": 0} for i in range(10)])

    database.run_sync(make)
    return database


def take(db: Database, owner: str, now: float, limit: int = 10) -> list[int]:
    rows = db.run_sync(
        lambda tx: claim.claim(
            tx, work, ready=["READY"], running="RUNNING", owner=owner, now=now, lease=30, limit=limit
        )
    )
    return sorted(row.id for row in rows)


def ids(db: Database) -> list[int]:
    return db.look_sync(lambda tx: list(tx.execute(select(events.c.id).order_by(events.c.id)).scalars()))


def test_a_transaction_that_fails_leaves_nothing_behind(database):
    def broken(tx):
        outbox.append(tx, Event("a.done", "x"), 1.0)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        database.run_sync(broken)
    assert ids(database) == []


def test_the_read_only_road_refuses_to_write(database):
    with pytest.raises((StorageUnavailable, ConfigError)):
        database.look_sync(lambda tx: tx.execute(insert(cursors).values(consumer="a", position=1, at=0)))
    assert database.look_sync(lambda tx: tx.execute(select(cursors)).all()) == []


def test_a_broken_constraint_is_a_conflict(database):
    same = insert(cursors).values(consumer="a", position=1, at=0)
    database.run_sync(lambda tx: tx.execute(same))
    with pytest.raises(Conflict):
        database.run_sync(lambda tx: tx.execute(same))


def test_writers_in_many_threads_lose_no_update(database):
    database.run_sync(lambda tx: tx.execute(insert(cursors).values(consumer="n", position=0, at=0)))

    def add(_):
        def work(tx):
            asked = select(cursors.c.position).where(cursors.c.consumer == "n").with_for_update()
            tx.execute(update(cursors).values(position=tx.execute(asked).scalar_one() + 1))

        database.run_sync(work)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(60)))
    assert database.look_sync(lambda tx: tx.execute(select(cursors.c.position)).scalar_one()) == 60


def test_a_serialization_failure_is_tried_again(database):
    if database.is_sqlite:
        pytest.skip("SQLite's writers stand in a queue and cannot collide")
    database.run_sync(
        lambda tx: tx.execute(insert(cursors), [{"consumer": c, "position": 0, "at": 0} for c in "ab"])
    )
    met = threading.Barrier(2)
    runs = Counter()

    def cross(first, second):
        def work(tx):
            runs[first] += 1
            tx.execute(update(cursors).where(cursors.c.consumer == first).values(position=1))
            if runs[first] == 1:
                met.wait(20)
            tx.execute(update(cursors).where(cursors.c.consumer == second).values(position=1))

        database.run_sync(work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cross, "ab", "ba"))
    assert runs.total() == 3


async def test_hooks_hear_of_commits_and_only_of_commits(database):
    heard = []
    database.after_commit.append(lambda: heard.append(1))
    await database.look(lambda tx: tx.execute(select(events)).all())
    assert heard == []
    await database.run(lambda tx: outbox.append(tx, Event("a.done", "x"), 1.0))
    assert heard == [1]


async def test_a_closed_database_says_so(database):
    database.close()
    with pytest.raises(ServiceUnavailable):
        await database.run(lambda tx: None)


def test_two_processes_may_migrate_at_once_and_again(database_url):
    both = [Database(database_url), Database(database_url)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Database.migrate, both))
    both[0].migrate()
    assert ids(both[1]) == []
    for db in both:
        db.close()


def test_a_newer_database_is_refused(database):
    database.run_sync(lambda tx: tx.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(ConfigError, match=r"9999.*newer"):
        database.migrate()


def test_the_revisions_make_the_tables_that_the_code_uses(database):
    for module in ("doma.columns.tables", "doma.scan.repo"):
        if importlib.util.find_spec(module):
            importlib.import_module(module)

    def differences(tx):
        context = MigrationContext.configure(tx, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    known = {"alembic_version"}
    found = [d for d in database.run_sync(differences) if getattr(d[1], "name", "") not in known]
    extra = [d for d in found if isinstance(d, tuple) and d[0] in {"remove_table", "remove_index"}]
    # A revision may be there before the module that uses its tables; never the other way round.
    assert [d for d in found if d not in extra] == []


def test_event_ids_grow_and_are_never_used_again(database):
    for i in range(3):
        database.run_sync(lambda tx, i=i: outbox.append(tx, Event("a.done", str(i)), float(i)))
    database.run_sync(lambda tx: outbox.prune(tx, 10.0))
    database.run_sync(lambda tx: outbox.append(tx, Event("a.done", "new"), 11.0))
    (last,) = ids(database)
    assert last >= 4


def test_ids_are_in_the_order_of_commits(database):
    """A reader that remembers the last id must not miss a transaction that commits late."""
    begun, go = threading.Event(), threading.Event()
    seen = []

    def slow(tx):
        outbox.append(tx, Event("a.slow", "x"), 1.0)
        begun.set()
        assert go.wait(20)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(database.run_sync, slow)
        assert begun.wait(20)
        second = pool.submit(database.run_sync, lambda tx: outbox.append(tx, Event("a.fast", "y"), 2.0))
        seen += database.look_sync(lambda tx: outbox.after(tx, 0))
        go.set()
        first.result(20)
        second.result(20)
    last = seen[-1][0] if seen else 0
    seen += database.look_sync(lambda tx: outbox.after(tx, last))
    assert [event.kind for _, event, _ in seen] == ["a.slow", "a.fast"]


async def test_the_relay_passes_on_in_order_and_goes_on_where_it_stopped(database):
    seen: list[tuple[int, str]] = []
    batch = [Event("a.done", str(i), {"n": i}, "iss#me") for i in range(outbox.BATCH + 7)]
    await database.run(lambda tx: outbox.append_many(tx, batch, 1.0))
    relay = outbox.Relay(database, lambda number, event, at: seen.append((number, event.subject)))
    assert await relay.pass_on() == len(batch)
    assert [subject for _, subject in seen] == [e.subject for e in batch]
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    again = outbox.Relay(database, lambda number, event, at: seen.append((number, event.subject)))
    assert await again.pass_on() == 0


async def test_an_event_that_could_not_be_passed_on_is_offered_again(database):
    await database.run(lambda tx: outbox.append_many(tx, [Event("a.done", s) for s in "xyz"], 1.0))
    seen: list[str] = []

    def once_bad(number, event, at):
        if event.subject == "y" and "y!" not in seen:
            seen.append("y!")
            raise RuntimeError("not now")
        seen.append(event.subject)

    relay = outbox.Relay(database, once_bad)
    with pytest.raises(RuntimeError):
        await relay.pass_on()
    again = outbox.Relay(database, once_bad)
    await again.pass_on()
    assert seen == ["x", "y!", "y", "z"]


async def test_a_commit_wakes_the_relay(database):
    heard = asyncio.Queue()
    relay = outbox.Relay(database, lambda number, event, at: heard.put_nowait(event), interval=3600)
    task = asyncio.create_task(relay.run())
    for subject in "ab":
        await database.run(lambda tx, s=subject: outbox.append(tx, Event("a.done", s), 1.0))
        assert (await asyncio.wait_for(heard.get(), 20)).subject == subject
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert database.after_commit == []


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
async def test_events_of_the_loop_are_written_in_order_and_flushed_at_the_end(database, turns):
    """Also when the writer is cancelled with a batch on its way."""
    writer = outbox.EventWriter(database, capacity=1000, clock=lambda: 5.0)
    task = asyncio.create_task(writer.run())
    for i in range(1010):
        writer(Event("file.landed", str(i)))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rows = database.look_sync(lambda tx: outbox.after(tx, 0, limit=2000))
    assert [event.subject for _, event, _ in rows] == [str(i) for i in range(1000)]
    assert writer.dropped == 10


@contextlib.asynccontextmanager
async def handing_over(database):
    """A writer whose relay takes what it writes, and a queue of what was passed on."""
    heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    writer = outbox.EventWriter(database)
    writer.relay = outbox.Relay(
        database, lambda number, event, at: heard.put_nowait((number, event.subject)), interval=3600
    )
    tasks = [asyncio.create_task(one.run()) for one in (writer.relay, writer)]
    yield writer, heard
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_a_writer_hands_over_is_passed_on_once_and_behind_what_others_wrote_before(database):
    async with handing_over(database) as (writer, heard):
        passed: list[tuple[int, str]] = []
        for turn in range(4):
            if turn % 2:  # another process: nobody tells the relay
                await database.run(lambda tx: outbox.append(tx, Event("x.done", "other"), 1.0), tell=False)
            for i in range(3):
                writer(Event("file.landed", f"{turn}.{i}"))
            while not passed or passed[-1][1] != f"{turn}.2":
                passed.append(await asyncio.wait_for(heard.get(), 20))
    rows = database.look_sync(lambda tx: outbox.after(tx, 0))
    assert passed == [(number, event.subject) for number, event, _ in rows]
    assert [subject for _, subject in passed].count("other") == 2


async def test_events_that_were_handed_over_are_passed_on_again_after_a_crash_at_most(database):
    async with handing_over(database) as (writer, heard):
        for subject in "abc":
            writer(Event("file.landed", subject))
            await asyncio.wait_for(heard.get(), 20)
    again: list[str] = []
    await outbox.Relay(database, lambda number, event, at: again.append(event.subject)).pass_on()
    assert "abc".endswith("".join(again))


async def test_a_batch_that_could_not_be_passed_on_is_offered_again(database, monkeypatch):
    monkeypatch.setattr(outbox, "SETTLED", 0.01)
    seen: list[str] = []

    def once_bad(number, event, at):
        seen.append(event.subject)
        if seen == ["a", "b"]:
            raise RuntimeError("not now")

    relay = outbox.Relay(database, once_bad, interval=0.01)
    writer = outbox.EventWriter(database)
    writer.relay = relay
    await relay.pass_on()
    for subject in "abc":
        writer(Event("file.landed", subject))
    await writer.flush()
    task = asyncio.create_task(relay.run())
    while len(seen) < 4:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == ["a", "b", "b", "c"]


async def test_events_that_nobody_wants_are_not_read_and_those_after_somebody_came_are_told(database):
    heard, wanted = [], False
    relay = outbox.Relay(
        database, lambda number, event, at: heard.append(event.subject), wanted=lambda: wanted
    )
    await database.run(lambda tx: outbox.append_many(tx, [Event("a", f"/{i}") for i in range(700)], 1.0))
    assert await relay.pass_on() == 0
    wanted = True
    assert await relay.pass_on() == 0
    await database.run(lambda tx: outbox.append(tx, Event("a", "/new"), 2.0))
    assert await relay.pass_on() == 1
    assert heard == ["/new"]


def test_pruning_waits_for_a_consumer_that_is_behind(database):
    database.run_sync(lambda tx: outbox.append_many(tx, [Event("a.done", s) for s in "xyz"], 1.0))
    first = ids(database)[0]
    database.run_sync(lambda tx: tx.execute(insert(cursors).values(consumer="c", position=first, at=50)))
    assert database.run_sync(lambda tx: outbox.prune(tx, 10.0)) == 1
    assert database.run_sync(lambda tx: outbox.prune(tx, 60.0)) == 2  # gone since 50: holds nothing back


def test_no_row_is_claimed_twice(jobs):
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda n: take(jobs, f"w{n}", 100.0, limit=3), range(6)))
    assert sorted(i for part in got for i in part) == list(range(10))
    assert max(map(len, got)) <= 3


def test_a_dead_workers_rows_come_back_and_its_late_word_is_ignored(jobs):
    assert len(take(jobs, "dead", 100.0, limit=1)) == 1
    (row,) = jobs.look_sync(lambda tx: tx.execute(select(work).where(work.c.owner == "dead")).all())
    assert row.id not in take(jobs, "early", 129.0)
    assert take(jobs, "next", 131.0) == [row.id]
    late = jobs.run_sync(
        lambda tx: claim.settle(tx, work, row.id, row.attempt, running="RUNNING", state="FINISHED")
    )
    assert not late
    good = jobs.run_sync(
        lambda tx: claim.settle(tx, work, row.id, row.attempt + 1, running="RUNNING", state="FINISHED")
    )
    assert good
    (now,) = jobs.look_sync(lambda tx: tx.execute(select(work).where(work.c.id == row.id)).all())
    assert (now.state, now.owner, now.lease_until) == ("FINISHED", None, None)


def test_a_renewed_lease_holds_and_a_lost_one_is_told(jobs):
    mine = take(jobs, "me", 100.0, limit=2)
    held = dict.fromkeys(mine, 1) | {999: 1}
    kept = jobs.run_sync(lambda tx: claim.renew(tx, work, held, running="RUNNING", now=125.0, lease=30))
    assert sorted(kept) == mine
    assert not set(mine) & set(take(jobs, "other", 140.0))


def test_a_worker_that_stops_gives_its_rows_back(jobs):
    mine = take(jobs, "me", 100.0, limit=4)
    freed = jobs.run_sync(lambda tx: claim.give_back(tx, work, "me", running="RUNNING", ready="READY"))
    assert freed == 4
    assert set(mine) <= set(take(jobs, "other", 101.0))


ODD = Event(
    "a.done",
    '/s/ä"\\\n\U0001f600',
    {"list": [1, 2.5, None, True, {}, []], "text": "ü\u2028", "big": 2**63, "small": 1.7e9 + 0.123456789},
    "issuer#o'b",
)


@pytest.mark.parametrize("event", [ODD, Event("a.done", "x", {}, "")])
def test_an_event_comes_back_as_it_was(database, event):
    database.run_sync(lambda tx: outbox.append_many(tx, [event, Event("a.done", "next")], 1.7e9 + 0.123456))
    (_, first, at), (_, second, _) = database.look_sync(lambda tx: outbox.after(tx, 0))
    assert (first, at, second.subject) == (event, 1.7e9 + 0.123456, "next")


def test_no_owner_is_cut_to_be_somebody_else(database):
    if not database.is_sqlite:
        pytest.skip("PostgreSQL has no such text")
    event = Event("a.done", "x", {}, "issuer#victim\0thief")
    database.run_sync(lambda tx: outbox.append(tx, event, 1.0))
    assert [one for _, one, _ in database.look_sync(lambda tx: outbox.after(tx, 0))] == [event]
