"""``kill -9`` of the service and of its workers at any point: every file is delivered once, and is right."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from sqlalchemy import select

from doma.columns import repo
from doma.columns.model import FileState, Grant, State, Submission
from doma.columns.service import ColumnService
from doma.columns.tables import cache, files
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.db import outbox
from doma.db.engine import Database
from doma.store.file import FileStore
from tests.conftest import migrated

pytestmark = pytest.mark.fault

QUERY = (
    "(call Select (call Where (call EventDataset 'x' 't') (lambda (list e) (> (attr e 'x') {cut})))"
    " (lambda (list e) (dict (list 'x') (list (attr e 'x')))))"
)
FILES = 30
GRANT = Grant("https://issuer", "alice", ("storage.read:/",))

SERVICE = """
import asyncio, os, signal, sys
from pathlib import Path
from doma.columns import attempt, runner, upkeep, work_repo
from doma.columns.service import ColumnService
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.db.engine import Database
from doma.store.file import FileStore

home, point, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
left = [count]

def die():
    left[0] -= 1
    if left[0] <= 0:
        os.kill(os.getpid(), signal.SIGKILL)

def hooked(module, name, when):
    real = getattr(module, name)
    if asyncio.iscoroutinefunction(real):
        async def hook(*a, **k):
            if when == "before":
                die()
            result = await real(*a, **k)
            if when == "after":
                die()
            return result
    else:
        def hook(*a, **k):
            if when == "before":
                die()
            result = real(*a, **k)
            if when == "after":
                die()
            return result
    setattr(module, name, hook)

POINTS = {"put": attempt, "copy": attempt, "done": work_repo, "take": work_repo, "renew": work_repo,
          "_shelved": upkeep}
if "-" in point:
    when, name = point.split("-")
    hooked(POINTS[name], name, when)

class Tokens:
    async def token(self, owner, url):
        return ""

async def main():
    db = Database(f"sqlite:///{home}/columns.db")
    service = ColumnService(db, FileStore(Path(home) / "results", fsync=False), "https://results.test/results",
        WorkerPool(2), Tokens(), lambda *a: "", Columns(workers=2), work_dir=Path(home) / "work",
        allow=("file://",))
    await service.start()
    print("up", flush=True)
    for id_ in sys.argv[4:]:
        await service.delete("https://issuer#alice", id_)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for i in range(FILES):
        with uproot.recreate(tmp_path / f"{i}.root") as file:
            file.mktree("t", {"x": "f8"})
            file["t"].extend({"x": np.random.default_rng(i).random(1000) + i})
    migrated(tmp_path / "columns.db").close()
    return tmp_path


def _submit(home: Path, name: str, cut: float) -> None:
    ask = Submission(QUERY.format(cut=cut), tuple(f"file://{home}/{i}.root" for i in range(FILES)))
    db = Database(f"sqlite:///{home}/columns.db")
    from doma.columns.funcadl import FuncAdl

    digest = FuncAdl(ask.selection).digest
    db.run_sync(lambda tx: repo.add(tx, name, GRANT, ask, digest, 1.0))
    db.close()


def _serve(home: Path, point: str, count: int, *delete: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVICE, str(home), point, str(count), *delete]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _finished(home: Path, *names: str) -> None:
    """Let a service end these requests, then compare every result with the inputs."""
    db = Database(f"sqlite:///{home}/columns.db")
    store = FileStore(home / "results", fsync=False)

    class Tokens:
        async def token(self, owner: Grant, url: str) -> str:
            return ""

    service = ColumnService(
        db, store, "https://results.test/results", WorkerPool(2), Tokens(), lambda *a: "", Columns(workers=2),
        work_dir=home / "work", allow=("file://",),
    )  # fmt: skip
    await service.start()
    try:
        async with asyncio.timeout(60):
            for name in names:
                while not (found := await service.wait(GRANT.owner, name, 60)).state.final:
                    pass
                assert (found.state, found.files) == (State.COMPLETE, FILES), found.failure
                assert (found.completed, found.failed) == (FILES, 0)
                _compare(home, db, name, found.selection)
    finally:
        await service.stop()
        await store.close()
        db.close()
    assert not list((home / "work").glob("*/*"))


