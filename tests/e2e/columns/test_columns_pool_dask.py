"""Column delivery on Dask: a real scheduler and real workers, results uploaded or on a shared disk."""

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path

import distributed
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from doma.columns import pool_dask
from doma.columns.model import Grant, State, Submission, Task
from doma.columns.pool_dask import DaskPool
from doma.columns.pool_dask_worker import Order
from doma.columns.service import ColumnService
from doma.core import config
from doma.core.errors import BadQuery, MissingExtra, ServiceUnavailable, TimedOut, UnknownColumn
from doma.store.file import FileStore
from tests.conftest import migrated
from tests.tied import Tied

ALL = "(call Select (call EventDataset 'x' 't') (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"

# Dask's own code leaves loops and sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.fault,
]


@pytest.fixture(scope="module")
def scheduler():
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
async def pool(scheduler):
    section = config.Columns(dask=config.Dask(scheduler=scheduler), worker_memory=1 << 30, stall=60)
    made = DaskPool(section, None)
    await made.start()
    await _ready(made)
    yield made
    await made.stop()


async def _ready(pool: DaskPool) -> None:
    async with asyncio.timeout(30):
        while not pool.slots:
            await asyncio.sleep(0.05)


def _input(folder: Path, name: str, rows: int = 1000) -> str:
    with uproot.recreate(folder / name) as file:
        file.mktree("t", {"x": "f8"})
        file["t"].extend({"x": np.arange(rows, dtype="f8")})
    return f"file://{folder / name}"


def _task(url: str, output: Path, selection: str = ALL, **more: object) -> Task:
    return Task(url, selection, str(output), allow=("file://",), **more)  # type: ignore[arg-type]


async def test_files_are_delivered_on_a_shared_disk_and_what_is_known_is_not_computed(pool, tmp_path):
    url = _input(tmp_path, "a.root")
    assert pool.slots == 2
    outcome = await pool.run(_task(url, tmp_path / "out"))
    assert pq.read_table(tmp_path / "out")["x"].to_pylist() == list(range(1000))
    assert (outcome.rows, outcome.bytes) == (1000, (tmp_path / "out").stat().st_size)
    again = await pool.run(_task(url, tmp_path / "out2", known=(outcome.version,)))
    assert again.cached
    assert not (tmp_path / "out2").exists()


async def test_what_is_wrong_with_a_query_is_the_same_error_as_on_local_workers(pool, tmp_path):
    url = _input(tmp_path, "a.root")
    with pytest.raises(UnknownColumn, match="'y'"):
        await pool.run(
            _task(url, tmp_path / "out", ALL.replace("'x') (list (attr e 'x')", "'x') (list (attr e 'y')"))
        )
    with pytest.raises(BadQuery):
        await pool.run(_task(url, Path(), "((("))
    assert (await pool.run(_task(url, tmp_path / "out"))).rows == 1000


async def test_a_file_that_kills_its_process_or_hangs_leaves_the_dask_worker_alive(pool, tmp_path):
    url = _input(tmp_path, "a.root")
    await pool.run(_task(url, tmp_path / "out"))
    client = pool._client
    (before,) = (await client.scheduler.identity())["workers"]
    fifo = tmp_path / "hangs.root"
    os.mkfifo(fifo)
    with pytest.raises(TimedOut, match="not finished"):
        await pool.run(_task(f"file://{fifo}", tmp_path / "out3", timeout=0.3))
    blocked = asyncio.create_task(pool.run(_task(f"file://{fifo}", tmp_path / "out4", timeout=40)))
    for pid in await _children(client):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServiceUnavailable, match="died"):
        await blocked
    (after,) = (await client.scheduler.identity())["workers"]
    assert after == before
    assert (await pool.run(_task(url, tmp_path / "out5"))).rows == 1000


async def _children(client: distributed.Client) -> list[int]:
    """The child processes on the Dask worker, once an order runs there."""
    async with asyncio.timeout(20):
        while True:
            (pids,) = (await client.run(_at_work())).values()
            if pids:
                return list(pids)
            await asyncio.sleep(0.05)


def _at_work():
    """What says on the Dask worker which children run while an order does; travels by value."""

    def pids() -> list[int]:
        from doma.columns import pool_dask_worker

        host = pool_dask_worker._hosts[0]
        return list(host._pool.pids) if host._tasks else []

    return pids


async def test_a_cancelled_file_is_stopped_at_its_worker(pool, tmp_path):
    url = _input(tmp_path, "a.root")
    await pool.run(_task(url, tmp_path / "out"))
    fifo = tmp_path / "hangs.root"
    os.mkfifo(fifo)
    running = asyncio.create_task(pool.run(_task(f"file://{fifo}", tmp_path / "o")))
    await _children(pool._client)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(20):
        while any((await pool._client.run(_at_work())).values()):
            await asyncio.sleep(0.05)


async def test_without_scheduler_there_are_no_slots_so_nothing_is_claimed(tmp_path):
    section = config.Columns(dask=config.Dask(scheduler="tcp://127.0.0.1:1"))
    pool = DaskPool(section, None)
    await pool.start()
    assert pool.slots == 0
    with pytest.raises(ServiceUnavailable, match="no Dask scheduler"):
        await pool.run(_task("file:///x", tmp_path / "out"))
    await pool.stop()


class Loses:
    """A client that takes its first cancellation for a scheduler that does not answer, as Dask's may."""

    def __init__(self) -> None:
        self.waits, self._lost = asyncio.Event(), False

    def __await__(self):
        return self._connected().__await__()

    async def _connected(self) -> None:
        self.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self._lost:
                raise
            self._lost = True
            raise OSError("timed out trying to connect") from None


