"""What a cache keeps and what it gives up: order of the purge, quotas, age, pins, scrub, usage."""

import asyncio
import logging
import os
import random
import threading

import numpy as np
import pytest

from doma.auth.model import bearer
from doma.cache.extents import PAGE
from doma.cache.index import Row
from doma.cache.layout import compose
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import BadRequest, DomaError, NotFound, StorageFull, StorageUnavailable
from doma.store.memory import MemoryStore

SIZE = 2_000_000
USED = 489 * PAGE + 2 * PAGE
"""Disk bytes of an object of this size: pages, checksums and marks, record; the folders and the index of a
dozen objects take less than half of it."""


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def make(tmp_path, clock):
    origin, made = MemoryStore(), []

    async def make(*paths, size=SIZE, cache_size=10 * USED, **config):
        """A cache in which these files were read, a second apart."""
        settings = Cache(**{"size": cache_size, "high": 1.0, "low": 0.55} | config)
        cache = CacheStore(
            tmp_path / "cache",
            Origins(origin),
            settings,
            clock=clock,
            rng=random.Random(1),
            emit=events.append,
        )
        made.append(cache)
        cache.catalogue.vo = lambda token: token
        for path in paths:
            upload = await origin.create(path, size=size)
            await upload.write(path.encode()[-1:] * size)
            await upload.commit()
            await read(cache, path)
            clock.now += 1
        return cache

    events = make.events = []
    make.origin = origin
    yield make
    for cache in made:
        await cache.close()


async def read(cache, path):
    reader = await cache.open(path)
    data = bytes(await reader.read(0, reader.stat.size))
    await reader.close()
    while cache.catalogue.in_use(cache.place(path).key):  # the reader has all; a slow disk may not yet
        await asyncio.sleep(0.001)
    return data


async def here(cache, *paths):
    return [holding.path for holding in await cache.holdings(paths) if holding.size is not None]


def du(folder):
    """What ``du`` counts of the objects."""
    return sum(os.lstat(p).st_blocks * 512 for p in (folder / "objects").rglob("*") if p.is_file())


async def plan(cache):
    return [(victim.path, victim.reason) for victim in await cache.purge(dry_run=True)]


async def test_the_least_recently_read_goes_first_and_only_as_much_as_is_needed(make, clock):
    cache = await make(*(f"/f{n}" for n in range(9)))
    await read(cache, "/f0")
    least = "least recently read"
    assert await plan(cache) == [("/f1", least), ("/f2", least), ("/f3", least), ("/f4", least)]
    gone = await cache.purge()
    assert [v.path for v in gone] == ["/f1", "/f2", "/f3", "/f4"]
    assert all(v.used == USED for v in gone)
    assert cache.stats().used - cache.stats().beside == 5 * USED
    assert cache.stats().evicted == {"room": 4 * USED}
    assert await plan(cache) == []


async def test_given_up_then_expired_then_over_quota_then_least_recent(make, clock):
    cache = await make(
        "/other/old", "/user/a", "/user/b", low=0.01, file_lifetime=1000, quotas={"/user": USED}
    )
    clock.now += 2000
    await read(cache, "/user/a")
    await read(cache, "/user/b")
    late = await make.origin.create("/other/new", size=10)
    await late.write(b"x" * 10)
    await late.commit()
    await read(cache, "/other/new")
    await cache.evict("/other/new")
    assert await plan(cache) == [
        ("/other/new", "evicted, first in line"),
        ("/other/old", "expired"),
        ("/user/a", "over the quota of /user"),
        ("/user/b", "least recently read"),
    ]


async def test_a_quota_costs_just_what_is_above_it_and_others_nothing(make):
    paths = ["/a/1", "/user/1", "/user/2", "/user/3", "/a/2"]
    cache = await make(*paths, low=0.35, quotas={"/user": 2 * USED, "/userx": 0})
    assert (await plan(cache))[0] == ("/user/1", "over the quota of /user")
    assert [path for path, _ in await plan(cache)] == ["/user/1", "/a/1"]


async def test_a_vo_above_its_quota_pays_first(make):
    token = bearer.set("cms")
    cache = await make("/c1", "/c2", low=0.25, vo_quotas={"cms": USED, "atlas": 10 * USED})
    bearer.set("atlas")
    for path in ("/a1", "/a2"):
        upload = await make.origin.create(path, size=SIZE)
        await upload.write(b"a" * SIZE)
        await upload.commit()
        await read(cache, path)
    await read(cache, "/c1")  # another VO's read changes nothing about who brought it
    bearer.reset(token)
    assert (await plan(cache))[0] == ("/c2", "over the quota of the VO cms")
    assert [path for path, _ in await plan(cache)] == ["/c2", "/a1"]


