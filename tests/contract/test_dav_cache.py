"""The WebDAV door over the caching store: everything that reads works, everything that writes is refused."""

import json

import pytest

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from tests.contract.dav_reader import hrefs


@pytest.fixture
async def cached(door, tmp_path):
    """The door with a cache of ``other`` in the place of ``site``."""
    cache = CacheStore(tmp_path / "cache", Origins(door.stores["other"], name="other"), Cache())
    object.__setattr__(door.site.endpoints["site"], "store", cache)
    yield door
    await cache.close()


async def test_a_cache_is_listed_and_read_like_its_origin(cached):
    await cached.put("/d/f.root", b"12345", "other")
    await cached.put("/d/sub/g", b"1", "other")
    found = await cached.ask("PROPFIND", "/site/d", headers={"depth": "1"})
    assert hrefs(found.body) == ["/site/d/", "/site/d/f.root", "/site/d/sub/"]
    listed = json.loads((await cached.ask("GET", "/site/d", headers={"accept": "application/json"})).body)
    assert [(e["name"], e["bytes"]) for e in listed["entries"]] == [("f.root", 5), ("sub", 0)]
    for _ in range(2):
        assert (await cached.ask("GET", "/site/d/f.root")).body == b"12345"
    assert (await cached.ask("PROPFIND", "/site/none", headers={"depth": "0"})).status == 404


async def test_a_cache_is_not_written_to(cached):
    await cached.put("/f", b"1", "other")
    for method, target, headers in [
        ("DELETE", "/site/f", {}),
        ("MKCOL", "/site/d", {}),
        ("MOVE", "/site/f", {"destination": "/site/g"}),
        ("COPY", "/other/f", {"destination": "/site/g"}),
        ("PUT", "/site/g", {}),
    ]:
        answer = await cached.ask(method, target, headers=headers)
        assert (answer.status, "read-only" in answer.text) == (405, True), (method, answer)
    assert await cached.content("/f", "other") == b"1"
    copied = await cached.ask("COPY", "/site/f", headers={"destination": "/other/copy"})
    assert copied.status == 201
    assert await cached.content("/copy", "other") == b"1"
