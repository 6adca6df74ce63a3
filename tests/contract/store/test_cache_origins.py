"""The cache over every kind of origin, and over those that clients name; root:// is a real XRootD server."""

import os
import random
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.cache.origins import Origins, guard_of
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import BadPath, DomaError, Forbidden, NotFound, StorageUnavailable
from doma.core.paths import checked, normalise
from doma.doors.endpoint import Endpoint, Site
from doma.store.file import FileStore
from doma.store.http import HttpStore
from doma.store.memory import MemoryStore
from doma.store.protocol import Store
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.xrootd import XrootdStore

MIB = 1 << 20


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@dataclass
class Scene:
    origin: Store
    cache: CacheStore
    clock: Clock

    async def put(self, path, data):
        upload = await self.origin.create(path, size=len(data))
        await upload.write(data)
        await upload.commit()

    async def get(self, path, step=MIB):
        return await get(self.cache, path, step)

    @property
    def fetched(self):
        return self.cache.stats().bytes["origin"]


async def get(cache, path, step=MIB):
    reader = await cache.open(path)
    try:
        size = reader.stat.size
        return b"".join([bytes(await reader.read(a, min(a + step, size))) for a in range(0, size, step)])
    finally:
        await reader.close()


def blob(size, seed=0):
    return random.Random(seed).randbytes(size)


@pytest.fixture(params=["file", "root", "roots", "s3"])
async def scene(request, tmp_path):
    origin: Store
    if request.param == "file":
        origin = FileStore(tmp_path / "origin", fsync=False)
    elif request.param == "s3":
        top = f"s3://doma-test/{uuid.uuid4().hex}?endpoint={request.getfixturevalue('s3_server')}"
        origin = S3Store(top, credentials=Credentials("any", "keys"))
    else:
        server = request.getfixturevalue("xrootd_server")
        host = "localhost" if request.param == "roots" else "127.0.0.1"
        url = f"{request.param}://{host}:{server.port}/{server.place()[1]}"
        origin = XrootdStore(url, ca_file=server.ca, fsync=False)
    clock = Clock()
    cache = CacheStore(tmp_path / "cache", Origins(origin, name="site"), Cache(file_lifetime=60), clock=clock)
    yield Scene(origin, cache, clock)
    await cache.close()


async def test_every_byte_comes_once_from_any_kind_of_origin(scene):
    data = blob(3 * MIB + 1234)
    await scene.put("/a/f", data)
    assert await scene.get("/a/f") == data
    assert scene.fetched == len(data)
    rng = random.Random(2)
    reader = await scene.cache.open("/a/f")
    for _ in range(50):
        start = rng.randrange(len(data))
        stop = min(len(data), start + rng.randrange(200_000))
        assert bytes(await reader.read(start, stop)) == data[start:stop]
    await reader.close()
    assert scene.fetched == len(data)


async def test_f6_f7_a_replaced_file_is_seen_one_lifetime_later_whatever_the_origin(scene):
    old, new = blob(MIB, 1), blob(MIB, 2)
    await scene.put("/f", old)
    assert await scene.get("/f") == old
    first = await scene.cache.checksum("/f", "adler32")
    await scene.put("/f", new)
    assert await scene.get("/f") == old
    scene.clock.now += 100
    assert await scene.get("/f") == new
    assert await scene.cache.checksum("/f", "adler32") != first


async def test_f6_an_unchanged_file_is_renewed_without_bytes_whatever_the_origin(scene):
    data = blob(MIB)
    await scene.put("/f", data)
    await scene.get("/f")
    scene.clock.now += 100
    assert await scene.get("/f") == data
    assert scene.cache.stats().counts["renewed"] == 1
    assert scene.fetched == len(data)


async def test_f8_f9_a_reader_of_a_replaced_file_ends_on_its_version_or_fails(scene):
    old, new = blob(4 * MIB, 1), blob(4 * MIB, 2)
    await scene.put("/f", old)
    reader = await scene.cache.open("/f")
    assert bytes(await reader.read(0, 100_000)) == old[:100_000]
    await scene.put("/f", new)
    scene.clock.now += 100
    assert await scene.get("/f") == new
    assert bytes(await reader.read(0, 100_000)) == old[:100_000]
    try:
        part = bytes(await reader.read(3 * MIB, 3 * MIB + 1000))
    except DomaError:
        part = old[3 * MIB : 3 * MIB + 1000]
    assert part == old[3 * MIB : 3 * MIB + 1000]
    await reader.close()
    assert await scene.get("/f") == new


async def test_f11_what_is_gone_at_its_origin_is_gone_here_after_its_lifetime(scene):
    await scene.put("/f", blob(1000))
    await scene.get("/f")
    await scene.origin.delete("/f")
    scene.clock.now += 100
    with pytest.raises(NotFound):
        await scene.get("/f")


async def test_an_empty_object_and_a_directory_are_told_apart_whatever_the_origin(scene):
    await scene.put("/d/empty", b"")
    assert await scene.get("/d/empty") == b""
    assert [stat.path async for stat in scene.cache.list("/d")] == ["/d/empty"]
    assert (await scene.cache.stat("/d")).is_dir