async def test_what_is_too_old_goes_though_there_is_room(make, clock):
    cache = await make("/old", "/new", age=86400)
    clock.now += 86_399
    await read(cache, "/new")
    clock.now += 10
    assert await plan(cache) == [("/old", "not read for 1 days")]
    tending = asyncio.create_task(cache.tend())
    while await here(cache, "/old"):
        await asyncio.sleep(0.001)
    tending.cancel()
    await asyncio.gather(tending, return_exceptions=True)
    assert await here(cache, "/old", "/new") == ["/new"]
    assert cache.stats().evicted == {"age": USED}


async def test_nothing_that_is_open_or_pinned_goes_and_that_is_said_once_a_minute(make, clock, caplog):
    cache = await make("/open", "/pinned", size=4 * SIZE, low=0.1, pin_share=1.0, pin_quota=1.0)
    reader = await cache.open("/open")
    await cache.pin("/pinned", "me")
    assert await cache.purge() == []
    upload = await make.origin.create("/third", size=4 * SIZE)
    await upload.write(b"3" * 4 * SIZE)
    await upload.commit()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await read(cache, "/third") == b"3" * 4 * SIZE
    assert len([r for r in caplog.records if "in use or pinned" in r.message]) == 1
    clock.now += 61
    await read(cache, "/third")
    assert len([r for r in caplog.records if "in use or pinned" in r.message]) == 2
    assert cache.stats().bytes["bypass"] > 0
    await reader.close()


async def test_pins_survive_a_restart_and_vanish_when_they_end(make, clock):
    cache = await make("/p", "/q", low=0.01, pin_share=1.0)
    await cache.pin("/p", "me", 3600)
    await cache.close()
    cache = await make(low=0.01, pin_share=1.0)
    assert [v.path for v in await cache.purge()] == ["/q"]
    assert [(pin.path, pin.owner) for pin in await cache.pins.pins("me")] == [("/p", "me")]
    clock.now += 3601
    assert await cache.pins.pins(None) == []
    with pytest.raises(NotFound):
        await cache.pins.unpin("/r", None)
    assert [v.path for v in await cache.purge()] == ["/p"]


async def test_a_pin_on_what_is_not_here_holds_when_it_arrives(make):
    cache = await make("/p", low=0.01, pin_share=1.0)
    await cache.evict("/p", immediate=True)
    pin = await cache.pin("/p", "me")
    assert pin.size == SIZE
    assert cache.held("/p").cached == 0
    await read(cache, "/p")
    assert await cache.purge() == []
    assert cache.held("/p").complete


async def test_pins_keep_to_the_quota_of_each_and_of_all(make, clock):
    cache = await make(
        "/1", "/2", "/3", "/4", pin_quota=2 * SIZE / (10 * USED), pin_share=3 * SIZE / (10 * USED)
    )
    await cache.pin("/1", "me")
    await cache.pin("/2", "me", 100)
    with pytest.raises(StorageFull, match="me would pin 6000000 bytes"):
        await cache.pin("/3", "me")
    await cache.pin("/2", "me", 200)  # again: it is counted once
    await cache.pin("/2", "you")  # and so is what two have pinned, for all together
    await cache.pin("/3", "you")
    with pytest.raises(StorageFull, match="everybody together"):
        await cache.pin("/4", "they")
    clock.now += 201
    await cache.pins.unpin("/3", "you")
    await cache.pin("/4", "me")
    with pytest.raises(BadRequest):
        await cache.pin("/1", "me", -1)


async def test_usage_agrees_with_du_through_any_history(make, tmp_path):
    cache = await make(*(f"/d/f{n}" for n in range(8)))
    luck = random.Random(5)
    for step in range(30):
        n = luck.randrange(8)
        match luck.randrange(4):
            case 0:
                await read(cache, f"/d/f{n}")
            case 1 if await here(cache, f"/d/f{n}"):
                await cache.evict(f"/d/f{n}", immediate=True)
            case 2:
                upload = await make.origin.create(f"/d/f{n}", size=SIZE + step)
                await upload.write(b"n" * (SIZE + step))
                await upload.commit()
            case _:
                await cache.purge()
    assert objects(cache) == du(tmp_path / "cache")
    used = objects(cache)
    await cache.close()
    again = await make()
    await asyncio.to_thread(again.catalogue.keeper.total)
    assert objects(again) == used


