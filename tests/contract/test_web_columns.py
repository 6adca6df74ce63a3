"""What an operator sees of column delivery, on both databases."""

from doma.columns import repo
from doma.columns.model import Grant, Outcome, State, Submission
from doma.columns.overview import overview

ADA, BOB = Grant("https://i", "ada"), Grant("https://i", "bob")


def add(db, name, grant=ADA, files=1, at=1.0, title=None):
    ask = Submission("(secret question)", tuple(f"https://a/{i}.root" for i in range(files)), title)
    db.run_sync(lambda tx: repo.add(tx, name, grant, ask, "digest", at))


def finish(db, now, reason=""):
    (job,) = db.run_sync(lambda tx: repo.take(tx, "w", now, 30.0, 1))
    if reason:
        db.run_sync(lambda tx: repo.failed(tx, job, reason, now))
    else:
        db.run_sync(lambda tx: repo.done(tx, job, "n", "/r/n", "v", Outcome("", rows=1), now))


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