# --- origins that clients name ---


@pytest.fixture
async def forward(tmp_path, xrootd_server):
    """A cache that forwards to the real server by name, and a file that lies there."""
    folder, path = xrootd_server.place()
    (folder / "f").write_bytes(blob(2 * MIB))
    os.chmod(folder / "f", 0o644)
    allow = [f"root://localhost:{xrootd_server.port}", f"roots://localhost:{xrootd_server.port}"]
    guard = guard_of(allow, (), ())

    def named(url):
        if url.startswith("root"):
            return XrootdStore(f"{url}//", ca_file=xrootd_server.ca, allow=guard)
        return HttpStore(url, allow=guard)

    origins = Origins(MemoryStore(), name="memory:", open=named, allow=tuple(allow))
    cache = CacheStore(tmp_path / "cache", origins, Cache())
    yield cache, f"localhost:{xrootd_server.port}/{path}/f"
    await cache.close()


@pytest.mark.parametrize("scheme", ["root", "roots", "xroot", "ROOT"])
async def test_a_client_may_name_a_root_origin_in_full(forward, scheme):
    cache, where = forward
    assert await get(cache, checked(f"/{scheme}://{where}")) == blob(2 * MIB)


async def test_the_same_file_by_another_spelling_is_the_same_object(forward):
    cache, where = forward
    await get(cache, checked(f"/root://{where}"))
    fetched = cache.stats().bytes["origin"]
    assert await get(cache, normalise(f"/xroot:/{where.replace('//', '/')}")) == blob(2 * MIB)
    assert cache.stats().bytes["origin"] == fetched


@pytest.mark.parametrize(
    "path",
    [
        "/root://127.0.0.1:1/f", "/root://localhost:1//f", "/root://user@localhost//f", "/root://[::1]//f",
        "/root://localhost%23.evil.example//f", "/root:///f", "/roots:/169.254.169.254/x",
    ],
)  # fmt: skip
async def test_no_other_root_origin_is_reached(forward, path):
    cache, _ = forward
    with pytest.raises((Forbidden, BadPath)):
        await cache.open(normalise(path))


async def test_an_allowed_name_at_a_private_address_is_refused_unless_it_was_written_out(tmp_path, forward):
    _, where = forward
    guard = guard_of(["root://*"], (), ())
    named = Origins(MemoryStore(), open=lambda url: XrootdStore(f"{url}//", allow=guard), allow=("root://*",))
    cache = CacheStore(tmp_path / "other", named, Cache())
    with pytest.raises(Forbidden, match="address is not allowed"):
        await cache.open(checked(f"/root://{where}"))
    await cache.close()


async def test_a_killed_root_server_costs_no_byte_when_there_is_another_replica(
    tmp_path, own_xrootd_server, xrootd_server
):
    data, stores = blob(6 * MIB), {}
    for name, server in (("one", own_xrootd_server), ("two", xrootd_server)):
        folder, path = server.place()
        (folder / "f").write_bytes(data)
        os.chmod(folder / "f", 0o644)
        os.utime(folder / "f", (1_600_000_000, 1_600_000_000))
        stores[name] = XrootdStore(f"root://127.0.0.1:{server.port}/{path}")
    origins = Origins(stores["one"], name="root://one", others={"root://two": stores["two"]})
    cache = CacheStore(tmp_path / "cache", origins, Cache())
    reader = await cache.open("/f")
    got = [bytes(await reader.read(a, a + MIB)) for a in range(0, 2 * MIB, MIB)]
    own_xrootd_server.kill()
    got += [bytes(await reader.read(a, a + MIB)) for a in range(2 * MIB, 6 * MIB, MIB)]
    assert b"".join(got) == data
    assert reader.cached.remotes == ["one", "two"]
    await reader.close()
    await cache.close()


async def test_a_dead_root_server_is_an_error_that_names_it(tmp_path, own_xrootd_server):
    url = f"root://127.0.0.1:{own_xrootd_server.port}//"
    cache = CacheStore(tmp_path / "cache", Origins(XrootdStore(url), name=url), Cache())
    own_xrootd_server.kill()
    with pytest.raises(StorageUnavailable, match=str(own_xrootd_server.port)):
        await cache.open("/f")
    await cache.close()


def test_a_path_that_begins_with_a_url_means_the_forwarding_endpoint(tmp_path: Path):
    gate = Gate({})
    endpoints = {name: Endpoint(name, MemoryStore(), gate) for name in ("site", "cache")}
    site = Site(Verifier([], []), endpoints, forward="cache")
    for raw in ("/root://se.example//f", "//root://se.example//f", "/https://se.example/f", "/Roots://a/f"):
        endpoint, path = site.find(normalise(raw))
        assert endpoint.name == "cache"
        assert path == normalise(raw)
    assert site.find("/cache/root:/se.example/f")[1] == "/root:/se.example/f"
    with pytest.raises(NotFound):
        site.find("/ftp:/se.example/f")
    with pytest.raises(NotFound):
        Site(Verifier([], []), endpoints).find("/root:/se.example/f")
