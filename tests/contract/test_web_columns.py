"""What an operator sees of column delivery, on both databases."""

import pytest

from doma.bus.local import Bus
from doma.columns import repo, work_repo
from doma.columns.model import Grant, Outcome, State, Submission
from doma.columns.overview import overview, recent, watched
from doma.core.errors import TooManyRequests
from doma.web.stream import MAX_OF_ONE, Asked, Streams

ADA, BOB = Grant("https://i", "ada"), Grant("https://i", "bob")


def add(db, name, grant=ADA, files=1, at=1.0, title=None):
    ask = Submission("(secret question)", tuple(f"https://a/{i}.root" for i in range(files)), title)
    db.run_sync(lambda tx: repo.add(tx, name, grant, ask, "digest", at))


def finish(db, now, reason=""):
    (job,) = db.run_sync(lambda tx: work_repo.take(tx, "w", now, 30.0, 1))
    if reason:
        db.run_sync(lambda tx: work_repo.failed(tx, job, reason, now))
    else:
        made = work_repo.Published("n", "/r/n", "v", Outcome("", rows=1))
        db.run_sync(lambda tx: work_repo.done(tx, [(job, made, now)]))


def test_everybodys_requests_are_counted_and_the_unfinished_come_first(database):
    add(database, "old")
    finish(database, 10.0)
    add(database, "bad", BOB, at=20.0)
    finish(database, 21.0, "no such tree")
    add(database, "half", ADA, 2, at=30.0, title="Z peak")
    finish(database, 31.0)
    add(database, "new", BOB, at=40.0)
    add(database, "gone", at=41.0)
    database.run_sync(lambda tx: repo.cancel(tx, "gone", 42.0))
    seen = database.look_sync(lambda tx: overview(tx, 15.0, 4))
    assert (seen.waiting, seen.running, seen.complete, seen.failed, seen.canceled) == (1, 1, 0, 1, 1)
    assert [r.id for r in seen.recent] == ["new", "half", "gone", "bad"]
    half = seen.recent[1]
    assert (half.title, half.owner, half.state) == ("Z peak", "https://i#ada", State.RUNNING)
    assert (half.files, half.completed, half.failed, half.finished) == (2, 1, 0, None)
    assert "secret" not in repr(seen)
    everything = database.look_sync(lambda tx: overview(tx, 0.0, 10))
    assert everything.complete == 1
    assert everything.recent[-1].id == "old"


def test_a_page_shows_a_request_to_its_owner_what_failed_first(database):
    add(database, "one", ADA, 3, at=1.0)
    finish(database, 2.0)
    finish(database, 3.0, "no such tree; name one of A, B")
    shown = database.look_sync(lambda tx: watched(tx, "one", "https://i#ada", 2))
    assert [f["state"] for f in shown.files] == ["failure", "waiting"]
    assert (shown.request.failed, shown.progress.completed, shown.more) == (1, 1, 1)
    failed = database.look_sync(lambda tx: watched(tx, "one", None, 10, failed=True))
    assert (len(failed.files), failed.more) == (1, 0)
    assert database.look_sync(lambda tx: watched(tx, "one", "https://i#bob", 10)) is None
    assert database.look_sync(lambda tx: watched(tx, "none", None, 10)) is None
    add(database, "two", BOB, at=9.0)
    assert [r.id for r in database.look_sync(lambda tx: recent(tx, None, 10))] == ["two", "one"]
    assert [r.id for r in database.look_sync(lambda tx: recent(tx, "https://i#ada", 10))] == ["one"]


async def test_many_idle_streams_of_one_user_leave_room_for_everybody_else(database):
    streams = Streams(database, Bus(), look=3600)

    async def state():
        return "the same"

    async def opened(owner):
        streams.check_room(owner)
        lines = streams.page(state, float("inf"), owner=owner)
        await anext(lines)
        return lines

    mine = [await opened("ada") for _ in range(MAX_OF_ONE - 1)]
    mine.append(streams.lines(Asked("ada")))
    await anext(mine[-1])
    with pytest.raises(TooManyRequests) as told:
        streams.check_room("ada")
    assert told.value.retry_after
    mine += [await opened("bob"), await opened(None)]
    await mine[0].aclose()
    mine.append(await opened("ada"))
    for lines in mine:
        await lines.aclose()
    assert not streams._open
