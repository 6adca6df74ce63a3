"""One suite over every engine: what a store promises, whatever holds the bytes.

Each engine brings a way around itself (``Raw``) to set and to look at bytes without the store under test.
"""

import asyncio
import hashlib
import time
import uuid
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from joserfc.jwk import ECKey

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen, Tape
from doma.core.errors import (
    AlreadyExists,
    BadPath,
    ChecksumMismatch,
    Conflict,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    Refused,
    Unsupported,
    WrongSize,
)
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.root import RootDoor
from doma.doors.webdav import app
from doma.net.listener import Listener
from doma.net.tls import ensure, server_context
from doma.store.file import FileStore
from doma.store.http import HttpStore, Token
from doma.store.memory import MemoryStore
from doma.store.protocol import Store
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.tape import TapeStore
from doma.store.xrootd import XrootdStore
from tests.conftest import migrated


class Raw(Protocol):
    """The way around an engine."""

    async def set(self, path: str, data: bytes) -> None: ...

    async def get(self, path: str) -> bytes | None: ...


class RawStore:
    """Around an engine through the store that it wraps or talks to."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def set(self, path: str, data: bytes) -> None:
        await put(self.store, path, data)

    async def get(self, path: str) -> bytes | None:
        try:
            return await get(self.store, path)
        except (NotFound, Conflict):
            return None


class RawFolder:
    """Around the file engine, by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def set(self, path: str, data: bytes) -> None:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(data)

    async def get(self, path: str) -> bytes | None:
        file = self.root / path[1:]
        return file.read_bytes() if file.is_file() else None


class RawShared(RawFolder):
    """Around an engine whose server runs under another account."""

    async def set(self, path: str, data: bytes) -> None:
        await super().set(path, data)
        for place in (self.root / path[1:]).relative_to(self.root).parents:
            (self.root / place).chmod(0o777)
        (self.root / path[1:]).chmod(0o666)


@dataclass
class Engine:
    name: str
    store: Store
    raw: Raw


@pytest.fixture(params=["memory", "file", "http", "xrootd", "root", "tape", "s3"])
async def engine(request, tmp_path) -> AsyncIterator[Engine]:
    if request.param == "memory":
        memory = MemoryStore()
        yield Engine("memory", memory, RawStore(memory))
    elif request.param == "file":
        store = FileStore(tmp_path, fsync=False)
        yield Engine("file", store, RawFolder(tmp_path))
        await store.close()
    elif request.param == "tape":
        db = migrated(tmp_path / "rows.db")
        tape = TapeStore(tmp_path / "tape", db, "tape", Tape(), fsync=False)
        yield Engine("tape", tape, RawFolder(tmp_path / "tape" / "disk"))
        await tape.close()
        db.close()
    elif request.param == "xrootd":
        server = request.getfixturevalue("xrootd_server")
        folder, path = server.place()
        there = XrootdStore(f"root://127.0.0.1:{server.port}/{path}", fsync=False)
        yield Engine("xrootd", there, RawShared(folder))
        await there.close()
    elif request.param == "root":
        own = FileStore(tmp_path / "own", fsync=False)
        async with rooted(own, tmp_path / "tls") as (url, token, ca):
            through = XrootdStore(url, token=token, ca_file=ca, fsync=False)
            yield Engine("root", through, RawFolder(tmp_path / "own"))
            await through.close()
        await own.close()
    elif request.param == "s3":
        url = request.getfixturevalue("s3_server")
        keys = Credentials("any", "keys")
        top = f"s3://doma-test/{uuid.uuid4().hex}?endpoint={url}"
        bucket = S3Store(top, credentials=keys)
        # around it by another store of the same place, which knows nothing of the first
        yield Engine("s3", bucket, RawStore(S3Store(top, credentials=keys)))
        await bucket.close()
    else:
        behind = MemoryStore()
        async with served(behind) as (url, token):
            remote = HttpStore(url, token=token)
            yield Engine("http", remote, RawStore(behind))
            await remote.close()


