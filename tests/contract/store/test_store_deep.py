"""Trees deeper than any path that clients can name: others make them, or moves of trees into each other."""

import os
import subprocess
import sys

import pytest

from doma.core.errors import BadPath, NotFound, StorageFull
from doma.store.file import FileStore
from doma.store.quota import Quota

DEPTH = sys.getrecursionlimit() + 100


def grow(top, depth, size=1):
    """Directories below each other with a file in each."""
    top.mkdir(exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        file = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        os.write(file, bytes(size))
        os.close(file)
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.fixture
def place(tmp_path):
    """A folder; what a failed test leaves in it could not be removed by pytest."""
    yield tmp_path
    subprocess.run(["find", tmp_path, "-mindepth", "1", "-delete"], check=True)


@pytest.fixture
async def store(place):
    grow(place / "top", DEPTH)
    made = FileStore(place, fsync=False, quota=Quota({"/": 2 * DEPTH, "/vo": DEPTH - 1}))
    yield made
    await made.close()


async def test_a_tree_of_any_depth_is_counted_and_deleted(store, place):
    assert (await store.space()).used == DEPTH
    await store.delete("/top", recursive=True)
    assert (await store.space()).used == 0
    with pytest.raises(NotFound):
        await store.stat("/top")
    assert os.listdir(place / ".doma" / "gone") == []


async def test_a_move_of_a_deep_tree_is_weighed_whole(store):
    with pytest.raises(StorageFull):
        await store.rename("/top", "/vo")
    assert (await store.stat("/top")).is_dir
    await store.rename("/top/d", "/vo")
    assert (await store.space_at("/vo")).used == DEPTH - 1


async def test_what_a_kill_left_of_a_deep_tree_goes_at_the_next_start(place):
    await FileStore(place, fsync=False).close()
    grow(place / ".doma" / "gone" / "x", DEPTH)
    await FileStore(place, fsync=False).close()
    assert os.listdir(place / ".doma" / "gone") == []


async def test_no_name_leads_deeper_than_clients_may_go(store):
    with pytest.raises(BadPath):
        await store.stat("/top" + "/d" * 200)


async def test_deleting_a_tree_follows_no_link_and_keeps_what_it_may_not_touch(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_bytes(b"kept")
    store = FileStore(tmp_path / "store", fsync=False)
    tree = tmp_path / "store" / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "full" / "more").mkdir(parents=True)
    (tree / "full" / "more" / "file").write_bytes(b"1")
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "full" / "link").symlink_to(tmp_path / "outside" / "kept")
    await store.delete("/tree", recursive=True)
    await store.close()
    assert os.listdir(tmp_path / "store" / ".doma" / "gone") == []
    assert (tmp_path / "outside" / "kept").read_bytes() == b"kept"
