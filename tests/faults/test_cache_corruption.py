"""Damage to the cache's files, cases C1-C7, C9: noticed, fetched again, never delivered."""

import asyncio
import os
import random
import shutil
import sqlite3

import pytest

from doma.cache.extents import PAGE
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import DomaError, StorageUnavailable
from doma.store.memory import MemoryStore

SIZE = 600_001


class Origin(MemoryStore):
    """Counts what it sends and may go away."""

    sent = 0
    up = True

    async def stat(self, path):
        if not self.up:
            raise StorageUnavailable("origin: nobody answers")
        return await super().stat(path)

    async def open(self, path):
        if not self.up:
            raise StorageUnavailable("origin: nobody answers")
        return Line(self, await super().open(path))


class Line:
    def __init__(self, origin, inner):
        self._origin, self._inner, self.stat = origin, inner, inner.stat

    async def read(self, start, stop):
        if not self._origin.up:
            raise StorageUnavailable("origin: nobody answers")
        self._origin.sent += stop - start
        return await self._inner.read(start, stop)

    async def close(self):
        await self._inner.close()


class Scene:
    """One object in a cache that is running or was restarted, and its files on disk."""

    def __init__(self, root, restart):
        self.root, self.restart = root, restart
        self.origin = Origin()
        self.data = random.Random(1).randbytes(SIZE)
        self.cache = self._start()

    def _start(self):
        return CacheStore(self.root, Origins(self.origin), Cache(), rng=random.Random(1))

    async def fill(self):
        upload = await self.origin.create("/f", size=SIZE)
        await upload.write(self.data)
        await upload.commit()
        for _ in range(2):  # the second time from disk, so that a running cache has checked every page
            assert await self.read(0, SIZE) == self.data
            await asyncio.sleep(0.03)
        assert await self.read(0, SIZE) == self.data
        assert self.origin.sent == SIZE
        assert self.cache.peek("/f").view(0, SIZE) is not None
        if self.restart:
            await self.cache.close()

    async def again(self):
        """After the damage was done."""
        if self.restart:
            self.cache = self._start()

    async def read(self, start, stop):
        hot = self.cache.peek("/f")
        if hot is not None and (view := hot.view(start, stop)) is not None:
            return bytes(view)
        reader = await self.cache.open("/f")
        try:
            return bytes(await reader.read(start, stop))
        finally:
            await reader.close()

    @property
    def files(self):
        return [p for p in (self.root / "objects").rglob("*") if p.is_file() or p.suffix]

    @property
    def pages(self):
        return next(p for p in self.files if p.suffix)

    @property
    def record(self):
        return next(p for p in self.files if not p.suffix)


def flip(path, offset, times=None):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    if times:
        os.utime(path, ns=times)


@pytest.fixture(params=[False, True], ids=["running", "restarted"])
async def scene(request, tmp_path):
    scene = Scene(tmp_path / "cache", request.param)
    await scene.fill()
    yield scene
    await scene.cache.close()


async def test_c1_one_flipped_bit_costs_one_page_and_no_wrong_byte(scene, caplog):
    found = scene.pages.stat()
    flip(scene.pages, 70_000, (found.st_atime_ns, found.st_mtime_ns))
    await scene.again()
    assert await scene.read(0, SIZE) == scene.data
    assert scene.origin.sent == SIZE + PAGE
    assert scene.cache.stats().bytes["repair"] == PAGE
    assert "/f: damaged in the cache at offset 69632" in caplog.text
    assert await scene.read(0, SIZE) == scene.data
    assert scene.origin.sent == SIZE + PAGE


async def test_c2_a_range_that_does_not_touch_the_damage_costs_nothing(scene):
    flip(scene.pages, 70_000)
    await scene.again()
    assert await scene.read(0, 60_000) == scene.data[:60_000]
    assert await scene.read(80_000, SIZE) == scene.data[80_000:]
    assert scene.origin.sent == SIZE
    assert await scene.read(69_999, 70_001) == scene.data[69_999:70_001]
    assert scene.origin.sent == SIZE + PAGE


async def test_c3_damage_while_the_origin_is_away_is_an_error_and_only_there(scene):
    flip(scene.pages, 70_000)
    scene.origin.up = False
    await scene.again()
    with pytest.raises(StorageUnavailable, match="nobody answers"):
        await scene.read(0, SIZE)
    assert await scene.read(100_000, SIZE) == scene.data[100_000:]


def _truncate(path):
    os.truncate(path, 100_000)


def _empty(path):
    os.truncate(path, 0)


def _grow(path):
    with path.open("ab") as file:
        file.write(b"more" * 10_000)


def _directory(path):
    path.unlink()
    (path / "below").mkdir(parents=True)