@asynccontextmanager
async def served(store: Store) -> AsyncIterator[tuple[str, Token]]:
    """A store behind our own WebDAV door and listener, with a token for everything."""
    site, token = _site(store)
    listen = Listen(address="127.0.0.1:0", drain=1)
    listener = Listener(app(site), fast=FastDoor(site), listen=listen, tls=None)
    host, port = await listener.start()
    try:
        yield f"http://{host}:{port}/site", token
    finally:
        await listener.stop()


@asynccontextmanager
async def rooted(store: Store, folder: Path) -> AsyncIterator[tuple[str, Token, Path]]:
    """The same behind our own root door; ``folder`` is for its certificate, whose CA comes third."""
    site, token = _site(store)
    listen = Listen(address="127.0.0.1:0", drain=1)
    files = ensure(folder, ["localhost"])
    context = server_context(files.certificate, files.key)
    door = RootDoor(site, tls=context, plain=listen.plain_http)
    listener = Listener(app(site), fast=None, listen=listen, tls=context, root=door.take)
    _, port = await listener.start()
    try:
        yield f"roots://localhost:{port}//site", token, files.ca
    finally:
        await listener.stop()


def _site(store: Store) -> tuple[Site, Token]:
    issuer, audience = "https://issuer.example/ct", "https://se.example"
    keys = KeySet({"ES256": ECKey.generate_key("P-256")})
    verifier = Verifier([Issuer(issuer=issuer)], [audience], local={issuer: keys.jwks()})
    now = int(time.time())
    claims = {"iss": issuer, "sub": "ada", "aud": audience, "iat": now, "exp": now + 600, "jti": "1"}
    text = keys.sign({**claims, "wlcg.ver": "1.0", "scope": "storage.read:/ storage.modify:/"}, "ES256")

    async def token() -> str:
        return text

    return Site(verifier, {"site": Endpoint("site", store, Gate({issuer: ["/"]}))}), token


async def put(store: Store, path: str, data: bytes, **how):
    upload = await store.create(path, **how)
    for i in range(0, len(data), 1 << 20):
        await upload.write(data[i : i + (1 << 20)])
    return await upload.commit()


async def get(store: Store, path: str) -> bytes:
    reader = await store.open(path)
    parts = []
    for start in range(0, reader.stat.size, 1 << 20):
        parts.append(bytes(await reader.read(start, min(start + (1 << 20), reader.stat.size))))
    await reader.close()
    return b"".join(parts)


async def names(store: Store, path: str) -> list[str]:
    return [entry.path for entry in await entries(store, path)]


async def entries(store: Store, path: str):
    return [entry async for entry in store.list(path)]


DATA = bytes(range(256)) * 1200  # 300 KiB: more than one block


async def test_what_is_written_is_read(engine):
    stat = await put(engine.store, "/a/b/file.root", DATA)
    assert await engine.raw.get("/a/b/file.root") == DATA
    assert await get(engine.store, "/a/b/file.root") == DATA
    assert stat.size == len(DATA)
    assert stat.checksums["adler32"] == f"{zlib.adler32(DATA):08x}"
    found = await engine.store.stat("/a/b/file.root")
    assert (found.path, found.size, found.version, found.is_dir) == (
        stat.path,
        stat.size,
        stat.version,
        False,
    )
    assert found.checksums["adler32"] == stat.checksums["adler32"]


async def test_what_others_put_there_is_read(engine):
    await engine.raw.set("/x.bin", DATA)
    assert await get(engine.store, "/x.bin") == DATA
    assert await engine.store.checksum("/x.bin", "adler32") == f"{zlib.adler32(DATA):08x}"


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, 0), (65535, 65537), (100, 300_000), (307_199, 307_200)]
)
async def test_any_range_is_exact(engine, start, stop):
    await engine.raw.set("/x", DATA)
    reader = await engine.store.open("/x")
    assert bytes(await reader.read(start, stop)) == DATA[start:stop]
    await reader.close()
    await reader.close()


async def test_bytes_that_are_not_there_are_refused(engine):
    await engine.raw.set("/x", b"12345")
    reader = await engine.store.open("/x")
    for start, stop in ((0, 6), (5, 6), (-1, 2), (3, 2)):
        with pytest.raises(RangeNotSatisfiable):
            await reader.read(start, stop)
    assert bytes(await reader.read(5, 5)) == b""
    await reader.close()


