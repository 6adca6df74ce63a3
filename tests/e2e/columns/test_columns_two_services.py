"""Two service processes on one database: what both are asked is read and computed by one of them."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from doma.columns import repo
from doma.columns.model import Grant, State, Submission
from doma.columns.plan import compile_text
from doma.columns.tables import files, requests
from tests.conftest import migrated
from tests.e2e.columns.conftest import TOKEN, Inputs, serve
from tests.tied import Tied

COUNT = "(call Count (call Where (call EventDataset 'x' 'Events') (lambda (list e) (> (attr e 'nMuon') 2))))"
SERVICE = """
import asyncio, sys
from pathlib import Path
from doma.columns import runner
from doma.columns.service import ColumnService
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.db.engine import Database
from doma.store.file import FileStore

home, ca, origin, token, lease, look = Path(sys.argv[1]), *sys.argv[2:]
runner.LOOK = float(look)

class Tokens:
    async def token(self, owner, url):
        return token

async def main():
    service = ColumnService(
        Database(f"sqlite:///{home}/columns.db"), FileStore(home / "results", fsync=False), "https://r.test/r",
        WorkerPool(1), Tokens(), lambda *a: "", Columns(workers=1, lease=float(lease)),
        work_dir=home / "work", ca_file=ca, allow=(origin,))
    await service.start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


class House:
    """A database, and services on it in processes of their own."""

    def __init__(self, home: Path, inputs: Inputs) -> None:
        self.home, self.inputs = home, inputs
        self.db = migrated(home / "columns.db")
        self.sent = 0
        self.running: list[Tied] = []
        send = inputs._send

        def counted(h, status, body, extra=None):
            self.sent += len(body)
            send(h, status, body, extra)

        inputs._send = counted  # type: ignore[method-assign]

    def serve(self, lease: float, look: float) -> Tied:
        """A service that looks for work of others in this interval."""
        places = map(str, (self.home, self.inputs.ca, self.inputs.origin, TOKEN, lease, look))
        self.running.append(Tied([sys.executable, "-c", SERVICE, *places]))
        return self.running[-1]

    def ask(self, name: str, user: str) -> None:
        ask = Submission(COUNT, (self.inputs.url("muons.root"),))
        digest = compile_text(COUNT).digest
        self.db.run_sync(lambda tx: repo.add(tx, name, Grant("https://i", user), ask, digest, time.time()))

    def rows(self) -> dict[str, tuple[str, bool]]:
        """Who holds the file of a request, and whether its result was taken over."""
        wanted = select(files.c.request, files.c.owner, files.c.cached)
        return {
            r.request: (r.owner, r.cached) for r in self.db.look_sync(lambda tx: tx.execute(wanted).all())
        }

    def ended(self) -> bool:
        wanted = select(requests.c.state)
        return {State.COMPLETE} == set(self.db.look_sync(lambda tx: tx.execute(wanted).scalars().all()))

    @staticmethod
    def until(true: Callable[[], bool]) -> None:
        ends = time.monotonic() + 60
        while not true():
            assert time.monotonic() < ends
            time.sleep(0.05)


@pytest.fixture
def house(tmp_path: Path, certificates) -> Iterator[House]:
    inputs = serve(tmp_path, certificates)
    inputs.open.clear()
    made = House(tmp_path, inputs)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
    made.db.close()
    inputs.close()


def both_at_it(house: House, lease: float) -> Tied:
    """One service reads a file and the other is asked the same of it; the first one."""
    house.ask("one", "alice")
    first = house.serve(lease, look=3600)
    assert house.inputs.held.wait(60)
    house.ask("two", "bob")
    house.serve(lease, look=0.2)
    house.until(lambda: None not in {owner for owner, _ in house.rows().values()})
    assert len({owner for owner, _ in house.rows().values()}) == 2
    return first


def test_two_services_read_a_file_once_for_two_that_ask_the_same(house):
    both_at_it(house, lease=60)
    house.inputs.open.set()
    house.until(house.ended)
    assert house.rows() == {"one": (None, False), "two": (None, True)}
    read = house.db.look_sync(lambda tx: [repo.all_files(tx, id_, 1)[0].read for id_ in ("one", "two")])
    assert 0 < house.sent <= 1.05 * read[0] + (64 << 10)
    assert read[1] <= 64 << 10


def test_when_the_one_that_reads_is_killed_the_other_takes_over(house):
    both_at_it(house, lease=2).kill()
    house.inputs.open.set()
    house.until(house.ended)
    assert sorted(cached for _, cached in house.rows().values()) == [False, True]