def whole(folder):
    """What ``du`` counts of a folder with all that is in it."""
    return sum(os.lstat(p).st_blocks * 512 for p in [folder, *folder.rglob("*")])


def objects(cache):
    """Usage of objects alone."""
    return cache.stats().used - cache.stats().beside


def version(cache, path):
    record = cache.catalogue.get(cache.place(path).key).record
    return f"{record.key}-{record.generation}"


async def agrees(cache, folder):
    """Whether usage is what ``du`` says once everything is written down."""
    await asyncio.to_thread(cache.catalogue.keeper.total)
    return abs(cache.stats().used - whole(folder)) <= 0.01 * whole(folder)


async def test_usage_counts_the_whole_folder_with_index_and_layouts(make, tmp_path):
    folder = tmp_path / "cache"
    cache = await make(*(f"/d/f{n}" for n in range(9)))
    assert await agrees(cache, folder)
    before = cache.stats()
    names = [("", f"{n * n}") for n in range(9000)]
    await cache.layouts.keep(version(cache, "/d/f3"), compose(SIZE, names, np.empty((0, 4), np.int64)))
    layout = whole(folder / "layouts")
    assert layout > PAGE
    assert await agrees(cache, folder)
    await cache.close()
    again = await make()
    assert await agrees(again, folder)
    (folder / "index.db").write_bytes(b"not a table any more" * 1000)
    await again.close()
    lost = await make()
    await asyncio.to_thread(lost.catalogue.keeper.looked.wait)
    assert await agrees(lost, folder)
    await lost.evict("/d/", immediate=True)
    assert not [path for path in (folder / "layouts").rglob("*") if path.is_file()]
    assert await agrees(lost, folder)
    assert lost.stats().used == lost.stats().beside < before.used


async def test_a_layout_that_comes_too_late_is_not_kept(make, tmp_path):
    cache = await make("/f")
    name = version(cache, "/f")
    await cache.evict("/f", immediate=True)
    await cache.layouts.keep(name, compose(SIZE, [("", "a")], np.empty((0, 4), np.int64)))
    assert not [path for path in (tmp_path / "cache/layouts").rglob("*") if path.is_file()]


async def test_the_marks_hold_for_the_whole_folder(make, tmp_path):
    size = 2 << 20
    files = [f"/f{n}" for n in range(200)]
    cache = await make(*files, size=100, high=0.95, low=0.9, cache_size=size)
    await asyncio.to_thread(cache.catalogue.keeper.total)
    await read(cache, "/f0")
    await cache.purge()
    await asyncio.to_thread(cache.catalogue.keeper.total)
    assert whole(tmp_path / "cache") <= 0.95 * size


async def test_the_index_becomes_small_again(make, tmp_path):
    cache = await make("/kept")
    index, file = cache.catalogue.keeper.index, tmp_path / "cache/index.db"
    row = Row("", "/p" * 200, "", 1, 1, 1, 1.0, 1.0, "v")
    index.put([row._replace(key=f"{n:064d}") for n in range(5000)])
    index.put([], [f"{n:064d}" for n in range(5000)])
    assert file.stat().st_size > 4_000_000
    cache.catalogue.keeper.note(cache.catalogue.get(cache.place("/kept").key))
    await asyncio.to_thread(cache.catalogue.keeper.total)
    assert cache.stats().beside < 1_500_000
    assert file.stat().st_size < 1_500_000


async def test_the_scrub_finds_what_nobody_reads(make, tmp_path):
    cache = await make("/a", "/b", "/c", low=0.01, scrub=1 << 40)
    pages = {p: p.stat().st_size for p in (tmp_path / "cache/objects").rglob("*") if p.suffix}
    for path in list(pages)[:2]:
        with path.open("r+b") as file:
            file.seek(5 * PAGE + 1)
            file.write(b"\0rot\0")
    found = await cache.scrubber.once()
    assert (found.objects, found.damaged, found.repaired, found.lost) == (3, 2, 2, 0)
    assert len(found.names) == 2
    assert found.ended
    assert [e.kind for e in make.events if e.kind == "cache.scrubbed"] == ["cache.scrubbed"]
    assert cache.stats().bytes["repair"] == 2 * PAGE
    sent = cache.stats().bytes["origin"]
    for path in ("/a", "/b", "/c"):
        assert await read(cache, path) == path.encode()[-1:] * SIZE
    assert cache.stats().bytes["origin"] == sent


