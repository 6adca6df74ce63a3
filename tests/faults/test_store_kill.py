"""``kill -9`` in the middle of an upload, at many points: the old or the new file, whole, no litter."""

import os
import signal
import subprocess
import sys
import zlib

import pytest

from doma.store.file import FileStore

pytestmark = pytest.mark.fault

CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from doma.store import folder
from doma.store.file import FileStore

point, root, fsync = sys.argv[1], Path(sys.argv[2]), True
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def before(module, name, count=1):
    real, seen = getattr(module, name), [0]
    def call(*args, **kwargs):
        seen[0] += 1
        if seen[0] == count:
            die()
        return real(*args, **kwargs)
    setattr(module, name, call)

async def main():
    store = FileStore(root)
    upload = await store.create("/d/new/f" if point == "mkdir" else "/f", if_absent=point == "unlink")
    for i in range(4):
        await upload.write(bytes([i]) * 500_000)
        if point == f"write{i}":
            die()
    if point in {"fsync", "rename", "link", "unlink", "setxattr", "utime", "mkdir"}:
        before(os, {"link": "rename"}.get(point, point))
    if point == "synced":
        before(os, "fsync", 2)
    await upload.commit()
    die()

asyncio.run(main())
"""

POINTS = ["write0", "write3", "utime", "setxattr", "fsync", "rename", "synced", "done"]
NEW = b"".join(bytes([i]) * 500_000 for i in range(4))


def run_child(point, root):
    child = subprocess.run([sys.executable, "-c", CHILD, point, str(root)], timeout=60, check=False)
    assert child.returncode == -signal.SIGKILL


async def content(store, path):
    reader = await store.open(path)
    size = reader.stat.size
    return b"".join([bytes(await reader.read(i, min(i + 500_000, size))) for i in range(0, size, 500_000)])


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_upload_leaves_the_old_file_or_the_new_one(tmp_path, point):
    old = b"old" * 500_000
    (tmp_path / "f").write_bytes(old)
    run_child(point, tmp_path)
    store = FileStore(tmp_path, fsync=False)
    found = await content(store, "/f")
    assert found == (NEW if point in {"synced", "done"} else old)
    assert await store.checksum("/f", "adler32") == f"{zlib.adler32(found):08x}"
    assert os.listdir(tmp_path / ".doma" / "new") == []
    upload = await store.create("/f")
    await upload.write(b"again")
    await upload.commit()
    assert await content(store, "/f") == b"again"
    await store.close()


@pytest.mark.parametrize("point", ["unlink", "write3"])
async def test_a_killed_exclusive_upload_leaves_the_whole_file_or_none(tmp_path, point):
    run_child(point, tmp_path)
    store = FileStore(tmp_path, fsync=False)
    assert os.listdir(tmp_path / ".doma" / "new") == []
    if point == "unlink":  # it had its name already, its temporary name was to go
        assert await content(store, "/f") == NEW
        assert (tmp_path / "f").stat().st_nlink == 1
    else:
        assert [entry.path async for entry in store.list("/")] == []
    await store.close()


async def test_a_half_deleted_tree_is_gone_at_once_and_swept_later(tmp_path):
    store = FileStore(tmp_path, fsync=False)
    (tmp_path / ".doma" / "gone" / "tree" / "deep").mkdir(parents=True)
    (tmp_path / ".doma" / "gone" / "tree" / "deep" / "file").write_bytes(b"x")
    await store.close()
    again = FileStore(tmp_path, fsync=False)
    assert os.listdir(tmp_path / ".doma" / "gone") == []
    await again.close()