async def test_a_pool_stops_also_when_dask_loses_the_cancellation(monkeypatch):
    loses = Loses()
    monkeypatch.setattr(distributed, "Client", lambda *a, **k: loses)
    pool = DaskPool(config.Columns(dask=config.Dask(scheduler="tcp://127.0.0.1:1")), None)
    await pool.start()
    await loses.waits.wait()
    stopping = asyncio.create_task(pool.stop())
    await asyncio.wait({stopping}, timeout=20)  # not wait_for: a hung one would swallow that, too
    assert stopping.done()
    await stopping


async def test_another_cluster_is_made_for_one_that_ended(scheduler, monkeypatch, caplog):
    monkeypatch.setattr(pool_dask, "LIMIT", 0.5)
    monkeypatch.setattr(pool_dask, "LOOK", 0.5)
    pool, closed = DaskPool(config.Columns(), None), []

    class Made:
        security = None
        scheduler_address = "tcp://127.0.0.1:1"  # of a gateway that was killed, say

        def close(self):
            closed.append(self.scheduler_address)
            raise ConnectionRefusedError("nobody there")

    def make():
        made.append(one := Made())
        refused.append(pool._refused)
        if len(made) == 2:
            raise RuntimeError("no room for a cluster")
        if len(made) > 3:
            one.scheduler_address = scheduler
        return one

    made, refused = [], []
    pool._made_by = make
    await pool.start()
    await _ready(pool)
    await pool.stop()
    assert closed == ["tcp://127.0.0.1:1", "tcp://127.0.0.1:1", scheduler]
    assert refused == [1, 1, 2, 1], "one that cannot be made is asked for ever more seldom"
    assert "nobody there" in caplog.text


def test_a_cluster_whose_package_is_missing_names_the_extra():
    if importlib.util.find_spec("dask_kubernetes"):
        pytest.skip("dask-kubernetes is installed")
    section = config.Columns(dask=config.Dask(cluster="kubernetes"))
    with pytest.raises(MissingExtra, match="k8s"):
        DaskPool(section, None)


def test_an_order_keeps_its_token_out_of_what_is_printed():
    assert "secret" not in repr(Order("i", {"token": "secret"}, "t", token="secret"))


def test_workers_that_share_no_disk_upload_their_results(scheduler, start, tmp_path):
    (tmp_path / "data").mkdir()
    _input(tmp_path / "data", "a.root")
    settings = f'[columns]\npool = "dask"\n[columns.dask]\nscheduler = "{scheduler}"\n'
    (tmp_path / "doma.toml").write_text(settings)
    system = start("home", "--config", tmp_path / "doma.toml", "--data", tmp_path / "data")
    table = system.deliver(f"{system.run['https']}/data/a.root", ("x",), "t")
    assert list(table["x"]) == list(range(1000))
    assert [p.name for p in (tmp_path / "home" / "incoming").iterdir() if p.name != ".doma"] == []
    assert system.ask("PUT", "/incoming/mine", content=b"x").status_code == 403


class Cluster:
    """A scheduler and a worker in processes of their own, always at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address, self._folder = f"tcp://127.0.0.1:{self.port}", folder
        self._running: list[Tied] = []

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--no-dashboard"]
        self._begin("scheduler", "--port", str(self.port), *where)
        self._begin("worker", self.address, "--nthreads", "2", "--no-nanny", *where)

    def kill(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()
        self._running = []

    def _begin(self, what: str, *options: str) -> None:
        command = [sys.executable, "-c", "from dask.__main__ import main; main()", what, *options]
        with (self._folder / f"{what}.log").open("ab") as out:
            self._running.append(Tied(command, stdout=out, stderr=out, cwd=self._folder))


async def test_a_request_goes_on_when_the_scheduler_that_was_lost_is_back(tmp_path):
    cluster = Cluster(tmp_path)
    cluster.start()
    db, store = migrated(tmp_path / "columns.db"), FileStore(tmp_path / "results", fsync=False)
    section = config.Columns(
        pool="dask", dask=config.Dask(scheduler=cluster.address), worker_memory=1 << 30, workers=1
    )
    pool = DaskPool(section, None)
    service = ColumnService(
        db, store, "https://results.test", pool, Nothing(), lambda *a: "", section,
        work_dir=tmp_path / "work", allow=("file://",),
    )  # fmt: skip
    try:
        await service.start()
        await _ready(pool)
        first, hangs = _input(tmp_path, "a.root"), tmp_path / "hangs.root"
        os.mkfifo(hangs)
        grant = Grant("https://i", "alice", ())
        id_ = await service.submit(grant, Submission(ALL, (first, f"file://{hangs}")))
        async with asyncio.timeout(45):  # before the whole run is ended for it, so that the line is told
            while (await service.status(grant.owner, id_)).completed < 1:
                await asyncio.sleep(0.05)
            await _children(pool._client)  # the second file hangs at the worker
            await asyncio.to_thread(cluster.kill)
            while pool.slots:
                await asyncio.sleep(0.05)
            hangs.unlink()
            _input(tmp_path, "hangs.root")
            assert not (await service.status(grant.owner, id_)).state.final
            await asyncio.to_thread(cluster.start)
            while not (found := await service.wait(grant.owner, id_, 2)).state.final:
                pass
        assert (found.state, found.completed, found.failed) == (State.COMPLETE, 2, 0), found.failure
        assert len(list((tmp_path / "results" / id_).iterdir())) == 2
    finally:
        await service.stop()
        await asyncio.to_thread(cluster.kill)
        await store.close()
        db.close()


class Nothing:
    """No token for anything."""

    async def token(self, owner: Grant, url: str) -> str:
        return ""
