"""A cache behind the root:// door: stored checksums, hits at once, what came from where."""

import asyncio

import pytest

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Open, Status
from doma.net.xroot_pages import separated
from doma.store.file import FileStore
from tests.e2e.root.conftest import CONTENT, Told


@pytest.fixture
async def origin(tmp_path):
    (tmp_path / "origin").mkdir()
    (tmp_path / "origin" / "f").write_bytes(CONTENT)
    return tmp_path / "origin"


@pytest.fixture
async def cache(tmp_path, origin):
    origins = Origins(FileStore(origin), name="origin", open=lambda url: pytest.fail(url), allow=())
    return CacheStore(tmp_path / "cache", origins, Cache())


async def test_cold_and_warm_reads_give_the_same_bytes(serve, cache):
    told = Told()
    async with serve({"pub": cache}, observer=told) as server:
        wire = await server.dial()
        handle = await wire.open("/pub/f")
        for _ in range(3):
            assert await wire.pages(handle, 0, len(CONTENT)) == CONTENT
            assert await wire.read(handle, 4000, 100_000) == CONTENT[4000:104_000]
            assert await wire.pages(handle, 204_000, 100_000) == CONTENT[204_000:304_000]
            vector = b"".join(frames.SEGMENT.pack(handle, 1000, at) for at in range(0, 900_000, 90_000))
            status, body = await wire.ask(Code.READV, bytes(16), vector)
            assert status == Status.OK
            assert body[16:1016] == CONTENT[:1000]
            await asyncio.sleep(0.05)
        await wire.ask(Code.CLOSE, frames.P_HANDLE.pack(handle))
        (file, _) = told.over[0]
        asked = 3 * (len(CONTENT) + 200_000 + 10_000)
        assert file.reads.total + file.readvs.total == asked
        assert file.cached is not None
        assert file.cached.miss == len(CONTENT)
        assert file.cached.hit == asked - len(CONTENT)
        await wire.close()


async def test_pages_go_out_with_the_checksums_that_were_stored(serve, cache):
    """A page that rotted in memory is seen by the client; its retry brings it from the origin again."""
    async with serve({"pub": cache}) as server:
        wire = await server.dial()
        handle = await wire.open("/pub/f")
        await wire.pages(handle, 0, 100_000)
        await asyncio.sleep(0.05)
        await wire.pages(handle, 0, 100_000)
        kept = server.door.sessions[wire.id].files[handle].reader._pages
        kept._crcs[4] ^= 1  # of page 1
        for size in (100_000, 8192):
            mine = wire.send(Code.PGREAD, frames.P_READ.pack(handle, 0, size), b"\0\0")
            stream, status, body = await wire.one()
            assert (stream, status) == (mine, Status.STATUS)
            data, bad = separated(0, body[24:])
            assert (bytes(data), bad) == (CONTENT[:size], [(4096, 4096)])
        assert await wire.pages(handle, 0, 100_000, b"\0\1") == CONTENT[:100_000]
        assert await wire.pages(handle, 0, 100_000) == CONTENT[:100_000]
        await wire.close()


async def test_a_refreshing_open_sees_what_changed(serve, cache, origin):
    async with serve({"pub": cache}) as server:
        wire = await server.dial()
        handle = await wire.open("/pub/f")
        assert await wire.read(handle, 0, 10) == CONTENT[:10]
        (origin / "f").write_bytes(b"!" + CONTENT[1:])
        stale = await wire.open("/pub/f")
        assert await wire.read(stale, 0, 10) == CONTENT[:10]
        fresh = await wire.open("/pub/f", options=Open.READ | Open.REFRESH)
        assert await wire.read(fresh, 0, 10) == b"!" + CONTENT[1:10]
        assert await wire.read(handle, 0, 10) == CONTENT[:10]
        await wire.close()
