"""A hot file is served only while its path leads to it, whoever moves things on the disk."""

import asyncio
import os

import pytest

from doma.store.content import LOOK
from doma.store.file import FileStore


@pytest.fixture
async def store(tmp_path):
    one = FileStore(tmp_path, fsync=False)
    upload = await one.create("/a/b/f")
    await upload.write(b"old")
    await upload.commit()
    reader = await one.open("/a/b/f")
    await reader.read(0, 3)
    assert one.peek("/a/b/f") is not None
    assert one.peek("/a/b/f").view(0, 3) == b"old"
    yield one
    await one.close()


def _replace(folder):
    (folder / "new").write_bytes(b"new")
    (folder / "new").rename(folder / "a/b/f")


@pytest.mark.parametrize(
    "change",
    [
        _replace,
        lambda folder: (folder / "a/b/f").unlink(),
        lambda folder: (folder / "a/b/f").rename(folder / "a/b/g"),
        lambda folder: os.truncate(folder / "a/b/f", 1),
    ],
    ids=["replaced", "removed", "renamed", "cut"],
)
async def test_what_another_program_does_to_a_file_is_seen_at_once(store, tmp_path, change):
    await asyncio.sleep(0.02)  # a coarse kernel clock moves on, so that the change has a time of its own
    change(tmp_path)
    assert store.peek("/a/b/f") is None


async def test_a_folder_moved_by_another_program_is_seen_soon(store, tmp_path):
    (tmp_path / "a").rename(tmp_path / "z")
    await asyncio.sleep(2 * LOOK)
    assert store.peek("/a/b/f") is None


async def test_a_folder_moved_by_the_store_is_seen_at_once(store):
    await store.rename("/a", "/z")
    assert store.peek("/a/b/f") is None
    reader = await store.open("/z/b/f")
    assert bytes(await reader.read(0, 3)) == b"old"
