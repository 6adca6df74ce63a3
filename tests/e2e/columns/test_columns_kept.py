"""What is kept, and for how long: results of a list that grows, requests after their time."""

import time

import pytest

from doma.core import config
from doma.core.errors import NotFound

COUNT = "(call Count (call EventDataset 'x' 'Events'))"


async def test_a_list_that_grew_runs_its_new_files_only(house, inputs, client):
    await client.wait(await client.submit(COUNT, [inputs.url("muons.root")]))
    grown = await client.submit(COUNT, [inputs.url("muons.root"), inputs.url("adl.parquet")])
    assert (await client.wait(grown))["files-completed"] == 2
    rows = (await client.status(grown, details=True))["details"]
    assert [row["cached"] for row in sorted(rows, key=lambda row: row["file-id"])] == [True, False]
    assert [o.cached for o in house.pool.outcomes].count(False) == 2


async def test_an_ended_request_goes_after_its_time_and_is_unknown_then(house, inputs, client):
    id_ = await client.submit(COUNT, [inputs.url("muons.root")])
    ended = await client.wait(id_)
    upkeep = house.service._runner._upkeep
    await upkeep.turn()
    assert (await client.status(id_))["status"] == ended["status"] == "Complete"
    later = time.time() + config.Columns().retention + 60
    object.__setattr__(upkeep._shop, "clock", lambda: later)
    await upkeep.turn()
    with pytest.raises(NotFound):
        await client.status(id_)
    assert not (house.results / id_).exists()


async def test_a_request_that_runs_is_never_too_old(house, inputs, client):
    inputs.open.clear()
    id_ = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    shop = house.service._runner._upkeep._shop
    clock = shop.clock
    object.__setattr__(shop, "clock", lambda: clock() + 10 * config.Columns().retention)
    await house.service._runner._upkeep.turn()
    object.__setattr__(shop, "clock", clock)
    inputs.open.set()
    assert (await client.wait(id_))["status"] == "Complete"
