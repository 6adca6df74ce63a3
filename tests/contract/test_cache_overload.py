"""Overload and fairness (O2-O5, O9); what is foreseen is fetched behind what is asked for."""

import asyncio
from dataclasses import replace

import pytest

from doma.auth.model import bearer
from doma.cache.freshness import patience
from doma.cache.origins import Origins
from doma.cache.pages import PageFile
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import StorageUnavailable, TimedOut, TooManyRequests
from tests.contract.counted_origin import MIB, Origin, blob, put, read_all, until


async def settle(turns=50):
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.fixture
async def scene(tmp_path):
    """A cache of the fixed origin ``good`` that also forwards to ``stalled``."""
    good, stalled = Origin(), Origin()
    made = []

    def make(foresee=lambda fetcher: None, **config):
        origins = Origins(good, name="good", open=lambda url: stalled, allow=("https://stalled",))
        cache = CacheStore(tmp_path / "cache", origins, Cache(foresight=False, **config))
        cache.catalogue.context = replace(cache.catalogue.context, foresee=foresee)
        made.append(cache)
        return cache

    yield good, stalled, make
    stalled.gate.set()
    good.gate.set()
    for cache in made:
        await cache.close()


async def test_o2_others_get_their_files_while_one_origin_stalls_with_a_hundred_readers(scene):
    good, stalled, make = scene
    cache = make(memory=32 * MIB)
    data = blob(8 * MIB)
    many = blob(MIB + 1)
    for n in range(100):
        await put(stalled, f"/f{n}", many)
    await put(good, "/f", data)
    stalled.gate.clear()
    waiting = [asyncio.create_task(read_all(cache, f"/https:/stalled/f{n}")) for n in range(100)]
    await until(lambda: stalled.running == 28)
    await settle()
    assert stalled.running == 28  # 90 % of 32
    assert await read_all(cache, "/f") == data
    await until(lambda: cache.stats().bytes["stored"] == len(data))  # as ever: memory was left for it
    stats = cache.stats()
    assert stats.bytes["bypass"] == 0
    assert stats.bytes["prefetch"] > 0  # and read ahead of
    assert stats.fetching <= 32 * MIB
    stalled.gate.set()
    got = await asyncio.gather(*waiting)
    assert all(copy == many for copy in got)
    await until(lambda: cache.stats().fetching == 0)


async def test_o3_a_slow_origin_has_a_quarter_of_the_slots_while_others_wait(scene):
    good, stalled, make = scene
    cache = make(fetches=8)
    for n in range(40):
        await put(stalled, f"/f{n}", blob(1000, n))
        await put(good, f"/f{n}", blob(1000, n))
    stalled.gate.clear()
    good.gate.clear()
    slow = [asyncio.create_task(read_all(cache, f"/https:/stalled/f{n}")) for n in range(40)]
    await until(lambda: stalled.running == 7)
    quick = [asyncio.create_task(read_all(cache, f"/f{n}")) for n in range(40)]
    await until(lambda: good.running == 1)
    await settle()
    assert (stalled.running, good.running) == (7, 1)
    stalled.gate.set()
    await settle(8)
    stalled.gate.clear()
    good.gate.set()
    assert await asyncio.gather(*quick) == [blob(1000, n) for n in range(40)]
    stalled.gate.set()
    assert len(await asyncio.gather(*slow)) == 40


async def test_o4_a_full_queue_is_told_with_a_time_to_come_again(scene):
    _, stalled, make = scene
    cache = make(fetches=1, waiting=4)
    for n in range(12):
        await put(stalled, f"/f{n}", blob(1000, n))
    stalled.gate.clear()
    asked = [asyncio.create_task(read_all(cache, f"/https:/stalled/f{n}")) for n in range(12)]
    await until(lambda: any(task.done() for task in asked))
    refused = [task for task in asked if task.done()]
    assert refused
    for task in refused:
        error = task.exception()
        assert isinstance(error, TooManyRequests)
        assert error.retry_after >= 1
    stalled.gate.set()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_o5_a_client_hears_that_it_took_too_long_before_it_gives_up(scene):
    good, _, make = scene
    cache = make()
    await put(good, "/f", blob(MIB))
    held = patience.set(0.05)
    try:
        good.gate.clear()
        reader = await cache.open("/f")
        with pytest.raises(TimedOut, match="/f"):
            await reader.read(0, 1000)
        await settle()
        assert good.running == 0  # nobody waits for it any more
        await reader.close()
    finally:
        patience.reset(held)
    good.gate.set()
    assert await read_all(cache, "/f") == blob(MIB)


