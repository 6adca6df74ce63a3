"""F6: origins without ETag (a folder, a root:// server), at both doors. O11: those that name others."""

import os

import pytest

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache, Issuer, Listen
from doma.core.errors import DomaError
from doma.doors.endpoint import Endpoint, Site
from doma.doors.root import RootDoor
from doma.net.listener import Listener
from doma.store.file import FileStore
from doma.store.http import HttpStore
from doma.store.xrootd import XrootdStore
from tests.e2e.cache.conftest import ISSUER, AtOnce, Caching, Client, Origin, Thing, content, serving
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


# O11: replicas that an origin names (RFC 6249)


@pytest.fixture
def rivals():
    with serving() as first, serving() as second:
        yield first, second


@pytest.fixture
async def named(rivals, tmp_path):
    """A cache before the first, that may go to the second if an origin names it."""

    async def nobody():
        return None

    async def token():
        return "the.users.token"

    origins = Origins(
        HttpStore(rivals[0].url, token=token),
        name=rivals[0].url,
        allow=(rivals[1].url,),
        mirror=lambda url: HttpStore(url, token=nobody),
    )
    cache = CacheStore(tmp_path / "cache", origins, Cache(), rng=AtOnce())
    yield cache
    await cache.close()


async def read(cache, path, start, stop):
    reader = await cache.open(path)
    try:
        return bytes(await reader.read(start, stop))
    finally:
        await reader.close()


@pytest.mark.parametrize("same", [True, False], ids=["the-same", "another-content"])
async def test_o11_a_replica_that_the_origin_names_is_gone_on_with_if_it_is_shown_to_be_the_same(
    named, rivals, same
):
    first, second = rivals
    size = 3 << 20
    link = f"<{second.url}/there/f>; rel=duplicate; pri=1, <http://192.0.2.7/f>; rel=duplicate"
    first.things["/f"] = Thing(size, headers={"Link": link})
    second.things["/there/f"] = Thing(size, version=0 if same else 1)
    assert await read(named, "/f", 0, 1000) == content(0, 1000)
    first.up = False
    if same:
        assert await read(named, "/f", 2 << 20, size) == content(2 << 20, size)
        assert set(second.tokens) == {None}, "a user's token goes to nobody whom only an origin names"
    else:
        with pytest.raises(DomaError):
            await read(named, "/f", 2 << 20, size)
        assert second.sent["/there/f"] == 0
    assert "Bearer the.users.token" in first.tokens


@pytest.mark.parametrize(
    "link",
    [
        "<http://192.0.2.7/f>; rel=duplicate",
        "<{}@evil.example/f>; rel=duplicate",
        "<{}/../there/f>; rel=duplicate",
        "<{}/there%2ff>; rel=duplicate",
        "<{}/there/f?x=1>; rel=duplicate",
        "<{}/there/f>; rel=describedby",
        "<file:///etc/passwd>; rel=duplicate",
        "<{}/there/%ff>; rel=duplicate",
        "<{}/there/f; rel=duplicate",
        "<" * 9999,
    ],
)
async def test_o11_what_may_not_be_gone_to_is_not(named, rivals, link):
    first, second = rivals
    first.things["/f"] = Thing(2 << 20, headers={"Link": link.replace("{}", second.url)})
    second.things["/there/f"] = Thing(2 << 20)
    assert await read(named, "/f", 0, 10) == content(0, 10)
    assert not named.place("/f").mirrors
