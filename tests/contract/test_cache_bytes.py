"""The cache's bytes: each fetched once, never mixed, within the limits, warm after a restart."""

import asyncio
import json
import os
import random
from contextlib import suppress
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doma.cache.extents import EXTENT, PAGE
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import (
    AlreadyRunning,
    Conflict,
    NotAllowed,
    OriginFailed,
    RangeNotSatisfiable,
)
from doma.store.protocol import CanPeek, CanSpace
from tests.contract.counted_origin import MIB, Origin, blob, put, read_all, until


async def settled(cache, path):
    """Wait until written pages are older than the file system's clock tick, then read them once more."""
    await asyncio.sleep(0.03)
    return await read_all(cache, path)


def taken_by(folder):
    """Allocated bytes of the files in a folder, from which a purge may take some just now."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512 * path.is_file()
    return total


@pytest.fixture
def origin():
    return Origin()


@pytest.fixture
async def make(tmp_path, origin):
    made = []

    def make(store=origin, root=tmp_path / "cache", **config):
        made.append(CacheStore(root, Origins(store, name="site"), Cache(**config), rng=random.Random(1)))
        return made[-1]

    yield make
    for cache in made:
        await cache.close()


@pytest.fixture
def cache(make):
    return make()


async def test_a_herd_of_16_costs_the_origin_one_copy(cache, origin):
    data = blob(3 * MIB + 17)
    await put(origin, "/f", data)
    out = await asyncio.gather(*(read_all(cache, "/f", 100_000) for _ in range(16)))
    assert all(copy == data for copy in out)
    assert origin.sent == len(data)
    assert origin.opened == 1
    stats = cache.stats()
    assert sum(stats.bytes[kind] for kind in ("hit", "prefetched", "miss")) == 16 * len(data)
    new = stats.bytes["prefetched"] + stats.bytes["miss"]
    assert 0.9 * len(data) < new <= len(data), "each page was new to one reader only"
    assert stats.bytes["origin"] == len(data)
    assert 0.9 < stats.hit_ratio < 1
    json.dumps(asdict(stats))
    assert stats.metrics()["doma_cache_origin_bytes_total"] == len(data)


async def test_every_delivered_byte_is_counted_once(cache, origin):
    data = blob(MIB)
    await put(origin, "/f", data)
    reader = await cache.open("/f")
    spans = [(0, 10), (5, 5000), (100_000, 200_000), (99_999, 200_001), (0, MIB)]
    for a, b in spans:
        assert bytes(await reader.read(a, b)) == data[a:b]
    await asyncio.gather(*(reader.read(a, b) for a, b in spans))
    await reader.close()
    stats = cache.stats()
    assert sum(stats.bytes[kind] for kind in ("hit", "prefetched", "miss")) == 2 * sum(
        b - a for a, b in spans
    )
    assert stats.bytes["miss"] <= origin.sent == MIB


async def test_random_64_kib_reads_move_at_most_a_fifth_more_than_they_deliver(cache, origin):
    size = 64 * MIB
    await put(origin, "/f", bytes(size))
    rng = random.Random(4)
    reader = await cache.open("/f")
    starts = [
        n * 256 * 1024 + rng.randrange(100_000) for n in rng.sample(range(size // (256 * 1024) - 1), 100)
    ]
    for start in starts:
        await reader.read(start, start + 65536)
    await reader.close()
    assert origin.sent <= 1.2 * 65536 * len(starts)


async def test_neighbours_asked_together_are_one_request(cache, origin):
    data = blob(2 * MIB)
    await put(origin, "/f", data)
    reader = await cache.open("/f")
    origin.gate = asyncio.Event()
    first = asyncio.create_task(reader.read(0, 100))
    await until(lambda: origin.requests)
    rest = [asyncio.create_task(reader.read(a, a + 500)) for a in (150_000, 165_000, 180_000)]
    await asyncio.sleep(0.02)
    origin.gate.set()
    out = [bytes(part) for part in await asyncio.gather(first, *rest)]
    await reader.close()
    assert out == [data[:100], data[150_000:150_500], data[165_000:165_500], data[180_000:180_500]]
    assert len(origin.requests) == 2


async def test_a_sequential_reader_is_read_ahead_of_and_what_it_leaves_is_stopped(cache, origin):
    await put(origin, "/f", bytes(32 * MIB))
    reader = await cache.open("/f")
    for at in range(0, 4 * MIB, MIB):
        await reader.read(at, at + MIB)
    await until(lambda: max(stop for _, stop in origin.requests) > 5 * MIB)
    stats = cache.stats()
    assert stats.bytes["hit"] == 0, "what was fetched ahead is no hit the first time it is read"
    assert stats.bytes["miss"] + stats.bytes["prefetched"] == 4 * MIB
    assert max(stop for _, stop in origin.requests) <= 4 * MIB + EXTENT
    origin.gate = asyncio.Event()
    stuck = asyncio.create_task(reader.read(16 * MIB, 17 * MIB))
    await until(lambda: origin.running)
    stuck.cancel()
    await reader.close()
    await until(lambda: origin.running == 0 and cache.stats().fetching == 0)
    assert origin.cancelled > 0


async def test_nothing_is_fetched_beyond_the_end_that_a_reader_announced(cache, origin):
    await put(origin, "/f", bytes(32 * MIB))
    reader = await cache.open("/f")
    reader.expect(6 * MIB)
    for at in range(0, 6 * MIB, MIB):
        await reader.read(at, at + MIB)
    await reader.close()
    assert origin.sent == 6 * MIB


async def test_nobody_waits_so_the_fetch_stops_but_one_who_waits_still_gets_it(cache, origin):
    await put(origin, "/f", b"x" * 9000)
    origin.gate = asyncio.Event()
    reader = await cache.open("/f")
    one, two = (asyncio.create_task(reader.read(0, 9000)) for _ in range(2))
    await until(lambda: origin.running)
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    assert origin.cancelled == 0
    origin.gate.set()
    assert bytes(await two) == b"x" * 9000
    origin.gate = asyncio.Event()
    await put(origin, "/g", b"y" * 9000)
    other = await cache.open("/g")
    lonely = asyncio.create_task(other.read(0, 9000))
    await until(lambda: origin.running)
    lonely.cancel()
    await asyncio.gather(lonely, return_exceptions=True)
    await until(lambda: origin.cancelled == 1)
    origin.gate.set()
    assert bytes(await other.read(0, 9000)) == b"y" * 9000
    await reader.close()
    await other.close()


async def test_without_memory_reads_pass_through_uncached(make, origin):
    cache = make(memory=100_000)
    data = blob(MIB)
    await put(origin, "/f", data)
    assert await read_all(cache, "/f", 500_000) == data
    stats = cache.stats()
    assert stats.bytes["bypass"] == 1_000_000
    assert stats.bytes["stored"] < 100_000
    assert await read_all(cache, "/f", 50_000) == data
    assert cache.stats().bytes["stored"] >= len(data)


async def test_a_short_answer_is_tried_again_and_never_delivered_or_stored(cache, origin):
    data = blob(10_000)
    await put(origin, "/f", data)
    origin.failures = 1
    assert await read_all(cache, "/f") == data
    assert cache.stats().counts["retries"] == 1
    await put(origin, "/g", data)
    origin.cut = 1
    with pytest.raises(OriginFailed, match="9999 bytes instead of 10000"):
        await read_all(cache, "/g")
    assert cache.stats().bytes["stored"] == len(data)
    origin.cut = 0
    assert await read_all(cache, "/g") == data


async def test_bytes_that_do_not_fit_the_origins_checksum_are_discarded(cache, origin):
    data = blob(100_000)
    upload = await origin.create("/f", size=len(data))
    await upload.write(data)
    await upload.commit()
    await origin.checksum("/f", "adler32")
    stored = origin._files["/f"]
    wrong = bytearray(data)
    wrong[50_000] ^= 1
    origin._files["/f"] = type(stored)(stored.stat, bytes(wrong))
    await read_all(cache, "/f")
    await until(lambda: cache.stats().counts["discarded"] == 1)
    assert cache.peek("/f") is None
    origin._files["/f"] = stored
    assert await read_all(cache, "/f") == data


async def test_empty_and_tiny_objects_are_cached_like_others(cache, origin):
    for size in (0, 1, PAGE - 1, PAGE, PAGE + 1):
        data = blob(size, size)
        await put(origin, f"/f{size}", data)
        assert await read_all(cache, f"/f{size}") == data
        sent = origin.sent
        assert await settled(cache, f"/f{size}") == data
        assert origin.sent == sent
        hot = cache.peek(f"/f{size}")
        assert bytes(hot.view(0, size)) == data
        reader = await cache.open(f"/f{size}")
        assert reader.headers["X-Cache"] == "HIT"
        with pytest.raises(RangeNotSatisfiable):
            await reader.read(0, size + 1)
        await reader.close()


async def test_warm_ranges_are_views_of_the_file_and_say_so(cache, origin):
    data = blob(MIB + 5)
    await put(origin, "/f", data)
    assert isinstance(cache, CanPeek)
    assert isinstance(cache, CanSpace)
    assert cache.peek("/f") is None
    reader = await cache.open("/f")
    assert reader.headers["X-Cache"] == "MISS"
    await reader.read(0, 300_000)
    assert reader.headers["X-Cache"] == "PARTIAL"
    assert reader.headers_for(0, 300_000)["X-Cache"] == "HIT"
    assert reader.headers_for(0, 300_000)["Cache-Status"].startswith("doma; hit; ttl=")
    await reader.close()
    hot = cache.peek("/f")
    assert hot.view(0, MIB) is None
    await read_all(cache, "/f")
    await settled(cache, "/f")
    hot = cache.peek("/f")
    before = cache.stats().bytes["hit"]
    assert hot.view(7, 300_000) == data[7:300_000]
    assert hot.view(100_000, MIB + 5) == data[100_000:]
    assert hot.headers["X-Cache"] == "HIT"
    fd = hot.fileno(0, MIB)
    assert os.pread(fd, 100, 5000) == data[5000:5100]
    assert hot.view(0, MIB + 6) is None
    assert cache.stats().bytes["hit"] - before == MIB + 5 - 7 + MIB, "asked again is not delivered again"


async def test_content_stays_warm_over_a_restart(make, origin):
    data = {f"/d/f{n}": blob(200_000 + n, n) for n in range(5)}
    first = make()
    for path, content in data.items():
        await put(origin, path, content)
        await read_all(first, path)
    used = first.stats().used - first.stats().beside
    await first.close()
    sent, opened = origin.sent, origin.opened
    second = make()
    for path, content in data.items():
        assert await read_all(second, path) == content
    assert (origin.sent, origin.opened) == (sent, opened)
    await asyncio.to_thread(second.catalogue.keeper.total)
    assert second.stats().used - second.stats().beside == used


async def test_usage_agrees_with_the_blocks_on_disk(cache, origin, tmp_path):
    for n in range(4):
        await put(origin, f"/f{n}", blob(300_000, n))
        await read_all(cache, f"/f{n}")
    files = [p for p in (tmp_path / "cache" / "objects").rglob("*") if p.is_file()]
    real = sum(p.stat().st_blocks * 512 for p in files)
    assert abs(cache.stats().used - cache.stats().beside - real) <= 0.01 * real
    assert (await cache.space()).used == cache.stats().used


async def test_the_size_limit_holds_and_the_least_recently_read_goes_first(make, origin, tmp_path):
    limit = 4 * MIB
    cache = make(size=limit, high=0.9, low=0.6)
    data = {f"/f{n:02}": blob(500_000, n) for n in range(20)}
    for path, content in data.items():
        await put(origin, path, content)
        assert await read_all(cache, path) == content
        assert await read_all(cache, "/f00") == data["/f00"], "kept in use, so it stays"
        assert taken_by(tmp_path / "cache" / "objects") <= limit
    before = origin.sent
    for path in ("/f00", "/f19"):
        assert await read_all(cache, path) == data[path]
    assert origin.sent == before
    assert await read_all(cache, "/f02") == data["/f02"]
    assert origin.sent == before + 500_000
    assert cache.stats().bytes["purged"] > 0


async def test_what_is_being_read_is_not_purged_and_the_rest_passes_through(make, origin):
    cache = make(size=2 * MIB + 300_000, high=0.9, low=0.5)  # the index and folders take their part
    first, second = blob(1_800_000, 1), blob(1_800_000, 2)
    await put(origin, "/a", first)
    await put(origin, "/b", second)
    reader = await cache.open("/a")
    await reader.read(0, 1_800_000)
    assert await read_all(cache, "/b", 100_000) == second
    sent = origin.sent
    assert bytes(await reader.read(0, 1_800_000)) == first
    assert origin.sent == sent
    assert cache.stats().used <= 2 * MIB + 300_000
    counted = cache.stats().bytes
    assert counted["bypass"] > 700_000
    assert sum(counted[kind] for kind in ("hit", "prefetched", "miss", "bypass")) == 3 * 1_800_000
    await reader.close()


async def test_an_object_larger_than_the_cache_passes_through(make, origin):
    cache = make(size=MIB)
    data = blob(2 * MIB)
    await put(origin, "/f", data)
    assert await read_all(cache, "/f") == data
    assert cache.stats().used < MIB
    assert cache.stats().bytes["bypass"] == len(data)


async def test_a_cache_is_read_only_lists_its_origin_and_knows_checksums(cache, origin):
    await put(origin, "/d/f", b"abc")
    for change in (
        cache.create("/x"),
        cache.delete("/d/f"),
        cache.rename("/d/f", "/g"),
        cache.make_dir("/x"),
    ):
        with pytest.raises(NotAllowed, match="write to the origin"):
            await change
    assert [(s.path, s.is_dir) async for s in cache.list("/")] == [("/d", True)]
    assert [s.path async for s in cache.list("/d")] == ["/d/f"]
    assert (await cache.stat("/d")).is_dir
    with pytest.raises(Conflict):
        await cache.open("/d")
    for algorithm in ("adler32", "md5"):
        assert await cache.checksum("/d/f", algorithm) == await origin.checksum("/d/f", algorithm)
    await read_all(cache, "/d/f")
    assert await cache.checksum("/d/f", "sha-256") == await origin.checksum("/d/f", "sha-256")


async def test_what_happens_to_objects_is_told_once(tmp_path, origin):
    events, clock = [], [0.0]
    config = Cache(file_lifetime=10)
    cache = CacheStore(
        tmp_path / "c", Origins(origin), config, clock=lambda: clock[0], emit=lambda e: events.append(e)
    )
    await put(origin, "/f", b"x" * 9000)
    await read_all(cache, "/f", 1000)
    await until(lambda: events)
    await put(origin, "/f", b"y" * 9000)
    clock[0] += 12
    await read_all(cache, "/f")
    await until(lambda: len(events) == 3)
    await cache.evict("/f", immediate=True)
    assert [e.kind for e in events] == ["object.cached", "object.replaced", "object.cached", "object.evicted"]
    assert {e.subject for e in events} == {"/f"}
    await cache.close()


async def test_one_process_holds_a_folder(make, tmp_path, origin):
    make()
    with pytest.raises(AlreadyRunning, match=str(tmp_path / "cache")):
        CacheStore(tmp_path / "cache", Origins(origin), Cache())


STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 70_000), st.integers(1, 40_000)),
    st.tuples(st.just("replace"), st.integers(1, 90_000), st.integers(1, 250)),
    st.tuples(st.just("open"), st.just(0), st.just(0)),
    st.tuples(st.just("together"), st.integers(0, 60_000), st.integers(1, 9_000)),
    st.tuples(st.just("later"), st.just(0), st.just(0)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=4, max_size=25))
def test_any_reads_under_replacement_give_one_version_or_fail(tmp_path_factory, steps):
    asyncio.run(_walk(tmp_path_factory.mktemp("walk"), steps))


async def _walk(root, steps):
    clock = [0.0]
    origin = Origin()
    cache = CacheStore(root, Origins(origin), Cache(file_lifetime=10), clock=lambda: clock[0])
    versions = {}

    async def replace(size, seed):
        data = bytes((seed + i // 512) % 256 for i in range(size))
        await put(origin, "/f", data)
        versions[(await origin.stat("/f")).version] = data

    async def read(reader, start, length):
        whole = versions[reader.stat.version]
        start = min(start, len(whole))
        stop = min(start + length, len(whole))
        try:
            got = bytes(await reader.read(start, stop))
        except OriginFailed:
            assert reader.stat.version != (await origin.stat("/f")).version
            return
        assert got == whole[start:stop]

    await replace(50_000, 1)
    readers = [await cache.open("/f")]
    for what, a, b in steps:
        if what == "replace":
            await replace(a, b)
        elif what == "open":
            readers.append(await cache.open("/f"))
        elif what == "later":
            clock[0] += 11
        elif what == "read":
            await read(readers[a % len(readers)], a, b)
        else:
            await asyncio.gather(*(read(r, a + 5000 * i, b) for i, r in enumerate(readers)))
    clock[0] += 22
    assert await read_all(cache, "/f") == versions[(await origin.stat("/f")).version]
    for reader in readers:
        await reader.close()
    await cache.close()
