"""Slow, stalled and moved inputs with real workers: what moves goes on, what stands is begun anew."""

import asyncio
import http.server
import threading
import time
from pathlib import Path

import pytest

from doma.columns import dataset_catalogue as catalogue
from doma.columns import repo
from doma.columns.datasets import Datasets
from doma.columns.finder import FoundFile
from doma.columns.finder_catalogue import CatalogueFinder
from doma.columns.model import FileState, Grant, Input, State, Submission, Task
from doma.columns.query import compile_query
from doma.columns.service import ColumnService
from doma.columns.worker import WorkerPool
from doma.core import config
from doma.core.errors import UnknownColumn
from doma.net import tls
from tests.e2e.columns.conftest import House, Inputs, Tokens, serve

COUNT = "(call Count (call Where (call EventDataset 'x' 'Events') (lambda (list e) (> (attr e 'nMuon') 2))))"
ALICE = Grant("https://issuer", "alice", ("storage.read:/",))

pytestmark = pytest.mark.fault


class Slow(Inputs):
    """Inputs that can be made to wait before they give any bytes, or before the first one about a file."""

    def __init__(self, folder: Path, files: tls.Files) -> None:
        self.pause, self.pauses = 0.0, 0
        self.stands: set[str] = set()
        """Files whose next question is not answered until ``go``; later ones are."""
        self.after = 0
        """Questions about such a file that are answered before."""
        self.go, self.stood = threading.Event(), threading.Event()
        super().__init__(folder, files)

    def _hold(self, name: str) -> None:
        super()._hold(name)
        if name in self.stands:
            if self.after:
                self.after -= 1
                return
            self.stands.discard(name)
            self.stood.set()
            self.go.wait(60)

    def answer(self, h: http.server.BaseHTTPRequestHandler) -> None:
        if self.pause:
            self.pauses += 1
            time.sleep(self.pause)
        super().answer(h)

    def described(self, h: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(h.path.lstrip("/"))
        super().described(h)

    def close(self) -> None:
        self.go.set()
        super().close()


@pytest.fixture
def slow(tmp_path, certificates):
    usual = serve(tmp_path, certificates)
    usual.close()
    made = Slow(usual.folder, certificates)
    yield made
    made.close()


@pytest.fixture
async def slow_house(tmp_path, slow, issuer):
    made = House(tmp_path, slow, issuer)
    await made.service.start()
    yield made
    await made.close()


def _ask(house: House, *inputs: Input) -> str:
    ask = Submission(COUNT, tuple(i.url for i in inputs))
    digest = compile_query("uproot", COUNT).digest
    house.db.run_sync(lambda tx: repo.add(tx, "asked", ALICE, ask, digest, 1.0, inputs=inputs))
    house.service._runner.wake()
    return "asked"


async def _ended(service: ColumnService, id_: str):
    async with asyncio.timeout(60):
        while not (found := await service.wait(ALICE.owner, id_, 5)).state.final:
            pass
    return found


async def _row(house: House, id_: str):
    (row,) = await house.db.look(lambda tx: repo.all_files(tx, id_, 10))
    return row


async def test_a_slow_file_that_moves_takes_longer_than_a_standing_one_may(slow, tmp_path):
    stall = 2.0
    pool = WorkerPool(1, silence=10.0, stall=stall)
    await pool.start()
    task = Task(slow.url("muons.root"), COUNT, str(tmp_path / "out"), "input-token", ca_file=str(slow.ca),
                allow=(slow.origin,), timeout=60)  # fmt: skip
    assert (await pool.run(task)).rows == 1
    (tmp_path / "out").unlink()
    slow.pause = 1.0
    assert (await pool.run(task)).rows == 1
    assert slow.pauses * slow.pause > stall
    await pool.stop()


async def test_a_file_that_stands_is_begun_by_another_worker_and_counts_once(
    slow, tmp_path, issuer, monkeypatch
):
    monkeypatch.setattr("doma.columns.runner.SLOW_AT_LEAST", 0.5)
    house = House(tmp_path, slow, issuer)
    house.pool = WorkerPool(2)
    house.service = ColumnService(
        house.db, house.store, "https://results.test/results", house.pool, Tokens(), lambda *a: "",
        config.Columns(workers=2), work_dir=tmp_path / "two", ca_file=str(slow.ca), allow=(slow.origin,),
    )  # fmt: skip
    for name in ("a", "b", "c", "d"):
        (slow.folder / f"{name}.parquet").symlink_to((slow.folder / "adl.parquet").resolve())
    await house.service.start()
    slow.stands.add("d.parquet")
    id_ = _ask(house, *(Input(slow.url(f"{n}.parquet")) for n in ("a", "b", "c", "d")))
    assert await asyncio.to_thread(slow.stood.wait, 30)
    before = set(house.pool.pids)
    found = await _ended(house.service, id_)
    assert not slow.go.is_set()  # the first worker would stand there still
    assert (found.state, found.completed, found.failed) == (State.COMPLETE, 4, 0)
    rows = await house.db.look(lambda tx: repo.all_files(tx, id_, 10))
    assert [(r.state, r.attempt) for r in rows] == [(FileState.DONE, 1)] * 4
    assert {p.name for p in (house.results / id_).iterdir()} == {r.name for r in rows}
    assert len(before - set(house.pool.pids)) == 1
    await house.close()


async def test_the_next_attempt_begins_at_the_next_replica(slow_house, slow):
    (slow.folder / "copy.root").symlink_to((slow.folder / "muons.root").resolve())
    slow.fail |= {"muons.root", "copy.root"}
    urls = [slow.url("muons.root"), slow.url("copy.root")]
    id_ = _ask(slow_house, Input(urls[0], (urls[1],)))
    async with asyncio.timeout(30):
        while not (await _row(slow_house, id_)).history:
            await asyncio.sleep(0.01)
    assert list(dict.fromkeys(slow.asked)) == ["muons.root", "copy.root"]
    slow.fail.clear()
    await _ended(slow_house.service, id_)
    row = await _row(slow_house, id_)
    assert row.state is FileState.DONE
    assert row.attempt == len(row.history) + 1
    assert row.place == urls[(row.attempt - 1) % 2]


async def test_progress_is_seen_while_a_file_runs(slow_house, slow):
    slow.stands.add("muons.root")
    slow.after = 2
    id_ = _ask(slow_house, Input(slow.url("muons.root")))
    assert await asyncio.to_thread(slow.stood.wait, 30)
    async with asyncio.timeout(30):
        while not (seen := await slow_house.service.progress(ALICE.owner, id_)).read:
            await asyncio.sleep(0.02)
    assert (seen.files, seen.running, seen.completed) == (1, 1, 0)
    row = await _row(slow_house, id_)
    assert row.moved is not None
    assert row.state is FileState.RUNNING
    slow.go.set()
    await _ended(slow_house.service, id_)
    done = await slow_house.service.progress(ALICE.owner, id_)
    assert (done.completed, done.passed, done.entries) == (1, 100_000, 100_000)
    assert done.read > seen.read


async def test_names_are_checked_at_submission_though_every_worker_is_busy(slow_house, slow):
    slow.stands.add("muons.root")
    id_ = _ask(slow_house, Input(slow.url("muons.root")))
    assert await asyncio.to_thread(slow.stood.wait, 30)
    with pytest.raises(UnknownColumn, match="nMuons"):
        await slow_house.service.submit(
            ALICE, Submission(COUNT.replace("'nMuon'", "'nMuons'"), (slow.url("adl.parquet"),))
        )
    assert (await _row(slow_house, id_)).state is FileState.RUNNING
    slow.go.set()
    assert (await _ended(slow_house.service, id_)).state is State.COMPLETE


async def test_a_file_that_has_moved_is_found_again_in_its_catalogue(slow, tmp_path, issuer):
    house = House(tmp_path, slow, issuer)
    section = config.Datasets()
    datasets = Datasets(house.db, [CatalogueFinder(house.db, section)], section, repo.settled)
    house.service = ColumnService(
        house.db, house.store, "https://results.test/results", house.pool, Tokens(), lambda *a: "",
        config.Columns(workers=1), work_dir=tmp_path / "one", ca_file=str(slow.ca), allow=(slow.origin,),
        datasets=datasets,
    )  # fmt: skip
    await house.service.start()

    def lies(*names: str) -> None:
        files = [FoundFile("f", tuple(slow.url(n) for n in names))]
        house.db.run_sync(lambda tx: catalogue.put(tx, ALICE, "set", files, time.time()))

    (slow.folder / "new.root").symlink_to((slow.folder / "muons.root").resolve())
    lies("muons.root", "second.root")
    slow.stands.add("muons.root")
    id_ = await house.service.submit(ALICE, Submission(COUNT, (), did="doma://set"))
    assert await asyncio.to_thread(slow.stood.wait, 30)
    lies("muons.root", "second.root", "new.root")
    (slow.folder / "muons.root").unlink()
    slow.go.set()
    found = await _ended(house.service, id_)
    assert found.state is State.COMPLETE, found.failure
    row = await _row(house, id_)
    assert (row.place, row.attempt, row.events) == (slow.url("new.root"), 2, 1)
    assert slow.asked.count("second.root") <= 2  # it was tried once, and not again
    await house.close()
