"""A process that does not own the cache folder serves its hits and nothing else (C15, C1, F7, F9)."""

import asyncio
import os
import random

import pytest

from doma.cache.extents import PAGE
from doma.cache.freshness import Control, control
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.cache.viewer import CacheView
from doma.core.config import Cache
from doma.core.errors import OriginFailed, ServiceUnavailable
from doma.store.memory import MemoryStore

MIB = 1 << 20
DATA = random.Random(3).randbytes(3 * MIB + 77)


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


class Scene:
    """The owner's cache and another process's view of the same folder, with one clock."""

    def __init__(self, folder):
        self.origin, self.clock, self.folder = MemoryStore(), Clock(), folder
        origins = Origins(self.origin, name="site", open=lambda url: self.origin, allow=("https://named",))
        self.cache = CacheStore(folder, origins, Cache(file_lifetime=100), clock=self.clock)
        self.view = CacheView(folder, "site", clock=self.clock)

    async def put(self, path, data):
        upload = await self.origin.create(path, size=len(data))
        await upload.write(data)
        await upload.commit()

    async def read(self, path, start=0, stop=None):
        """Through the owner; then older than the file system's clock tick."""
        reader = await self.cache.open(path)
        stop = reader.stat.size if stop is None else stop
        for a in range(start, stop, MIB):
            await reader.read(a, min(a + MIB, stop))
        await reader.close()
        await asyncio.sleep(0.03)

    def see(self, path, start, stop):
        hot = self.view.peek(path)
        view = hot.view(start, stop) if hot is not None else None
        return None if view is None else bytes(view)

    def files(self):
        return [p for p in (self.folder / "objects").rglob("*.*") if p.is_file()]


@pytest.fixture
async def scene(tmp_path):
    scene = Scene(tmp_path / "cache")
    yield scene
    await scene.cache.close()


async def test_what_the_owner_fetched_is_a_hit_for_the_other_process_and_told_to_the_owner(scene):
    await scene.put("/f", DATA)
    assert scene.see("/f", 0, 100) is None
    await scene.read("/f")
    assert scene.see("/f", 1000, 200_000) == DATA[1000:200_000]
    assert scene.see("/f", 2 * MIB + 77, len(DATA)) == DATA[2 * MIB + 77 :]
    hot = scene.view.peek("/f")
    assert hot.headers["X-Cache"] == "HIT"
    assert hot.lines == b"".join(f"{n}: {v}\r\n".encode() for n, v in hot.headers.items())
    assert hot.stat == scene.cache.peek("/f").stat
    descriptor = hot.fileno(MIB, 2 * MIB)
    assert os.pread(descriptor, MIB, MIB) == DATA[MIB : 2 * MIB]
    said = scene.view.report()
    assert said["hit"] == 199_000 + MIB + MIB
    scene.view.reported(said)
    assert scene.view.report() == {"hit": 0, "touched": {}}
    before = scene.cache.stats().bytes["hit"]
    scene.cache.credit(said["hit"], said["touched"])
    assert scene.cache.stats().bytes["hit"] == before + said["hit"]


async def test_pages_that_come_later_are_seen_and_those_that_lack_are_left_to_the_owner(scene):
    await scene.put("/f", DATA)
    await scene.read("/f", 0, 100_000)
    assert scene.see("/f", 0, 50_000) == DATA[:50_000]
    assert scene.see("/f", 90_000, 200_000) is None
    await scene.read("/f", 100_000, 300_000)
    assert scene.see("/f", 90_000, 200_000) == DATA[90_000:200_000]
    # the first piece of an answer that may be longer than what is here
    assert scene.see("/f", 0, 256 << 10) is None
    assert scene.view.peek("/f").fileno(0, MIB) is None


async def test_f7_f9_a_replaced_or_expired_object_is_not_served_any_longer_than_by_the_owner(scene):
    await scene.put("/f", DATA)
    await scene.read("/f")
    old = scene.view.peek("/f")
    assert old.view(0, 100) == DATA[:100]
    await scene.put("/f", DATA[::-1])
    scene.clock.now += 200
    assert scene.see("/f", 0, 100) is None
    await scene.read("/f")
    assert scene.see("/f", 0, 100) == DATA[::-1][:100]
    assert old.view(0, 100) == DATA[:100]  # whoever had it keeps it
    scene.clock.now += 200
    assert scene.see("/f", 0, 100) is None
    await scene.read("/f")  # renewed
    assert scene.see("/f", 0, 100) == DATA[::-1][:100]


async def test_an_evicted_object_is_gone_for_everybody(scene):
    await scene.put("/f", DATA)
    await scene.read("/f")
    assert scene.see("/f", 0, 100) is not None
    await scene.cache.evict("/f", immediate=True)
    assert scene.see("/f", 0, 100) is None
    assert not scene.files()  # and nobody made its file again


async def test_c1_a_page_that_rotted_is_never_served_and_the_owner_mends_it(scene):
    await scene.put("/f", DATA)
    await scene.read("/f")
    assert scene.see("/f", 10 * PAGE, 11 * PAGE) is not None
    (pages,) = scene.files()
    with pages.open("r+b") as file:
        file.seek(10 * PAGE + 5)
        byte = file.read(1)[0]
        file.seek(10 * PAGE + 5)
        file.write(bytes([byte ^ 4]))
    await asyncio.sleep(0.03)
    assert scene.see("/f", 10 * PAGE, 11 * PAGE) is None
    assert scene.see("/f", 11 * PAGE, 12 * PAGE) == DATA[11 * PAGE : 12 * PAGE]
    reader = await scene.view.open("/f")
    with pytest.raises(OriginFailed):
        await reader.read(9 * PAGE, 12 * PAGE)
    assert bytes(await reader.read(0, 9 * PAGE)) == DATA[: 9 * PAGE]
    await reader.close()
    await scene.read("/f")
    assert scene.cache.stats().bytes["repair"] == PAGE
    assert scene.see("/f", 10 * PAGE, 11 * PAGE) == DATA[10 * PAGE : 11 * PAGE]


@pytest.mark.parametrize("harm", [b"", b"garbage", None])
async def test_a_record_that_cannot_be_trusted_shows_nothing(scene, harm):
    await scene.put("/f", DATA)
    await scene.read("/f")
    record = next(p for p in (scene.folder / "objects").rglob("*") if p.is_file() and "." not in p.name)
    if harm is None:
        record.unlink()
    else:
        record.write_bytes(harm)
    assert scene.see("/f", 0, 100) is None
    with pytest.raises(ServiceUnavailable):
        await scene.view.open("/f")


async def test_what_only_the_owner_may_decide_is_left_to_him(scene):
    await scene.put("/f", DATA)
    await scene.read("/f")
    await scene.read("/https:/named/f")
    assert scene.view.peek("/https:/named/f") is None
    assert scene.view.peek("/https:/evil/f") is None
    for how in (Control.REFRESH, Control.ONLY_IF_CACHED):
        held = control.set(how)
        assert scene.view.peek("/f") is None
        control.reset(held)
    with pytest.raises(ServiceUnavailable):
        await scene.view.stat("/f")
    with pytest.raises(ServiceUnavailable):
        await scene.view.create("/g")
    with pytest.raises(ServiceUnavailable):
        async for _ in scene.view.list("/"):
            pass
