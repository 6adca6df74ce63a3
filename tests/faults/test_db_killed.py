"""A worker that is killed at any moment loses nothing and repeats nothing."""

import subprocess
import sys
from collections import Counter

import pytest
from sqlalchemy import Column, Double, Integer, MetaData, String, Table, insert, select

from doma.db import outbox
from doma.db.engine import Database

WORKER = """
import sys
from sqlalchemy import Column, Double, Integer, MetaData, String, Table
from doma.core.events import Event
from doma.db import claim, outbox
from doma.db.engine import Database

work = Table("work", MetaData(), Column("id", Integer, primary_key=True), Column("state", String),
    Column("owner", String), Column("lease_until", Double), Column("attempt", Integer))
db, now = Database(sys.argv[1]), float(sys.argv[2])
take = dict(ready=["READY"], running="RUNNING", owner=sys.argv[2], now=now, lease=0.5, limit=3)
while rows := db.run_sync(lambda tx: claim.claim(tx, work, **take)):
    for row in rows:
        print(row.id, flush=True)
        def end(tx):
            if claim.settle(tx, work, row.id, row.attempt, running="RUNNING", state="DONE"):
                outbox.append(tx, Event("work.done", str(row.id)), now)
        db.run_sync(end)
db.close()
print("end", flush=True)
"""

work = Table(
    "work",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("state", String),
    Column("owner", String),
    Column("lease_until", Double),
    Column("attempt", Integer),
)
COUNT = 200


@pytest.mark.fault
async def test_killed_workers_lose_and_repeat_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/work.db"
    db = Database(url)
    db.migrate()
    db.run_sync(work.create)
    rows = [{"id": i, "state": "READY", "attempt": 0} for i in range(COUNT)]
    db.run_sync(lambda tx: tx.execute(insert(work), rows))
    seen = Counter()

    def tell(number, event, at):
        seen[event.subject] += 1

    for life, lines in enumerate([1, 17, 40, 58, COUNT * 2]):
        run = [sys.executable, "-c", WORKER, url, str(life + 1)]
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for _ in range(lines):
                line = worker.stdout.readline()
                assert line, "the worker failed"
                if line == "end\n":
                    break
            worker.kill()
        # Each life has a relay of its own that goes on where the last one stopped.
        await outbox.Relay(db, tell).pass_on()
    states = db.look_sync(lambda tx: tx.execute(select(work.c.state, work.c.attempt)).all())
    assert {state for state, _ in states} == {"DONE"}
    assert seen == Counter(str(i) for i in range(COUNT))
    assert max(attempt for _, attempt in states) > 1, "no worker was killed with a row in its hands"
    db.close()