async def test_an_empty_file_is_ordinary(engine):
    stat = await put(engine.store, "/empty", b"", size=0)
    assert stat.size == 0
    assert stat.checksums["adler32"] == "00000001"
    assert await get(engine.store, "/empty") == b""
    assert await engine.raw.get("/empty") == b""


@pytest.mark.parametrize("name", ["/a b+c#?%41.root", "/ünï/Σ.root", "/a;b&c=d'e(f)", "/-", "/a:b@c"])
async def test_names_survive_as_they_are(engine, name):
    if engine.name in {"xrootd", "root"} and "?" in name:
        with pytest.raises(BadPath, match=r"\?"):
            await engine.store.create(name)
        return
    await put(engine.store, name, b"1")
    assert await engine.raw.get(name) == b"1"
    assert name.split("/")[1] in {entry.path[1:] for entry in await entries(engine.store, "/")}
    assert await get(engine.store, name) == b"1"


async def test_a_listing_is_sorted_and_tells_files_from_directories(engine):
    for name in ("/d/z", "/d/a", "/d/m/inner", "/other"):
        await engine.raw.set(name, b"12")
    listed = await entries(engine.store, "/d")
    assert [(e.path, e.size, e.is_dir) for e in listed] == [
        ("/d/a", 2, False),
        ("/d/m", 0, True),
        ("/d/z", 2, False),
    ]
    assert (await engine.store.stat("/d")).is_dir
    assert (await engine.store.stat("/")).is_dir
    assert await names(engine.store, "/") == ["/d", "/other"]


async def test_what_is_not_there_is_not_found(engine):
    store = engine.store
    await engine.raw.set("/file", b"1")
    for path in ("/gone", "/gone/deeper", "/file/below"):
        with pytest.raises(NotFound):
            await store.stat(path)
        with pytest.raises(NotFound):
            await store.open(path)
        with pytest.raises(NotFound):
            await store.checksum(path, "adler32")
        with pytest.raises(NotFound):
            await store.delete(path)
        with pytest.raises(NotFound):
            await store.rename(path, "/new")
        with pytest.raises(NotFound):
            await names(store, path)


async def test_a_directory_is_no_file_and_a_file_no_directory(engine):
    store = engine.store
    await engine.raw.set("/d/file", b"1")
    with pytest.raises(Conflict):
        await store.open("/d")
    with pytest.raises(Conflict):
        await store.create("/d")
    with pytest.raises(Conflict):
        await store.create("/")
    with pytest.raises(Conflict):
        await names(store, "/d/file")
    with pytest.raises(Conflict):
        await store.create("/d/file/below")
    with pytest.raises(AlreadyExists):
        await store.make_dir("/d")
    with pytest.raises(AlreadyExists):
        await store.make_dir("/d/file")
    with pytest.raises(Conflict):
        await store.make_dir("/d/file/below")
    with pytest.raises(Conflict):
        await store.make_dir("/missing/below")


async def test_bad_paths_are_refused_everywhere(engine):
    for path in (
        "relative",
        "/../etc/passwd",
        "/a/../../b",
        "/.doma",
        "/.doma/new",
        "/a\0b",
        "/" + "x" * 300,
    ):
        with pytest.raises(BadPath):
            await engine.store.stat(path)
        with pytest.raises(BadPath):
            await engine.store.create(path)
        with pytest.raises(BadPath):
            await engine.store.delete(path)
        with pytest.raises(BadPath):
            await engine.store.rename("/a", path)


async def test_nothing_is_seen_before_commit_and_nothing_after_abort(engine):
    upload = await engine.store.create("/new/file")
    await upload.write(DATA)
    assert await engine.raw.get("/new/file") is None
    with pytest.raises(NotFound):
        await engine.store.stat("/new/file")
    await upload.abort()
    await upload.abort()
    assert await engine.raw.get("/new/file") is None
    assert await names(engine.store, "/") == []