async def test_o5_the_patience_of_one_is_not_that_of_another(scene):
    good, _, make = scene
    cache = make()
    await put(good, "/f", blob(MIB))
    good.gate.clear()
    patient = asyncio.create_task(read_all(cache, "/f"))
    await settle()
    held = patience.set(0.05)
    try:
        reader = await cache.open("/f")
        with pytest.raises(TimedOut):
            await reader.read(0, 1000)
        await reader.close()
    finally:
        patience.reset(held)
    assert good.running == 1
    good.gate.set()
    assert await patient == blob(MIB)
    assert good.requests == [(0, MIB)]


async def test_o9_who_opens_everything_delays_another_user_by_one_turn(scene):
    good, _, make = scene
    cache = make(fetches=2)
    for n in range(60):
        await put(good, f"/f{n}", blob(1000, n))

    async def ask(who, n):
        bearer.set(who)
        return await read_all(cache, f"/f{n}")

    good.gate.clear()
    order = []
    tasks = []
    for who, n in [("greedy", n) for n in range(50)] + [("modest", 55)]:
        task = asyncio.create_task(ask(who, n))
        task.add_done_callback(lambda _, who=who: order.append(who))
        tasks.append(task)
        await settle(5)
    good.gate.set()
    await asyncio.gather(*tasks)
    assert order.index("modest") <= 6


async def test_an_origin_that_fails_five_times_is_left_alone_and_nobody_waits_for_it(scene):
    good, stalled, make = scene
    cache = make()
    await put(good, "/f", blob(1000))

    async def away(path):
        stalled.requests.append(path)
        raise StorageUnavailable("stalled: connection refused")

    stalled.stat = away
    for n in range(20):
        with pytest.raises(StorageUnavailable):
            await cache.open(f"/https:/stalled/f{n}")
    assert len(stalled.requests) == 5
    assert await read_all(cache, "/f") == blob(1000)


class Sight:
    """Foresees the same distance ahead at every read."""

    def __init__(self, distance, size):
        self.distance, self.size, self.reads = distance, size, []

    def seen(self, start, stop):
        self.reads.append((start, stop))
        return [(start + self.distance, min(self.size, stop + self.distance))]

    def reach(self, stop):
        return stop


async def test_what_is_foreseen_is_fetched_once_and_counted_apart(scene):
    good, _, make = scene
    data = blob(4 * MIB)
    await put(good, "/f", data)
    sights = []

    def foresee(fetcher):
        sights.append(Sight(2 * MIB, fetcher.record.size))
        return sights[-1]

    cache = make(foresee)
    reader = await cache.open("/f")
    assert bytes(await reader.read(0, 100_000)) == data[:100_000]
    while len(good.requests) < 2 or good.running:
        await asyncio.sleep(0)
    await reader.close()
    await settle()
    other = await cache.open("/f")
    part = bytes(await other.read(2 * MIB, 2 * MIB + 100_000))
    await other.close()
    assert part == data[2 * MIB : 2 * MIB + 100_000]
    assert len(sights) == 1
    assert sights[0].reads == [(0, 100_000), (2 * MIB, 2 * MIB + 100_000)]
    stats = cache.stats().bytes
    assert stats["prefetched"] == 100_000
    assert stats["miss"] == 100_000
    assert stats["hit"] == 0
    assert sum(stop - start for start, stop in good.requests[:2]) <= 210_000


async def test_the_caches_own_questions_cost_one_fetch_and_are_no_misses(scene):
    good, _, make = scene
    data = blob(MIB)
    await put(good, "/f", data)
    fetchers = []
    cache = make(lambda fetcher: fetchers.append(fetcher))
    reader = await cache.open("/f")
    for _ in range(2):
        assert bytes(await fetchers[0].content(1000, 50_000)) == data[1000:50_000]
    assert bytes(await reader.read(4096, 8192)) == data[4096:8192]
    await reader.close()
    stats = cache.stats().bytes
    assert (stats["miss"], stats["prefetched"], stats["origin"]) == (0, 4096, 53_248)


