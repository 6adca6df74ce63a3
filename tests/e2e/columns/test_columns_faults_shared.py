"""The same question twice, stalled and slow files, deleted requests: nothing is computed or lost twice."""

import asyncio
import os
from pathlib import Path

import pytest
from sqlalchemy import select

from doma.columns import repo
from doma.columns.client import ColumnClient
from doma.columns.model import FileState, Grant, Outcome, Progress, Submission, Task
from doma.columns.service import ColumnService
from doma.columns.tables import cache, files
from doma.columns.worker import WorkerPool
from doma.core import config
from doma.core.errors import StorageUnavailable, TimedOut
from tests.e2e.columns.conftest import TOKEN, House, Tokens

COUNT = "(call Count (call Where (call EventDataset 'x' 'Events') (lambda (list e) (> (attr e 'nMuon') 2))))"

pytestmark = pytest.mark.fault


async def test_the_same_question_of_two_users_at_once_is_computed_once(house, inputs, client):
    class Both:
        async def token(self, owner, url):
            return TOKEN

    object.__setattr__(house.service._runner._shop, "tokens", Both())
    inputs.open.clear()
    first = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    assert await asyncio.to_thread(inputs.held.wait, 20)
    async with house.http("bob") as http:
        bob = ColumnClient(http)
        second = await bob.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
        inputs.open.set()
        await client.wait(first)
        await bob.wait(second)
        tables = [(await bob.read(r)).column(0).to_pylist() for r in await bob.urls(second)]
    assert tables == [[57], [34367]]
    assert sorted(o.cached for o in house.pool.outcomes) == [False, False, True, True]
    rows = await house.db.look(lambda tx: tx.execute(select(files.c.cached).order_by(files.c.id)).all())
    assert [r.cached for r in rows] == [False, False, True, True]
    # A second name for the same bytes, and each goes without the other.
    names = list((house.results / second).iterdir())
    assert {p.stat().st_nlink for p in names} == {2}
    await client.delete(first)
    async with house.http("bob") as http:
        assert [len(await ColumnClient(http).read(r)) for r in await ColumnClient(http).urls(second)] == [
            1,
            1,
        ]


async def test_who_waits_for_another_computes_it_when_that_one_is_cancelled(house, inputs, client):
    inputs.open.clear()
    first = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    assert await asyncio.to_thread(inputs.held.wait, 20)
    second = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    await client.cancel(first)
    inputs.open.set()
    found = await client.wait(second)
    assert (found["status"], found["files-completed"]) == ("Complete", 2)


async def test_a_deleted_requests_results_serve_the_next_until_they_are_evicted(house, inputs, client):
    id_ = await client.submit(COUNT, [inputs.url("muons.root")])
    await client.wait(id_)
    await client.delete(id_)
    (row,) = await house.db.look(lambda tx: tx.execute(select(cache)).all())
    assert (row.request, row.path) == ("", f"/.cache/{row.key}")
    assert (await client.columns(COUNT, [inputs.url("muons.root")])).column(0).to_pylist() == [34367]
    assert [o.cached for o in house.pool.outcomes] == [False, True]
    upkeep = house.service._runner._upkeep
    object.__setattr__(upkeep._shop, "config", config.Columns(cache_size=1))
    await upkeep.turn()
    assert await house.db.look(lambda tx: tx.execute(select(cache)).all()) == []
    assert list((house.results / ".cache").iterdir()) == []


async def test_a_file_that_does_not_move_is_stopped_and_a_slow_one_is_not(inputs, tmp_path):
    pool = WorkerPool(1, silence=10, stall=1.5)
    await pool.start()
    fifo = tmp_path / "stands.root"
    os.mkfifo(fifo)
    task = Task(f"file://{fifo}", COUNT, str(tmp_path / "out"), allow=("file://",), timeout=60)
    with pytest.raises(TimedOut, match="neither a byte nor an event moved"):
        await pool.run(task)
    await pool.stop()


class Slow:
    """A pool whose first try of one file hangs; the others are quick."""

    slots = 2

    def __init__(self, place: Path) -> None:
        self.place, self.tries, self.stopped = place, 0, 0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def run(self, task: Task, tell=None) -> Outcome:
        if not task.output:
            raise StorageUnavailable("no check here")
        if "slow" in task.url:
            self.tries += 1
            if self.tries == 1:
                try:
                    await asyncio.sleep(3600)
                finally:
                    self.stopped += 1
        if tell is not None:
            tell(Progress(1, 1, 1))
        Path(task.output).write_bytes(b"result")
        return Outcome("v", rows=1, bytes=6, seconds=0.01, events=1, url=task.url)


async def test_a_straggler_is_begun_a_second_time_and_its_result_counts_once(
    tmp_path, inputs, issuer, monkeypatch
):
    monkeypatch.setattr("doma.columns.runner.SLOW_AT_LEAST", 0.2)
    monkeypatch.setattr("doma.columns.runner.TELL", 0.05)
    house = House(tmp_path, inputs, issuer)
    slow = Slow(tmp_path)
    house.service = ColumnService(
        house.db, house.store, "https://results.test/results", slow, Tokens(), lambda *a: "",
        config.Columns(workers=2), work_dir=tmp_path / "slow", allow=("file://",),
    )  # fmt: skip
    await house.service.start()
    grant = Grant("https://i", "alice", ())
    urls = tuple(f"file://{tmp_path}/{n}.root" for n in ("a", "b", "c", "d", "slow"))
    id_ = await house.service.submit(grant, Submission(COUNT, urls))
    async with asyncio.timeout(30):
        while not (found := await house.service.wait(grant.owner, id_, 5)).state.final:
            pass
    assert (found.completed, found.failed, slow.tries, slow.stopped) == (5, 0, 2, 1)
    rows = await house.db.look(lambda tx: repo.results(tx, id_))
    assert [(r.state, r.attempt) for r in rows] == [(FileState.DONE, 1)] * 5
    assert (await house.service.progress(grant.owner, id_)).passed == 5
    await house.close()
    assert not list((tmp_path / "slow").glob("*/*"))


async def test_a_file_that_fails_is_tried_again_and_each_attempts_reason_is_kept(house, inputs, client):
    inputs.fail.add("muons.root")
    id_ = await client.submit(COUNT, [inputs.url("muons.root")])
    while not (await _rows(house, id_))[0].history:
        await asyncio.sleep(0.02)
    inputs.fail.clear()
    found = await client.wait(id_)
    assert found["status"] == "Complete"
    (row,) = await _rows(house, id_)
    assert "500" in row.history[0]["reason"]
    assert row.attempt == len(row.history) + 1


async def _rows(house, id_):
    return await house.db.look(lambda tx: repo.all_files(tx, id_, 10))