async def test_a_replacement_is_seen_whole_and_changes_the_version(engine):
    first = await put(engine.store, "/f", b"old")
    upload = await engine.store.create("/f", size=3)
    await upload.write(b"new")
    assert await get(engine.store, "/f") == b"old"
    second = await upload.commit()
    assert await get(engine.store, "/f") == b"new"
    assert first.version != second.version
    await upload.abort()
    assert await get(engine.store, "/f") == b"new"


async def test_versions_never_repeat_even_for_equal_content(engine):
    # S3's ETag names the content of a small object: equal content there is one version
    contents = [b"%d" % i if engine.name == "s3" else b"same" for i in range(20)]
    versions = {(await put(engine.store, "/f", data)).version for data in contents}
    assert len(versions) == 20


async def test_two_writers_of_one_name_do_not_mix(engine):
    one, two = await engine.store.create("/f"), await engine.store.create("/f")
    await one.write(b"1" * 1000)
    await two.write(b"2" * 1000)
    await one.write(b"1" * 1000)
    await two.commit()
    assert await engine.raw.get("/f") == b"2" * 1000
    await one.commit()
    assert await engine.raw.get("/f") == b"1" * 2000


@pytest.mark.parametrize("size", [2, 4])
async def test_a_wrong_size_publishes_nothing(engine, size):
    await engine.raw.set("/f", b"old")
    with pytest.raises(WrongSize):
        await put(engine.store, "/f", b"new", size=size)
    assert await engine.raw.get("/f") == b"old"


@pytest.mark.parametrize("algorithm", ["adler32", "crc32c", "md5", "sha-256"])
@pytest.mark.parametrize("size", [None, 3])
async def test_a_wrong_checksum_publishes_nothing(engine, algorithm, size):
    wrong = {"adler32": "0a", "crc32c": "0a", "md5": "0" * 32, "sha-256": "0" * 64}[algorithm]
    with pytest.raises(ChecksumMismatch, match=algorithm):
        await put(engine.store, "/d/f", b"new", size=size, checksums={algorithm: wrong})
    assert await engine.raw.get("/d/f") is None


async def test_a_right_checksum_is_accepted_and_kept(engine):
    md5 = hashlib.md5(DATA).hexdigest()
    await put(engine.store, "/f", DATA, checksums={"md5": md5, "adler32": f"{zlib.adler32(DATA):X}"})
    assert (await engine.store.stat("/f")).checksums["md5"] == md5


async def test_checksums_are_computed_on_demand_and_dropped_with_the_content(engine):
    await put(engine.store, "/f", DATA)
    assert await engine.store.checksum("/f", "md5") == hashlib.md5(DATA).hexdigest()
    assert (await engine.store.stat("/f")).checksums["md5"] == hashlib.md5(DATA).hexdigest()
    await engine.raw.set("/f", DATA[::-1])
    assert "md5" not in (await engine.store.stat("/f")).checksums
    assert await engine.store.checksum("/f", "md5") == hashlib.md5(DATA[::-1]).hexdigest()
    with pytest.raises(Unsupported):
        await engine.store.checksum("/f", "whirlpool")


async def test_conditions_are_checked_at_once(engine):
    store = engine.store
    stat = await put(store, "/f", b"1")
    with pytest.raises(PreconditionFailed):
        await store.create("/f", if_absent=True)
    with pytest.raises(PreconditionFailed):
        await store.create("/f", if_version="another")
    with pytest.raises(PreconditionFailed):
        await store.create("/none", if_version="*")
    await put(store, "/f", b"2", if_version=stat.version)
    await put(store, "/f", b"3", if_version="*")
    await put(store, "/new", b"4", if_absent=True)
    assert (await engine.raw.get("/f"), await engine.raw.get("/new")) == (b"3", b"4")


async def test_conditions_are_checked_again_when_publishing(engine):
    store = engine.store
    stat = await put(store, "/f", b"old")
    late = await store.create("/f", if_version=stat.version)
    fresh = await store.create("/g", if_absent=True)
    await late.write(b"late")
    await fresh.write(b"late")
    await put(store, "/f", b"newer")
    await put(store, "/g", b"newer")
    with pytest.raises(PreconditionFailed):
        await late.commit()
    with pytest.raises(PreconditionFailed):
        await fresh.commit()
    assert await engine.raw.get("/f") == b"newer"
    assert await engine.raw.get("/g") == b"newer"


