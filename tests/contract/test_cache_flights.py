"""Who waits for bytes that are on their way gets them, whoever else gives them up meanwhile (R26)."""

import asyncio
import random
import time
import tracemalloc

import pytest

from doma.cache.fetch import JOIN
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from tests.contract.counted_origin import MIB, Origin, blob, put, until

DATA = blob(8 * MIB)


@pytest.fixture
def origin():
    return Origin()


@pytest.fixture
async def cache(tmp_path, origin):
    await put(origin, "/f", DATA)
    cache = CacheStore(tmp_path / "cache", Origins(origin, name="site"), Cache(), rng=random.Random(1))
    yield cache
    origin.gate.set()
    await cache.close()


async def test_who_jumps_into_what_is_being_fetched_ahead_of_him_waits_for_it(cache, origin):
    reader = await cache.open("/f")
    for at in (0, MIB):
        await reader.read(at, at + MIB)
    origin.gate.clear()
    third = asyncio.create_task(reader.read(2 * MIB, 3 * MIB))
    await until(lambda: origin.running > 1)
    far = max(stop for _, stop in origin.requests)
    assert far > 3 * MIB
    jump = asyncio.create_task(reader.read(far - 100, far))
    await asyncio.sleep(0)
    origin.gate.set()
    assert await third == DATA[2 * MIB : 3 * MIB]
    assert await jump == DATA[far - 100 : far]
    await reader.close()
    await until(lambda: cache.stats().fetching == 0)


@pytest.mark.parametrize("stays", [True, False])
async def test_a_fetch_goes_on_for_who_was_told_of_it_when_the_one_who_began_it_leaves(cache, origin, stays):
    reader = await cache.open("/f")
    fetcher = cache.catalogue.get(cache.place("/f").key).fetcher
    origin.gate.clear()
    begun = fetcher.ahead((0, 256))
    told = asyncio.create_task(fetcher.flights([(0, 300)]))
    await asyncio.sleep(0)

    def leave():
        fetcher.let_go(begun)
        if not stays:
            told.cancel()

    asyncio.get_running_loop().call_later(JOIN, leave)
    time.sleep(5 * JOIN)  # both timers are due at once: nobody is told before he leaves
    if stays:
        flights = await told
        origin.gate.set()
        first, second = await fetcher.gather(flights)
        assert bytes(first) + bytes(second) == DATA[: 300 * 4096]
    else:
        await asyncio.gather(told, return_exceptions=True)
        assert told.cancelled()
        await until(lambda: not fetcher.busy)  # nobody wants any of it
    await until(lambda: cache.stats().fetching == 0)
    await reader.close()


async def test_what_was_begun_for_a_reader_goes_on_while_he_looks_again_at_what_landed_meanwhile(
    cache, origin
):
    one, other = await cache.open("/f"), await cache.open("/f")
    origin.gate.clear()
    first = asyncio.create_task(one.read(0, 100_000))
    await until(lambda: origin.requests)
    second = asyncio.create_task(other.read(50_000, 200_000))
    await asyncio.sleep(0)
    origin.gate.set()
    assert await first == DATA[:100_000]
    assert await second == DATA[50_000:200_000]
    await one.close()
    await other.close()
    assert (len(origin.requests), origin.cancelled) == (2, 0)
    await until(lambda: cache.stats().fetching == 0)


@pytest.mark.parametrize("state", ["cold", "half"])
async def test_o10_who_waits_for_his_turn_at_the_origin_holds_no_memory_for_it(tmp_path, origin, state):
    for n in range(40):
        await put(origin, f"/f{n}", DATA[n : n + MIB])
    cache = CacheStore(tmp_path / "cache", Origins(origin, name="site"), Cache(memory=MIB, fetches=4))
    readers = [await cache.open(f"/f{n}") for n in range(40)]
    for reader in readers if state == "half" else []:
        await reader.read(0, MIB // 2)
    origin.gate.clear()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        reads = [asyncio.create_task(reader.read(0, MIB)) for reader in readers]
        async with asyncio.timeout(20):
            await until(lambda: sum(cache.lanes.depth().values()) == 37)
        assert tracemalloc.get_traced_memory()[0] - before < 8 * MIB
    finally:
        tracemalloc.stop()
        origin.gate.set()
        found = await asyncio.gather(*reads)
        for reader in readers:
            await reader.close()
        await cache.close()
    assert all(data == DATA[n : n + MIB] for n, data in enumerate(found))
