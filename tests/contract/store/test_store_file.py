"""What only the folder engine has: the fast path, foreign files, links, its hidden spool, a full disk."""

import asyncio
import os
import resource
import stat as modes
import zlib
from pathlib import Path

import pytest

from doma.core.errors import ConfigError, DomaError, NotFound, PreconditionFailed, Refused, StorageFull
from doma.store import content
from doma.store.file import FileStore
from doma.store.protocol import CanFeed, CanPeek, CanSpace, CanWarm

DATA = os.urandom(300_000)


@pytest.fixture
async def store(tmp_path):
    one = FileStore(tmp_path, fsync=False)
    yield one
    await one.close()


async def put(store, path, data, **how):
    upload = await store.create(path, **how)
    await upload.write(data)
    return await upload.commit()


async def warm(store, path):
    reader = await store.open(path)
    await reader.read(0, reader.stat.size)
    hot = store.peek(path)
    assert hot is not None
    return hot


async def test_a_published_file_is_hot_after_its_first_reading(store):
    await put(store, "/f", DATA)
    assert isinstance(store, CanPeek)
    assert isinstance(store, CanSpace)
    assert store.peek("/f") is None
    hot = await warm(store, "/f")
    assert hot.view(0, len(DATA)) == DATA
    assert hot.view(65_530, 65_540) == DATA[65_530:65_540]
    fd = hot.fileno(0, len(DATA))
    assert fd is not None
    assert os.pread(fd, 10, 100) == DATA[100:110]


async def test_views_stay_valid_after_replacement_deletion_and_close(tmp_path):
    store = FileStore(tmp_path, fsync=False)
    await put(store, "/f", DATA)
    hot = await warm(store, "/f")
    view = hot.view(0, len(DATA))
    await put(store, "/f", b"new")
    assert store.peek("/f") is None
    await store.delete("/f")
    await store.close()
    assert view == DATA
    assert os.pread(hot.fileno(0, 10), 10, 0) == DATA[:10]


async def test_a_hot_file_moved_or_deleted_behind_our_back_is_no_longer_hot(store, tmp_path):
    for by_hand in (
        lambda: (tmp_path / "f").rename(tmp_path / "g"),
        lambda: (tmp_path / "f").unlink(),
        lambda: os.utime(tmp_path / "f", ns=(1, 1)),
    ):
        await put(store, "/f", DATA)
        await warm(store, "/f")
        by_hand()
        assert store.peek("/f") is None


async def test_feeding_takes_bytes_at_once_and_keeps_the_checksum(store):
    upload = await store.create("/f", size=len(DATA))
    assert isinstance(upload, CanFeed)
    fed = 0
    buffer = bytearray(DATA)
    for i in range(0, len(DATA), 50_000):
        if upload.feed(memoryview(buffer)[i : i + 50_000]):
            fed += 1
        else:
            await upload.write(DATA[i : i + 50_000])
    buffer[:] = bytes(len(DATA))  # the buffer is the caller's again
    stat = await upload.commit()
    assert fed > 0
    assert stat.checksums["adler32"] == f"{zlib.adler32(DATA):08x}"
    assert await store.checksum("/f", "adler32") == stat.checksums["adler32"]


async def test_slow_checksums_never_run_on_the_loop(store):
    upload = await store.create("/f", checksums={"md5": "0" * 32})
    assert upload.feed(memoryview(b"x")) is False
    await upload.abort()