async def test_many_spans_of_one_answer_are_had_together_or_not_at_all_and_counted_once(scene):
    good, _, make = scene
    data = blob(2 * MIB)
    await put(good, "/f", data)
    cache = make()
    reader = await cache.open("/f")
    await reader.read(0, MIB)
    await asyncio.sleep(0.03)
    await reader.read(0, MIB)
    await reader.close()
    before = cache.stats().bytes["hit"]
    hot = cache.peek("/f")
    spans = [(900_000, 916_000), (5, 16_000), (5, 6)]
    assert [bytes(v) for v in hot.views(spans)] == [data[a:b] for a, b in spans]
    assert cache.stats().bytes["hit"] - before == sum(b - a for a, b in spans)
    for lacking in ([(0, 10), (MIB + 5, MIB + 9)], [(0, 10), (20, 10)], [(-5, 10)], [(0, 2 * MIB + 1)], []):
        assert hot.views(lacking) is None
    assert cache.stats().bytes["hit"] - before == sum(b - a for a, b in spans)


async def test_what_is_foreseen_while_the_last_flights_are_under_way_is_fetched_too(scene):
    good, _, make = scene
    await put(good, "/f", blob(8 * MIB))
    fetchers = []
    cache = make(lambda fetcher: fetchers.append(fetcher))
    reader = await cache.open("/f")
    good.gate.clear()
    fetchers[0].prefetch([(n * MIB, n * MIB + 1000) for n in range(6)])
    await until(lambda: good.running == 4)
    fetchers[0].prefetch([(n * MIB, n * MIB + 1000) for n in range(6, 8)])
    good.gate.set()
    await until(lambda: len(good.requests) == 8)
    await reader.close()


async def test_a_hot_object_that_serves_many_answers_counts_each_of_them(scene):
    good, _, make = scene
    await put(good, "/f", blob(MIB))
    cache = make()
    await read_all(cache, "/f")
    await asyncio.sleep(0.03)
    await read_all(cache, "/f")
    before = cache.stats().bytes["hit"]
    hot = cache.peek("/f")
    for _ in range(3):
        assert hot.view(0, 1000) is not None
    assert cache.stats().bytes["hit"] - before == 1000
    hot.single = False
    for _ in range(3):
        hot.view(0, 1000)
    assert cache.stats().bytes["hit"] - before == 4000


async def test_o13_a_disk_that_is_slower_than_the_origin_delays_nobody_and_gets_it_all_in_the_end(
    scene, monkeypatch
):
    good, _, make = scene
    data = blob(3 * MIB)
    await put(good, "/f", data)
    cache, disk, save = make(), asyncio.Event(), PageFile.save

    async def slow(self, first, buffer):
        await disk.wait()
        await save(self, first, buffer)

    monkeypatch.setattr(PageFile, "save", slow)
    assert await read_all(cache, "/f") == data
    assert cache.stats().bytes["stored"] == 0
    assert cache.stats().fetching == len(data)  # bounded by the memory budget until it is written
    disk.set()
    await until(lambda: cache.stats().bytes["stored"] == len(data))
    assert await read_all(cache, "/f") == data
    assert cache.stats().bytes["origin"] == len(data)


async def test_who_reads_on_has_bytes_before_the_disk_and_all_is_on_disk_at_the_end_of_a_range(
    scene, monkeypatch
):
    good, _, make = scene
    data = blob(8 * MIB)
    await put(good, "/f", data)
    monkeypatch.setattr("doma.cache.fetch.DISK", 60.0)
    cache, disk, save = make(), asyncio.Event(), PageFile.save

    async def slow(self, first, buffer):
        await disk.wait()
        await save(self, first, buffer)

    reader = await cache.open("/f")
    reader.expect(8 * MIB)
    for at in range(0, 2 * MIB, MIB):
        await reader.read(at, at + MIB)
    monkeypatch.setattr(PageFile, "save", slow)
    for at in range(2 * MIB, 7 * MIB, MIB):
        assert await reader.read(at, at + MIB) == data[at : at + MIB]
    assert cache.stats().bytes["stored"] < 7 * MIB
    last = asyncio.create_task(reader.read(7 * MIB, 8 * MIB))
    await asyncio.sleep(0)
    assert not last.done()
    disk.set()
    assert await last == data[7 * MIB :]
    assert cache.stats().bytes["stored"] == cache.stats().bytes["origin"] == len(data)
    await reader.close()
