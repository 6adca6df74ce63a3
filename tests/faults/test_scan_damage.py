"""Files damaged at any byte: rows or one clear error, never a crash and never a fault of another kind."""

import asyncio
import random
import threading
from pathlib import Path

import pytest

from doma.auth.gate import Gate
from doma.core.config import Scan
from doma.core.errors import DomaError
from doma.scan.model import build
from doma.scan.opener import StoreOpener
from doma.scan.service import ScanService
from doma.store.memory import MemoryStore

SAMPLES = Path(__file__).parents[1] / "data"
MUONS = "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"


@pytest.fixture(scope="module")
def place():
    """A memory store and a scan service over it: every byte passes through the event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    store = MemoryStore()
    service = ScanService(
        {"mem": StoreOpener(store, loop)}, None, {"mem": Gate({}, public=True)}, Scan(memory=32 << 20)
    )

    def put(path, data):
        async def write():
            upload = await store.create(path)
            for start in range(0, len(data), 1 << 20):
                await upload.write(data[start : start + (1 << 20)])
            await upload.commit()

        asyncio.run_coroutine_threadsafe(write(), loop).result(10)

    yield service, put
    service.close()
    asyncio.run_coroutine_threadsafe(store.close(), loop).result(10)  # behind the closing of the files
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def rows_of(service, dataset, where=None):
    planned = service.plan(build({"v": 1, "from": dataset, "where": where}), None)
    count = 0
    for part in planned.parts:
        run = service.run(part.ticket, None)
        try:
            count += sum(batch.num_rows for batch in run)
        finally:
            run.close()
    return count


@pytest.mark.fault
@pytest.mark.parametrize("name", ["uproot-Zmumu.root", MUONS, "Run2012B_SingleMu-1000.parquet"])
def test_a_damaged_file_gives_rows_or_one_clear_error(place, name):
    service, put = place
    good = (SAMPLES / name).read_bytes()
    put("/good", good)
    rows = rows_of(service, "/mem/good")
    assert rows > 900
    rng = random.Random(7)
    errors = []
    for attempt in range(25):
        bad = bytearray(good)
        where = rng.choice(
            [rng.randrange(len(bad)), rng.randrange(max(len(bad) - 4000, 0), len(bad)), rng.randrange(4000)]
        )
        if attempt % 5 == 0:
            bad = bad[:where]
        else:
            bad[where : where + rng.choice([1, 4, 200])] = rng.randbytes(rng.choice([1, 4, 200]))
        put("/bad", bytes(bad))
        try:
            rows_of(service, "/mem/bad")
        except DomaError as e:
            errors.append(e)
    assert errors
    assert [e for e in errors if e.http >= 500 or "/mem/bad" not in e.message] == []
    assert service.running == 0
    assert rows_of(service, "/mem/good") == rows


@pytest.mark.fault
def test_a_file_that_is_gone_in_the_middle_of_a_query_fails_alone(place):
    service, put = place
    put("/gone", (SAMPLES / "uproot-Zmumu.root").read_bytes())
    planned = service.plan(build({"v": 1, "from": "/mem/gone"}), None)
    put("/gone", b"root but other")
    with pytest.raises(DomaError, match="replaced"):
        list(service.run(planned.parts[0].ticket, None))
    assert service.running == 0