async def test_what_the_scrub_cannot_mend_is_missing_and_never_served(make, tmp_path):
    await (await make("/a")).close()
    cache = await make(scrub=1 << 40)
    (pages,) = (p for p in (tmp_path / "cache/objects").rglob("*") if p.suffix)
    with pages.open("r+b") as file:
        file.write(b"\0rot\0")
    await make.origin.delete("/a")
    found = await cache.scrubber.once()
    assert (found.damaged, found.repaired, found.lost, found.names) == (1, 0, 1, ["/a"])
    reader = await cache.open("/a")
    assert bytes(await reader.read(PAGE, SIZE)) == b"a" * (SIZE - PAGE)
    with pytest.raises(DomaError):
        await reader.read(0, 10)
    await reader.close()


async def test_a_directory_is_given_up_but_for_what_is_pinned_or_read(make):
    cache = await make("/d/1", "/d/2", "/d/3", "/dx", pin_share=1.0)
    await cache.pin("/d/1", "me")
    reader = await cache.open("/d/2")
    await reader.read(0, 10)
    done = await cache.evict("/d/", immediate=True)
    assert (done.objects, done.busy, done.pinned, done.bytes) == (1, 1, 1, USED)
    done = await cache.evict("/d/", force=True)
    assert (done.objects, done.busy, done.pinned) == (2, 0, 0)
    with pytest.raises(DomaError):
        await reader.read(0, 10)
    await reader.close()
    assert await here(cache, "/d/1", "/d/2", "/d/3", "/dx") == ["/dx"]


async def test_a_prestage_goes_on_without_anybody_and_stops_when_it_is_cancelled(make):
    cache = await make("/f", low=0.01)
    await cache.evict("/f", immediate=True)
    job = await cache.prestage("/f")
    assert job.now.status == "queued"
    assert (await job.done()).size == SIZE
    assert cache.cached("/f").complete
    again = await cache.prestage("/f")
    assert [p.status async for p in again][-1] == "success"
    gone = await cache.prestage("/f")
    gone.cancel()
    with pytest.raises(DomaError, match="was given up"):
        await gone.done()


async def test_nobody_opens_a_version_twice_while_its_record_is_being_written(make, monkeypatch):
    cache = await make("/f")
    await cache.evict("/f", immediate=True)
    written, go_on = threading.Event(), threading.Event()
    write = cache.catalogue.shelf.write

    def slow(record, accessed):
        write(record, accessed)
        written.set()
        go_on.wait()

    monkeypatch.setattr(cache.catalogue.shelf, "write", slow)
    first = asyncio.create_task(read(cache, "/f"))
    await asyncio.to_thread(written.wait)
    assert cache.catalogue.find(cache.place("/f")) is None
    second = asyncio.create_task(read(cache, "/f"))
    await asyncio.sleep(0)
    go_on.set()
    sent = cache.stats().bytes["origin"]
    assert await first == await second
    assert cache.stats().bytes["origin"] == sent + SIZE


async def test_a_prestage_into_a_full_cache_fails_clearly(make):
    cache = await make("/p", size=6 * SIZE, low=0.1, pin_share=1.0, pin_quota=1.0)
    await cache.pin("/p", "me")
    upload = await make.origin.create("/f", size=6 * SIZE)
    await upload.write(b"f" * 6 * SIZE)
    await upload.commit()
    with pytest.raises(StorageFull, match="no room"):
        await (await cache.prestage("/f")).done()


async def test_a_disk_that_takes_no_pin_is_a_clear_error_and_costs_no_pin(make):
    cache = await make("/1", "/2")
    await cache.pin("/1", "me")
    await asyncio.to_thread(cache.catalogue.keeper.total)
    index = cache.catalogue.keeper.index
    index._db.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        await cache.pin("/2", "me")
    await read(cache, "/2")
    assert [v.path for v in await cache.purge(dry_run=True)] == []
    index._db.execute("PRAGMA query_only = 0")
    assert [pin.path for pin in await cache.pins.pins("me")] == ["/1"]
