"""Damage C1-C3, C4, C6, C13 by every way to read, with the origin there and away."""

import asyncio
import itertools
import os

import pytest

from doma.cache.extents import PAGE
from doma.cache.record import key_of
from doma.net.xroot_frames import P_HANDLE, P_READ, SEGMENT, Code, Status
from doma.net.xroot_pages import separated
from tests.e2e.cache.conftest import caching as caching
from tests.e2e.cache.conftest import clients as clients
from tests.e2e.cache.conftest import content
from tests.e2e.cache.conftest import origin as origin

S = 24 * PAGE + 77
HURT = 5
"""The page that is damaged."""
_sizes = itertools.count(S)


def flip(path):
    with path.open("r+b") as file:
        file.seek(HURT * PAGE + 9)
        byte = file.read(1)[0]
        file.seek(HURT * PAGE + 9)
        file.write(bytes([byte ^ 1]))


def blank(path):
    with path.open("r+b") as file:
        file.seek(HURT * PAGE)
        file.write(bytes(PAGE))


def cut(path):
    os.truncate(path, HURT * PAGE)


class File:
    """A file that the cache has whole, and ways to read it; each gives the bytes or the error's number."""

    def __init__(self, caching, origin, client, how):
        self.caching, self.origin, self._client, self.how = caching, origin, client, how
        self.size = next(_sizes)
        self.path = f"/{self.size}/{how}"

    async def ready(self):
        self._wire = await self.caching.dial()
        for _ in range(3):  # from the origin, from the disk, from memory
            assert await self.read() == content(0, self.size)
            await asyncio.sleep(0.02)
        key = key_of("origin", self.path)
        (self.pages,) = (self.caching.folder / "objects" / key[:2]).glob(f"{key}.*")

    async def read(self, start=0, stop=None):
        stop = self.size if stop is None else stop
        if self.how == "http":
            status, _, body = self._client.ask(f"/cache{self.path}", f"bytes={start}-{stop - 1}")
            return body if status == 206 else status
        handle = await self._wire.open(f"/cache{self.path}")
        try:
            return await self._root(handle, start, stop)
        finally:
            await self._wire.ask(Code.CLOSE, P_HANDLE.pack(handle))

    async def _root(self, handle, start, stop):
        code, body, data = Code.READ, P_READ.pack(handle, start, stop - start), bytes(8)
        if self.how == "pgread":
            code, data = Code.PGREAD, b"\0\0"
        elif self.how == "readv":
            code, body, data = Code.READV, bytes(16), SEGMENT.pack(handle, stop - start, start)
        status, said = await self._wire.ask(code, body, data)
        if status == Status.ERROR:
            return int.from_bytes(said[:4])
        if status == Status.STATUS:
            data, damaged = separated(start, said[24:])
            assert not damaged
            return bytes(data)
        return said[16:] if self.how == "readv" else said

    async def close(self):
        await self._wire.close()


@pytest.fixture(params=["http", "read", "readv", "pgread"])
async def file(request, caching, origin, clients):
    made = File(caching, origin, clients["http"], request.param)
    await made.ready()
    yield made
    origin.up = True
    caching.clock.ahead += 60  # what failed is tried again
    await made.close()


HARMS = {"flipped": flip, "zeros": blank, "cut": cut}


@pytest.mark.parametrize("harm", HARMS)
async def test_c1_c2_c6_c13_damage_is_mended_for_who_meets_it(file, harm):
    before = file.origin.sent[file.path]
    HARMS[harm](file.pages)
    assert await file.read(0, HURT * PAGE) == content(0, HURT * PAGE)
    assert file.origin.sent[file.path] == before
    for _ in range(2):
        assert await file.read() == content(0, file.size)
    lost = PAGE if harm != "cut" else file.size - HURT * PAGE
    assert file.origin.sent[file.path] == before + lost


@pytest.mark.parametrize("harm", HARMS)
async def test_c3_with_the_origin_away_damage_is_an_error_and_never_wrong_bytes(file, harm):
    HARMS[harm](file.pages)
    file.origin.up = False
    http = file.how == "http"
    # who meets the damage hears of it; after that the page is one that is not here
    assert await file.read(HURT * PAGE, file.size) in ({502, 503} if http else {3019})
    assert await file.read(HURT * PAGE + 9, HURT * PAGE + 20) in ({502, 503} if http else {3014})
    assert await file.read(0, HURT * PAGE) == content(0, HURT * PAGE)
    file.origin.up = True
    file.caching.clock.ahead += 60
    assert await file.read() == content(0, file.size)