async def test_foreign_files_are_served_from_a_copy_and_a_change_in_place_is_an_error(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    store = FileStore(tmp_path, read_only=True)
    reader = await store.open("/f")
    assert bytes(await reader.read(0, 1000)) == DATA[:1000]
    hot = store.peek("/f")
    assert hot is not None
    assert hot.fileno(0, 1000) is None
    view = hot.view(0, 1000)
    with (tmp_path / "f").open("r+b") as file:
        file.write(b"changed")
        file.truncate(500)
    assert view is None or bytes(view) == DATA[:1000]
    assert hot.view(0, 1000) is None
    with pytest.raises(PreconditionFailed, match="changed"):
        await reader.read(0, 1000)
    assert bytes(await (await store.open("/f")).read(0, 500)) == (b"changed" + DATA[7:])[:500]
    await store.close()


async def test_a_published_file_cut_short_by_hand_is_an_error_and_no_crash(store, tmp_path):
    await put(store, "/f", DATA)
    reader = await store.open("/f")
    os.truncate(tmp_path / "f", 10)
    with pytest.raises(DomaError):
        await reader.read(100_000, 200_000)


async def test_a_stale_mark_is_never_believed(store, tmp_path):
    await put(store, "/f", DATA)
    (tmp_path / "f").chmod(0o644)
    (tmp_path / "f").write_bytes(DATA[::-1])
    assert "adler32" not in (await store.stat("/f")).checksums
    assert await store.checksum("/f", "adler32") == f"{zlib.adler32(DATA[::-1]):08x}"


async def test_marks_live_in_side_files_where_there_are_no_attributes(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", none)
    monkeypatch.setattr(os, "getxattr", none)
    store = FileStore(tmp_path, fsync=False)
    await put(store, "/f", DATA)
    assert (await store.stat("/f")).checksums["adler32"] == f"{zlib.adler32(DATA):08x}"
    assert (await warm(store, "/f")).fileno(0, 10) is not None
    await store.delete("/f")
    assert not list((tmp_path / ".doma" / "marks").iterdir())
    await store.close()


async def test_a_read_only_folder_is_never_written_to(tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    store = FileStore(tmp_path, read_only=True)
    value = await store.checksum("/f", "md5")
    assert (await store.stat("/f")).checksums == {"md5": value}
    for work in (
        store.create("/g"),
        store.delete("/f"),
        store.rename("/f", "/g"),
        store.make_dir("/d"),
    ):
        with pytest.raises(Refused, match="read-only"):
            await work
    await store.close()
    assert os.listdir(tmp_path) == ["f"]
    assert not os.listxattr(tmp_path / "f")


async def test_links_lead_within_the_store_and_nowhere_else(store, tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_bytes(b"secret")
    await put(store, "/d/file", b"mine")
    (tmp_path / "inner").symlink_to("d/file")
    (tmp_path / "dir").symlink_to(tmp_path / "d")
    (tmp_path / "up").symlink_to("d/../d/file")
    (tmp_path / "out").symlink_to(outside / "secret")
    (tmp_path / "outdir").symlink_to(outside)
    (tmp_path / "sneaky").symlink_to(f"../{outside.name}/secret")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for path in ("/inner", "/dir/file", "/up"):
        assert bytes(await (await store.open(path)).read(0, 4)) == b"mine"
    for path in ("/out", "/outdir", "/outdir/secret", "/sneaky", "/loop", "/dangling", "/pipe"):
        with pytest.raises(NotFound):
            await store.stat(path)
        with pytest.raises(NotFound):
            await store.open(path)
    assert [s.path async for s in store.list("/")] == ["/d", "/dir", "/inner", "/up"]
    with pytest.raises(DomaError):
        await put(store, "/outdir/new", b"x")
    await put(store, "/out", b"replaces the link")
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    await store.delete("/dir")  # the link, not what it points to
    assert (await store.stat("/d/file")).size == 4


async def test_published_files_cannot_be_changed_in_place_by_accident(store, tmp_path):
    await put(store, "/f", b"1")
    assert modes.S_IMODE((tmp_path / "f").stat().st_mode) & 0o222 == 0


async def test_nothing_is_left_of_what_was_not_published(store, tmp_path):
    for how in ("abort", "mismatch", "drop"):
        upload = await store.create("/f", checksums={"adler32": "1"} if how == "mismatch" else None)
        await upload.write(b"x")
        if how == "mismatch":
            with pytest.raises(DomaError):
                await upload.commit()
        elif how == "abort":
            await upload.abort()
    assert len(os.listdir(tmp_path / ".doma" / "new")) == 1  # the one that still runs
    await store.close()
    assert os.listdir(tmp_path / ".doma" / "new") == []
    assert os.listdir(tmp_path) == [".doma"]


async def test_another_store_on_the_folder_spares_running_uploads(store, tmp_path):
    upload = await store.create("/f")
    await upload.write(b"1")
    (tmp_path / ".doma" / "new" / "dead").write_bytes(b"of a process that is gone")
    other = FileStore(tmp_path, fsync=False)
    assert "dead" not in os.listdir(tmp_path / ".doma" / "new")
    await upload.commit()
    assert bytes(await (await other.open("/f")).read(0, 1)) == b"1"
    await other.close()


async def test_a_size_that_cannot_fit_is_refused_at_once(store):
    space = await store.space()
    with pytest.raises(StorageFull, match="free"):
        await store.create("/f", size=space.available + (1 << 40))


async def test_a_full_disk_is_one_error_and_leaves_the_old_file(store, tmp_path):
    await put(store, "/f", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    upload = await store.create("/f")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        await upload.write(bytes(60_000))
        with pytest.raises(StorageFull, match="/f: the disk is full"):
            await upload.write(bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(DomaError):
        await upload.commit()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path / ".doma" / "new") == []


async def test_two_stores_never_both_create_one_absent_file(tmp_path):
    stores = [FileStore(tmp_path, fsync=False) for _ in range(2)]
    for i in range(20):
        uploads = [await one.create(f"/f{i}", if_absent=True) for one in stores]
        done = await asyncio.gather(*(u.commit() for u in uploads), return_exceptions=True)
        assert sorted(isinstance(d, PreconditionFailed) for d in done) == [False, True]
    for one in stores:
        await one.close()


async def test_two_stores_never_both_replace_one_version(tmp_path):
    stores = [FileStore(tmp_path, fsync=False) for _ in range(2)]
    version = (await put(stores[0], "/f", b"0")).version
    for _ in range(20):
        uploads = [await one.create("/f", if_version=version) for one in stores]
        done = await asyncio.gather(*(u.commit() for u in uploads), return_exceptions=True)
        won = [d for d in done if not isinstance(d, PreconditionFailed)]
        assert len(won) == 1
        version = won[0].version
    for one in stores:
        await one.close()


async def test_descriptors_stay_bounded_and_are_given_back(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    store = FileStore(tmp_path, fsync=False)
    for i in range(400):
        (tmp_path / f"{i}").write_bytes(b"x")
        await (await store.open(f"/{i}")).close()
    assert len(os.listdir("/proc/self/fd")) < before + 300
    await store.close()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_a_cancelled_read_or_write_harms_nobody(store):
    await put(store, "/f", DATA)
    reader = await store.open("/f")
    upload = await store.create("/g", checksums={"md5": "0" * 32})
    for work in (reader.read(0, len(DATA)), upload.write(DATA), store.create("/h")):
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await reader.close()
    await upload.abort()
    assert bytes(await (await store.open("/f")).read(0, 10)) == DATA[:10]


async def test_a_folder_that_cannot_be_used_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be used"):
        FileStore(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        FileStore(tmp_path / "missing", read_only=True)


async def test_events_tell_what_changed(tmp_path):
    events = []
    store = FileStore(tmp_path, fsync=False, emit=events.append)
    stat = await put(store, "/f", b"1")
    await store.rename("/f", "/g")
    await store.delete("/g")
    await store.close()
    assert [(e.kind, e.subject) for e in events] == [
        ("file.landed", "/f"),
        ("file.moved", "/g"),
        ("file.deleted", "/g"),
    ]
    assert events[0].data["version"] == stat.version


@pytest.mark.parametrize("size", [1, 4096, content.COPIED, content.COPIED + 1, 70_000])
async def test_a_file_can_be_opened_at_once_and_its_bytes_stay(store, size):
    data = os.urandom(size)
    await put(store, "/d/f", data)
    assert isinstance(store, CanWarm)
    assert store.peek("/d/f") is None
    hot = store.warm("/d/f")
    assert store.peek("/d/f") is hot
    await warm(store, "/d/f")
    view = hot.view(0, size)
    assert view == data
    assert view.readonly
    assert hot.view(size - 1, size) == data[-1:]
    await put(store, "/d/f", b"other")
    assert view == data
    for nothing in ("/d", "/no", "/d/f/g", "/.doma/new", "/d/../d/f"):
        assert store.warm(nothing) is None


def test_only_file_systems_in_memory_are_taken_for_such():
    shared = Path("/dev/shm")
    if shared.is_mount():
        assert content.in_memory(shared.stat().st_dev)
    assert not content.in_memory(Path("/proc").stat().st_dev)
    assert not content.in_memory(0xFFFFF)
