"""Column delivery on Dask: a real scheduler and real workers, results uploaded or on a shared disk."""

import asyncio
import importlib.util
import os
import signal
from pathlib import Path

import distributed
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from doma.columns.model import Task
from doma.columns.pool_dask import DaskPool
from doma.columns.pool_dask_worker import Order
from doma.core import config
from doma.core.errors import BadQuery, MissingExtra, ServiceUnavailable, TimedOut, UnknownColumn

ALL = "(call Select (call EventDataset 'x' 't') (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"

# Dask's own code leaves loops and sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


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
    blocked = asyncio.create_task(pool.run(_task(f"file://{fifo}", tmp_path / "out4", timeout=60)))
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


def test_a_cluster_whose_package_is_missing_names_the_extra():
    if importlib.util.find_spec("dask_kubernetes"):
        pytest.skip("dask-kubernetes is installed")
    section = config.Columns(dask=config.Dask(cluster="kubernetes"))
    pool = DaskPool(section, None)
    with pytest.raises(MissingExtra, match="k8s"):
        pool._made()


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
