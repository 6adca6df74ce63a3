"""F6: origins that say nothing of lifetimes and have no ETag (a folder, a root:// server), at both doors."""

import os

import pytest

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen
from doma.doors.endpoint import Endpoint, Site
from doma.doors.root import RootDoor
from doma.net.listener import Listener
from doma.store.file import FileStore
from doma.store.xrootd import XrootdStore
from tests.e2e.cache.conftest import ISSUER, Caching, Client, Origin, content
from tests.e2e.root.conftest import no_http

HOUR = 3600
SIZE = 9 * 4096 + 5


class Beside(Caching):
    """A cache before a folder, directly or behind a root:// door of its own."""

    def __init__(self, home, kind):
        super().__init__(home, Origin(), "")
        self.kind, self.files, self._inner = kind, home / "files", None
        self.files.mkdir()

    async def behind(self):
        store = FileStore(self.files, read_only=True)
        if self.kind == "file":
            return store
        verifier = Verifier([Issuer(issuer=ISSUER)], ["https://se.example"], local={ISSUER: {"keys": []}})
        gate = Gate({ISSUER: ["/"]}, public=True)
        site = Site(verifier, {"site": Endpoint("site", store, gate, False)})
        listen = Listen(address="127.0.0.1:0", drain=1)
        door = RootDoor(site, tls=None, plain="loopback")
        self._inner = Listener(no_http, fast=None, listen=listen, tls=None, root=door.take)
        self._store = store
        return XrootdStore(f"root://127.0.0.1:{(await self._inner.start())[1]}//site")

    async def over(self):
        if self._inner is not None:
            await self._inner.stop()
            await self._store.close()


@pytest.fixture(scope="module", params=["file", "root"])
def beside(request, tmp_path_factory):
    with Beside(tmp_path_factory.mktemp(request.param), request.param) as one:
        yield one


@pytest.mark.parametrize("door", ["https", "root"])
async def test_f6_size_and_time_tell_a_new_version(beside, door):
    path = beside.files / f"{door}.bin"
    client, wire = Client(beside, "https"), await beside.dial()

    async def get(by):
        if by == "root":
            handle = await wire.open(f"/cache/{path.name}")
            return await wire.pages(handle, 0, SIZE + 10)
        status, _, body = client.ask(f"/cache/{path.name}")
        assert status == 200
        return body

    def put(version, size, modified):
        new = path.with_suffix(".new")
        new.write_bytes(content(0, size, version))
        os.utime(new, (modified, modified))
        new.rename(path)

    put(0, SIZE, 1_700_000_000)
    assert await get(door) == content(0, SIZE)
    opened = beside.store.stats().bytes["origin"]
    beside.clock.ahead += 2 * HOUR
    for by in (door, "https", "root"):
        assert await get(by) == content(0, SIZE)
    assert beside.store.stats().bytes["origin"] == opened, "unchanged content is not fetched again"

    put(1, SIZE, 1_700_000_100)  # the same size, another time
    assert await get(door) == content(0, SIZE), "fresh for its lifetime"
    beside.clock.ahead += 2 * HOUR
    for by in (door, "https", "root"):
        assert await get(by) == content(0, SIZE, 1)

    put(2, SIZE + 10, 1_700_000_100)  # the same time, another size
    beside.clock.ahead += 2 * HOUR
    for by in (door, "https", "root"):
        assert await get(by) == content(0, SIZE + 10, 2)
    client.close()
    await wire.close()
