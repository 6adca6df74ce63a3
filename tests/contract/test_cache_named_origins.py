"""Origins that clients name: so many at once, and one that nobody uses makes place for the next."""

import asyncio

import pytest

from doma.auth.model import bearer
from doma.cache import origins
from doma.cache.origins import IDLE, Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import TooManyRequests
from tests.contract.counted_origin import Origin, blob, put, read_all

DATA = blob(100_000)


class Named(Origin):
    closed = False

    async def close(self):
        self.closed = True
        await super().close()


@pytest.fixture
async def scene(tmp_path, monkeypatch):
    """A cache in which clients may name three origins at once, what was opened, and the clock's hand."""
    monkeypatch.setattr(origins, "MOST", 3)
    opened, now = {}, [1000.0]

    def open_(base):
        opened.setdefault(base, []).append(Named())
        return opened[base][-1]

    made = Origins(Origin(), name="site", open=open_, allow=("https://*.example",), clock=lambda: now[0])
    cache = CacheStore(tmp_path / "cache", made, Cache())
    bearer.set("somebody")

    async def read(name):
        path = f"/https:/{name}.example/f"
        cache.place(path)
        await put(opened[f"https://{name}.example"][-1], "/f", DATA)
        return await read_all(cache, path)

    yield cache, opened, now, read
    await cache.close()


async def test_an_origin_that_nobody_names_for_long_makes_place_and_may_come_back(scene):
    cache, opened, now, read = scene
    for name in "abc":
        assert await read(name) == DATA
        now[0] += 1
    with pytest.raises(TooManyRequests):
        await read("d")
    now[0] += IDLE
    assert await read("b") == DATA  # used again: not the next to go
    assert await read("d") == DATA
    await asyncio.sleep(0)
    assert {base[8]: stores[0].closed for base, stores in opened.items()} == {
        "a": True, "b": False, "c": False, "d": False
    }  # fmt: skip
    now[0] += IDLE + 1
    assert await read("a") == DATA
    assert len(opened["https://a.example"]) == 2
    assert cache.catalogue.get(cache.place("/https:/a.example/f").key) is not None


async def test_an_origin_in_use_stays_however_long_ago_it_was_named(scene):
    cache, opened, now, read = scene
    assert await read("a") == DATA
    reader = await cache.open("/https:/a.example/f")
    for name in "bc":
        assert await read(name) == DATA
    opened["https://c.example"][0].gate.clear()
    await put(opened["https://c.example"][0], "/g", DATA)
    waiting = asyncio.create_task(read_all(cache, "/https:/c.example/g"))
    while not opened["https://c.example"][0].running:
        await asyncio.sleep(0)
    now[0] += IDLE + 1
    assert await read("d") == DATA
    assert (opened["https://a.example"][0].closed, opened["https://c.example"][0].closed) == (False, False)
    assert opened["https://b.example"][0].closed
    now[0] += IDLE - 100  # the one that made place is too young to go again
    with pytest.raises(TooManyRequests):
        await read("e")
    opened["https://c.example"][0].gate.set()
    assert await waiting == DATA
    assert bytes(await reader.read(0, 10)) == DATA[:10]
    await reader.close()
    now[0] += 100
    assert await read("e") == DATA


async def test_what_passes_through_holds_its_origin(scene):
    cache, _, now, read = scene
    small = Cache(size=50_000)
    cache._validator._config = small  # the files are larger than this cache: nothing is kept
    for name in "abc":
        assert await read(name) == DATA
    readers = [await cache.open(f"/https:/{name}.example/f") for name in "abc"]
    now[0] += IDLE + 1
    with pytest.raises(TooManyRequests):
        await read("d")
    assert bytes(await readers[0].read(0, 10)) == DATA[:10]
    for reader in readers:
        await reader.close()
    assert await read("d") == DATA
