"""A full re-scan of checksums."""

import os
import zlib

import pytest

from doma.core.errors import NotFound, Unsupported
from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from doma.store.verify import verify


async def put(store, path, data):
    upload = await store.create(path)
    await upload.write(data)
    await upload.commit()


@pytest.fixture(params=["memory", "file"])
async def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else FileStore(tmp_path, fsync=False)
    for path, data in {"/b": b"b" * 3_000_000, "/a/x": b"", "/a/y": b"y", "/c": b"c"}.items():
        await put(made, path, data)
    yield made
    await made.close()


async def test_every_file_is_read_once_in_order(store):
    found = [one async for one in verify(store)]
    assert [(one.stat.path, one.good) for one in found] == [
        ("/a/x", True), ("/a/y", True), ("/b", True), ("/c", True),
    ]  # fmt: skip
    assert [one.found for one in found] == [one.stored for one in found]
    assert found[2].found == f"{zlib.adler32(b'b' * 3_000_000):08x}"
    assert [one.stat.path async for one in verify(store, "/a")] == ["/a/x", "/a/y"]
    assert [one.stat.path async for one in verify(store, "/c")] == ["/c"]
    assert [one.stored async for one in verify(store, "/c", "md5")] == [""]
    assert (await store.stat("/c")).checksums.keys() >= {"adler32", "md5"}
    with pytest.raises(NotFound):
        [one async for one in verify(store, "/none")]
    with pytest.raises(Unsupported):
        [one async for one in verify(store, "/c", "cksum")]


async def test_a_flipped_bit_is_found(tmp_path):
    store = FileStore(tmp_path, fsync=False)
    await put(store, "/f", b"x" * 100_000)
    await put(store, "/g", b"x" * 100_000)
    found = (tmp_path / "f").stat()
    os.chmod(tmp_path / "f", 0o644)
    with (tmp_path / "f").open("r+b") as file:
        file.seek(70_000)
        file.write(b"y")
    os.utime(tmp_path / "f", ns=(found.st_mtime_ns, found.st_mtime_ns))
    assert {one.stat.path: one.good async for one in verify(store)} == {"/f": False, "/g": True}
    await store.close()
