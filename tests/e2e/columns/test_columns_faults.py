"""Killed workers, a killed service, a broken store: everything is delivered once, nothing twice."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from doma.columns.model import FileState, Task
from doma.columns.tables import files
from doma.columns.worker import WorkerPool
from doma.core.errors import CorruptFile, LimitExceeded, TimedOut

COUNT = "(call Count (call Where (call EventDataset 'x' 'Events') (lambda (list e) (> (attr e 'nMuon') 2))))"

pytestmark = pytest.mark.fault


async def _only_once(house, client, id_):
    found = await client.wait(id_)
    assert (found["status"], found["files-completed"], found["files-failed"]) == ("Complete", 2, 0)
    tables = [await client.read(r) for r in await client.urls(id_)]
    assert [t.column(0).to_pylist() for t in tables] == [[57], [34367]]
    order = select(files).order_by(files.c.number)
    rows = await house.db.look(lambda tx: tx.execute(order).all())
    assert [r.state for r in rows] == [FileState.DONE, FileState.DONE]
    return rows[1]


async def test_a_worker_killed_in_the_middle_of_a_file_is_replaced_and_the_file_is_done_once(
    house, inputs, client
):
    inputs.open.clear()
    id_ = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    assert await asyncio.to_thread(inputs.held.wait, 20)
    for pid in house.pool.pids:
        os.kill(pid, signal.SIGKILL)
    inputs.open.set()
    row = await _only_once(house, client, id_)
    assert row.attempt == 2


SERVICE = """
import asyncio, sys
from pathlib import Path
from doma.columns.model import Grant, Submission
from doma.columns.service import ColumnService
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.db.engine import Database
from doma.store.file import FileStore

home, urls, origin, ca, issuer = sys.argv[1:]

class Tokens:
    async def token(self, owner, url):
        return "input-token"

async def main():
    db = Database(f"sqlite:///{home}/columns.db")
    db.migrate()
    service = ColumnService(db, FileStore(Path(home) / "results", fsync=False), "https://results.test/results",
        WorkerPool(1), Tokens(), lambda *a: "", Columns(workers=1), work_dir=Path(home) / "work",
        ca_file=ca, allow=(origin,))
    await service.start()
    grant = Grant(issuer, "alice", ("storage.read:/",))
    print(await service.submit(grant, Submission(sys.stdin.read(), tuple(urls.split()))), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_service_is_restarted_and_its_request_finishes_once(
    tmp_path, house, inputs, client, issuer, program
):
    inputs.open.clear()
    urls = f"{inputs.url('adl.parquet')} {inputs.url('muons.root')}"
    child = program(
        [sys.executable, "-c", SERVICE, str(tmp_path), urls, inputs.origin,
         str(inputs.ca), issuer.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    await house.service.stop()
    assert child.stdin
    assert child.stdout
    child.stdin.write(COUNT)
    child.stdin.close()
    id_ = (await asyncio.to_thread(child.stdout.readline)).strip()

    assert await asyncio.to_thread(inputs.held.wait, 60)
    child.kill()
    await asyncio.to_thread(child.wait)
    inputs.open.set()
    await house.service.start()
    row = await _only_once(house, client, id_)
    assert row.attempt == 2
    assert not list((tmp_path / "work").glob("*/*.parquet"))


async def test_a_hung_worker_is_stopped_at_its_limit_and_the_pool_goes_on(inputs, tmp_path):
    pool = WorkerPool(1, silence=10)
    await pool.start()
    path = tmp_path / "inputs" / "muons.root"
    good = Task(f"file://{path}", COUNT, str(tmp_path / "out.parquet"), allow=("file://",))
    assert (await pool.run(good)).rows == 1
    before = set(pool.pids)
    inputs.open.clear()
    slow = Task(inputs.url("muons.root"), COUNT, str(tmp_path / "o2"), "t", ca_file=str(inputs.ca),
                allow=(inputs.origin,), timeout=0.3)  # fmt: skip
    with pytest.raises(TimedOut, match="not finished"):
        await pool.run(slow)
    (tmp_path / "out.parquet").unlink()
    assert (await pool.run(good)).rows == 1
    assert before - set(pool.pids)
    await pool.stop()


async def test_workers_end_with_the_process_they_are_forked_from_and_others_take_their_place(
    inputs, tmp_path
):
    pool = WorkerPool(1, silence=10)
    await pool.start()
    task = Task(f"file://{tmp_path / 'inputs' / 'muons.root'}", COUNT, "", allow=("file://",))
    await pool.run(task)
    (before,) = pool.pids
    status = Path(f"/proc/{before}/status").read_text()
    os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
    while Path(f"/proc/{before}").exists():
        await asyncio.sleep(0.01)
    assert (await pool.run(task)).columns == ("",)
    assert before not in pool.pids
    await pool.stop()
    assert not pool.pids


async def test_a_worker_that_takes_too_much_memory_says_so_and_lives_on(tmp_path, inputs):
    pool = WorkerPool(1, memory=150 << 20)
    await pool.start()
    path = tmp_path / "inputs" / "muons.root"
    greedy = (
        "(call SelectMany (call EventDataset) 'lambda e: e.Muon_pt.Select(lambda a: "
        "e.Muon_pt.Select(lambda b: e.Muon_pt.Select(lambda c: e.Muon_pt.Select(lambda d: a + b + c + d))))')"
    )
    task = Task(f"file://{path}", greedy, str(tmp_path / "out.parquet"), allow=("file://",))
    with pytest.raises((LimitExceeded, CorruptFile), match=r"memory|allocate"):
        await pool.run(task)
    small = Task(f"file://{path}", COUNT, str(tmp_path / "out2.parquet"), allow=("file://",))
    assert (await pool.run(small)).rows == 1
    await pool.stop()