async def test_a_late_clean_up_never_deletes_a_newer_file(engine):
    old = await put(engine.store, "/f", b"old")
    new = await put(engine.store, "/f", b"new")
    with pytest.raises(PreconditionFailed):
        await engine.store.delete("/f", version=old.version)
    assert await engine.raw.get("/f") == b"new"
    await engine.store.delete("/f", version=new.version)
    assert await engine.raw.get("/f") is None


async def test_deleting_does_not_touch_an_upload_under_way(engine):
    await engine.raw.set("/d/f", b"old")
    upload = await engine.store.create("/d/f")
    await upload.write(b"new")
    await engine.store.delete("/d", recursive=True)
    await upload.commit()
    assert await engine.raw.get("/d/f") == b"new"


async def test_a_directory_goes_only_empty_or_recursively(engine):
    store = engine.store
    await engine.raw.set("/d/e/f", b"1")
    with pytest.raises(Conflict):
        await store.delete("/d")
    assert await engine.raw.get("/d/e/f") == b"1"
    await store.delete("/d", recursive=True)
    with pytest.raises(NotFound):
        await store.stat("/d")
    await store.make_dir("/d")
    await store.delete("/d")
    assert await names(store, "/") == []
    with pytest.raises(Refused):
        await store.delete("/", recursive=True)


async def test_a_reader_goes_on_with_the_old_content_or_fails_but_never_mixes(engine):
    old, new = b"a" * 200_000, b"b" * 200_000
    await put(engine.store, "/f", old)
    reader = await engine.store.open("/f")
    assert bytes(await reader.read(0, 10)) == b"a" * 10
    await put(engine.store, "/f", new)
    if engine.name in {"http", "s3"}:
        with pytest.raises(PreconditionFailed):
            await reader.read(100_000, 100_010)
    else:
        assert bytes(await reader.read(100_000, 200_000)) == b"a" * 100_000
        await engine.store.delete("/f")
        assert bytes(await reader.read(0, 100_000)) == b"a" * 100_000
    await reader.close()


async def test_a_rename_moves_files_and_trees(engine):
    store = engine.store
    await engine.raw.set("/a/x", b"1")
    await engine.raw.set("/a/b/y", b"2")
    await engine.raw.set("/old", b"3")
    before = await store.stat("/old")
    assert await store.rename("/old", "/a/new") is False
    assert await engine.raw.get("/a/new") == b"3"
    assert (await store.stat("/a/new")).checksums == before.checksums
    assert await store.rename("/a/new", "/a/x") is True
    assert (await engine.raw.get("/a/x"), await engine.raw.get("/a/new")) == (b"3", None)
    assert await store.rename("/a", "/c") is False
    assert await engine.raw.get("/c/b/y") == b"2"
    with pytest.raises(NotFound):
        await store.stat("/a")


async def test_a_rename_that_cannot_be_leaves_everything_as_it_was(engine):
    store = engine.store
    await engine.raw.set("/a/x", b"1")
    await engine.raw.set("/f", b"2")
    with pytest.raises(PreconditionFailed):
        await store.rename("/f", "/a/x", overwrite=False)
    with pytest.raises(Conflict):
        await store.rename("/f", "/missing/f")
    with pytest.raises(Conflict):
        await store.rename("/f", "/a/x/below")
    with pytest.raises(Conflict):
        await store.rename("/a", "/a/below")
    with pytest.raises(Conflict):
        await store.rename("/f", "/f")
    with pytest.raises(Conflict):
        await store.rename("/f", "/a")
    with pytest.raises(Conflict):
        await store.rename("/a", "/f")
    assert (await engine.raw.get("/a/x"), await engine.raw.get("/f")) == (b"1", b"2")


async def test_many_readers_and_writers_at_once(engine):
    async def one(i: int) -> None:
        data = bytes([i]) * 10_000
        await put(engine.store, f"/many/{i}", data)
        assert await get(engine.store, f"/many/{i}") == data

    async with asyncio.TaskGroup() as group:
        for i in range(20):
            group.create_task(one(i))
    assert len(await names(engine.store, "/many")) == 20