def _link(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _garbage(path):
    path.write_bytes(random.Random(2).randbytes(path.stat().st_size))


def _hole(path):
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(bytes(100_000))


@pytest.mark.parametrize("harm", [_truncate, _empty, _grow, _garbage, _hole, _directory, _link, os.unlink])
async def test_c4_c6_whatever_happens_to_the_pages_no_wrong_byte_is_served(scene, harm):
    hot = scene.cache.peek("/f") if not scene.restart else None
    harm(scene.pages)
    await scene.again()
    if hot is not None:
        assert hot.view(0, SIZE) in (None, scene.data)
    for _ in range(2):
        assert await scene.read(0, SIZE) == scene.data
        await asyncio.sleep(0.03)
    assert (await scene.cache.stat("/f")).size == SIZE


@pytest.mark.parametrize("harm", [_empty, _garbage, _directory, _link, os.unlink, lambda p: flip(p, 60)])
async def test_c5_c7_a_damaged_record_is_forgotten_and_never_size_zero(scene, harm):
    harm(scene.record)
    await scene.again()
    assert (await scene.cache.stat("/f")).size == SIZE
    assert await scene.read(0, SIZE) == scene.data
    if scene.restart:
        assert scene.origin.sent == 2 * SIZE


@pytest.mark.parametrize("seed", range(6))
async def test_any_damage_to_any_file_gives_the_right_bytes_or_an_error(scene, seed):
    rng = random.Random(seed)
    for path in scene.files:
        size = path.stat().st_size
        for _ in range(rng.randrange(1, 6)):
            flip(path, rng.randrange(size))
        if rng.random() < 0.3:
            os.truncate(path, rng.randrange(size))
    await scene.again()
    for _ in range(8):
        start = rng.randrange(SIZE)
        stop = rng.randrange(start, SIZE)
        try:
            got = await scene.read(start, stop)
        except DomaError:
            continue
        assert got == scene.data[start:stop]


async def test_remains_of_a_killed_process_are_cleared_away_and_not_counted(scene):
    if not scene.restart:
        pytest.skip("only after a restart")
    folder, kept = scene.record.parent, sorted([scene.record.name, scene.pages.name])
    (folder / ("0" * 64 + ".dead")).write_bytes(b"x" * 50_000)
    (folder / (kept[0] + ".dead.new")).write_bytes(b"x" * 50_000)
    with sqlite3.connect(scene.root / "index.db") as index:
        index.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")
    index.close()
    await asyncio.sleep(0.03)
    await scene.again()
    await asyncio.to_thread(scene.cache.catalogue.keeper.looked.wait)
    assert sorted(p.name for p in folder.iterdir()) == kept
    used = sum(p.stat().st_blocks * 512 for p in folder.iterdir())
    assert scene.cache.stats().used - scene.cache.stats().beside == used


@pytest.mark.parametrize("harm", ["missing", "empty", "garbage", "cut", "directory", "stale"])
async def test_a_damaged_index_is_made_anew_and_costs_no_byte(scene, harm):
    if not scene.restart:
        pytest.skip("only after a restart")
    index = scene.root / "index.db"
    content = index.read_bytes()
    index.unlink()
    if harm == "directory":
        index.mkdir()
    elif harm != "missing":
        garbage = random.Random(2).randbytes(len(content))
        index.write_bytes({"empty": b"", "garbage": garbage, "cut": content[:9000]}.get(harm, content))
    if harm == "stale":
        with sqlite3.connect(index) as db:
            db.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")
            db.execute("UPDATE objects SET key = replace(key, substr(key, 9), 'gone'), used = 1 << 40")
        db.close()
    await scene.again()
    await asyncio.to_thread(scene.cache.catalogue.keeper.looked.wait)
    assert await scene.read(0, SIZE) == scene.data
    assert scene.origin.sent == SIZE
    used = sum(p.stat().st_blocks * 512 for p in scene.files)
    assert scene.cache.stats().used - scene.cache.stats().beside == used
    assert await scene.cache.purge(dry_run=True) == []


async def test_a_folder_that_vanishes_under_a_running_cache_is_made_again(tmp_path):
    scene = Scene(tmp_path / "cache", restart=False)
    await scene.fill()
    shutil.rmtree(scene.root / "objects")
    for _ in range(2):
        assert await scene.read(0, SIZE) == scene.data
    assert scene.cache.stats().counts["disk_errors"] == 0
    assert (await scene.cache.stat("/f")).size == SIZE
    await scene.cache.close()


async def test_c9_a_disk_that_takes_nothing_costs_no_client_its_bytes(tmp_path, monkeypatch):
    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    scene = Scene(tmp_path / "cache", restart=False)
    upload = await scene.origin.create("/f", size=SIZE)
    await upload.write(scene.data)
    await upload.commit()
    monkeypatch.setattr(os, "pwrite", full)
    assert await scene.read(0, SIZE) == scene.data
    assert scene.cache.stats().counts["disk_errors"] > 0
    monkeypatch.undo()
    assert await scene.read(0, SIZE) == scene.data
    await scene.cache.close()
