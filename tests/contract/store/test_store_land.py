"""Small new files that a file store publishes in one step: the same file as by the long way, or nothing."""

import os
import zlib

import pytest

from doma.core.errors import StorageFull
from doma.store.file import FileStore
from doma.store.quota import Quota


@pytest.fixture
async def store(tmp_path):
    made = FileStore(tmp_path / "store", fsync=False)
    await made.make_dir("/d")
    if made.land("/d/probe", b"") is None:
        pytest.skip("this file system makes no files without a name")
    await made.delete("/d/probe")
    yield made
    await made.close()


async def test_a_landed_file_is_like_an_uploaded_one(store, tmp_path):
    landed = store.land("/d/f", b"hello")
    assert landed is not None
    assert landed == await store.stat("/d/f")
    assert landed.checksums == {"adler32": f"{zlib.adler32(b'hello'):08x}"}
    upload = await store.create("/d/g")
    await upload.write(b"hello")
    other = await upload.commit()
    assert (other.size, other.checksums) == (landed.size, landed.checksums)
    one, two = (os.stat(tmp_path / "store" / "d" / name) for name in "fg")
    assert (one.st_mode, one.st_nlink, one.st_uid) == (two.st_mode, two.st_nlink, two.st_uid)
    reader = await store.open("/d/f")
    assert bytes(await reader.read(0, 5)) == b"hello"
    await reader.close()


@pytest.mark.parametrize(
    "path", ["/d/file", "/d/dir", "/d/link", "/d/dangling", "/d/file/below", "/none/f", "/"]
)
async def test_nothing_is_replaced_and_no_directory_made(store, tmp_path, path):
    top = tmp_path / "store" / "d"
    (top / "file").write_bytes(b"old")
    (top / "dir").mkdir()
    (top / "link").symlink_to("file")
    (top / "dangling").symlink_to("missing")
    before = sorted(str(found) for found in top.parent.rglob("*") if ".doma" not in found.parts)
    assert store.land(path, b"new") is None
    assert sorted(str(found) for found in top.parent.rglob("*") if ".doma" not in found.parts) == before
    assert not os.listdir(tmp_path / "store" / ".doma" / "new")
    assert (top / "file").read_bytes() == b"old"


async def test_no_link_leads_out_of_the_store(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store" / "out").symlink_to(outside)
    (tmp_path / "store" / "in").symlink_to("d")
    assert store.land("/out/f", b"new") is None
    assert not list(outside.iterdir())
    assert store.land("/in/f", b"new") is not None
    assert (tmp_path / "store" / "d" / "f").read_bytes() == b"new"


async def test_a_directory_that_was_moved_or_replaced_is_found_where_it_is(store, tmp_path):
    top = tmp_path / "store"
    assert store.land("/d/one", b"1") is not None
    (top / "d").rename(top / "e")
    assert store.land("/d/two", b"2") is None
    (top / "d").mkdir()
    assert store.land("/d/three", b"3") is not None
    assert [found.name for found in (top / "d").iterdir()] == ["three"]
    assert [found.name for found in (top / "e").iterdir()] == ["one"]
    (top / "d" / "three").unlink()
    (top / "d").rmdir()
    (top / "d").symlink_to(tmp_path)
    assert store.land("/d/four", b"4") is None
    assert store.remove("/d/brief") is None
    assert not (tmp_path / "four").exists()


async def test_a_quota_counts_and_refuses_landed_files(tmp_path):
    store = FileStore(tmp_path / "store", fsync=False, quota=Quota({"/": 10}))
    try:
        if store.land("/f", b"123456") is None:
            pytest.skip("this file system makes no files without a name")
        with pytest.raises(StorageFull):
            store.land("/g", b"12345")
        assert store.land("/f", b"1234") is None, "something is there"
        assert (await store.space()).used == 6
        assert store.land("/g", b"1234") is not None
        assert store.remove("/f") == 6
        assert (await store.space()).used == 4
        assert sorted(os.listdir(tmp_path / "store")) == [".doma", "g"]
    finally:
        await store.close()


async def test_synced_and_read_only_stores_leave_it_to_the_long_way(tmp_path):
    for options in ({"fsync": True}, {"read_only": True}):
        (tmp_path / "store").mkdir(exist_ok=True)
        store = FileStore(tmp_path / "store", **options)
        assert store.land("/f", b"x") is None
        await store.close()