def _compare(home: Path, db: Database, name: str, selection: str) -> None:
    cut = float(selection.split("(> (attr e 'x') ")[1].split(")")[0])
    rows = db.look_sync(lambda tx: tx.execute(select(files).where(files.c.request == name)).all())
    assert Counter(r.state for r in rows) == {FileState.DONE: FILES}
    assert len({r.visible for r in rows}) == len({r.name for r in rows}) == FILES
    assert {p.name for p in (home / "results" / name).iterdir()} == {r.name for r in rows}
    for row in rows:
        expected = np.random.default_rng(row.number).random(1000) + row.number
        path = home / "results" / name / row.name
        got = pq.read_table(path)["x"].to_numpy()
        assert np.array_equal(got, expected[expected > cut])
        assert (row.bytes, row.events) == (path.stat().st_size, len(got))
    told = [e for _, e, _ in db.look_sync(lambda tx: outbox.after(tx, 0)) if e.subject == name]
    kinds = Counter(e.kind for e in told)
    assert (kinds["request.started"], kinds["request.finished"]) == (1, 1)
    counts = [e.data["completed"] for e in told if e.kind in {"request.advanced", "request.finished"}]
    assert counts == sorted(set(counts))  # some files may share one event
    assert counts[-1] == FILES


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["put", "done", "take", "renew"])
async def test_a_service_killed_between_two_steps_delivers_everything_once(home, when, step):
    _submit(home, "first", 0.5)
    for count in (1, 7):
        child = _serve(home, f"{when}-{step}", count)
        assert await asyncio.to_thread(child.wait, 60) == -signal.SIGKILL
        assert child.stdout
        child.stdout.close()
    await _finished(home, "first")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_service_killed_while_it_takes_results_over_delivers_everything_once(home, when):
    _submit(home, "first", 0.5)
    await _finished(home, "first")
    _submit(home, "second", 0.5)
    child = _serve(home, f"{when}-copy", 5)
    assert await asyncio.to_thread(child.wait, 60) == -signal.SIGKILL
    assert child.stdout
    child.stdout.close()
    await _finished(home, "second")


async def test_a_deletion_that_is_killed_in_the_middle_is_repeated_and_the_cache_keeps_what_it_has(home):
    _submit(home, "first", 0.5)
    await _finished(home, "first")
    child = _serve(home, "after-_shelved", 10, "first")
    assert await asyncio.to_thread(child.wait, 60) == -signal.SIGKILL
    assert child.stdout
    child.stdout.close()
    child = _serve(home, "", 0, "first")
    db = Database(f"sqlite:///{home}/columns.db")
    while db.look_sync(lambda tx: repo.get(tx, "first", GRANT.owner)) is not None:
        assert child.poll() is None
        await asyncio.sleep(0.05)
    child.kill()
    await asyncio.to_thread(child.wait)
    assert child.stdout
    child.stdout.close()
    kept = db.look_sync(lambda tx: tx.execute(select(cache)).all())
    db.close()
    assert len(kept) == FILES
    assert all((home / "results" / row.path.lstrip("/")).stat().st_size == row.bytes for row in kept)
    assert not (home / "results" / "first").exists()
    _submit(home, "second", 0.5)
    await _finished(home, "second")
    rows = Database(f"sqlite:///{home}/columns.db")
    taken = rows.look_sync(lambda tx: tx.execute(select(files.c.cached, files.c.read)).all())
    rows.close()
    assert {tuple(r) for r in taken} == {(True, 0)}


async def test_thirty_files_survive_kills_of_the_service_and_its_workers_at_random_points(home):
    rng = random.Random(os.environ.get("DOMA_SEED", "1"))
    _submit(home, "first", 0.5)
    _submit(home, "same", 0.5)
    _submit(home, "other", 0.25)
    for _ in range(8):
        child = _serve(home, "", 0)
        assert child.stdout
        assert await asyncio.to_thread(child.stdout.readline)
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(rng.uniform(0, 1.0))
            templates = _children(child.pid)
            family = [w for t in templates for w in _children(t)] + templates
            for pid in family[: rng.randrange(3)]:
                with contextlib.suppress(ProcessLookupError):  # a worker ends with its template
                    os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(rng.uniform(0, 2.0))
        child.kill()
        await asyncio.to_thread(child.wait)
        child.stdout.close()
    await _finished(home, "first", "same", "other")


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(fields[1]) == parent:
            found.append(int(entry.name))
    return found
