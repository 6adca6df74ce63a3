"""Quotas: what may lie below a path, counted through everything that can happen to files."""

import os
import random
import signal
import subprocess
import sys

import pytest

from doma.core.errors import ConfigError, DomaError, StorageFull
from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from doma.store.protocol import CanQuota
from doma.store.quota import Quota

LIMITS = {"/": 100_000, "/vo": 10_000, "/vo/user": 1000}


@pytest.fixture(params=["memory", "file"])
async def store(request, tmp_path):
    quota = Quota(LIMITS)
    made = (
        MemoryStore(quota=quota)
        if request.param == "memory"
        else FileStore(tmp_path / "s", fsync=False, quota=quota)
    )
    assert isinstance(made, CanQuota)
    yield made
    await made.close()


async def put(store, path, size, announced=True):
    upload = await store.create(path, size=size if announced else None)
    try:
        for start in range(0, size, 300):
            await upload.write(b"x" * min(300, size - start))
        await upload.commit()
    except DomaError:
        await upload.abort()
        raise


async def used(store):
    return [(await store.space_at(path)).used for path in ("/", "/vo/a", "/vo/user/a")]


async def test_bytes_count_for_all_prefixes_above(store):
    assert await used(store) == [0, 0, 0]
    await put(store, "/vo/user/f", 400)
    await put(store, "/vo/g", 30)
    await put(store, "/other", 5)
    assert await used(store) == [435, 430, 400]
    space = await store.space_at("/vo/user/x")
    assert (space.used, space.available) == (400, 600)
    assert (await store.space_at("/vouser")).used == 435


@pytest.mark.parametrize("announced", [True, False])
async def test_what_does_not_fit_is_refused_and_leaves_nothing(store, announced):
    await put(store, "/vo/user/f", 900)
    with pytest.raises(StorageFull, match="quota of /vo/user"):
        await put(store, "/vo/user/g", 101, announced)
    assert await used(store) == [900, 900, 900]
    await put(store, "/vo/user/g", 100, announced)
    await put(store, "/vo/user/f", 900, announced)
    with pytest.raises(StorageFull):
        await put(store, "/vo/user/f", 901, announced)
    await store.delete("/vo/user/g")
    await put(store, "/vo/user/f", 1000, announced)


async def test_room_is_set_aside_at_the_start(store):
    first = await store.create("/vo/user/f", size=700)
    with pytest.raises(StorageFull):
        await store.create("/vo/user/g", size=400)
    assert (await store.space_at("/vo/user")).available == 300
    await first.abort()
    await put(store, "/vo/user/g", 400)


async def test_a_move_must_fit_where_it_goes(store):
    await put(store, "/d/f", 600)
    await put(store, "/d/g", 600)
    await store.make_dir("/vo")
    await store.make_dir("/vo/user")
    with pytest.raises(StorageFull):
        await store.rename("/d", "/vo/user/d")
    assert await used(store) == [1200, 0, 0]
    await store.rename("/d/f", "/vo/user/f")
    assert await used(store) == [1200, 600, 600]
    await store.rename("/vo/user", "/vo/people")
    assert await used(store) == [1200, 600, 0]
    await store.delete("/vo", recursive=True)
    assert await used(store) == [600, 0, 0]


async def test_the_counters_agree_with_a_count_after_any_walk(store):
    rng = random.Random(3)
    folders = ["/vo", "/vo/user", "/vo/else", "/d"]
    for folder in folders:
        await store.make_dir(folder)
    names = [f"{folder}/{name}" for folder in folders for name in "abc"]
    for _ in range(300):
        one, other = rng.choice(names), rng.choice(names)
        try:
            match rng.randrange(5):
                case 0 | 1 | 2:
                    await put(store, one, rng.randrange(400), rng.random() < 0.5)
                case 3:
                    await store.delete(one)
                case _:
                    await store.rename(one, other)
        except DomaError:
            continue
    sizes = {}
    for folder in folders:
        sizes |= {e.path: e.size async for e in store.list(folder) if not e.is_dir}
    assert await used(store) == [
        sum(size for path, size in sizes.items() if path.startswith(prefix))
        for prefix in ("/", "/vo/", "/vo/user/")
    ]


async def test_parts_are_held_while_a_request_brings_them(tmp_path):
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000}))
    upload = await store.resume("/f", "k", size=900)
    await upload.write(b"x" * 500)
    with pytest.raises(StorageFull):
        await store.create("/g", size=200)
    await upload.pause()
    await put(store, "/g", 50)
    upload = await store.resume("/f", "k", size=900)
    await upload.write(b"x" * 400)
    await upload.commit()
    assert (await store.space_at("/")).used == 950
    await store.close()


async def test_parts_that_wait_let_no_more_be_begun_than_fits(tmp_path):
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 5000, "/vo": 1000}))
    for key, size in (("a", 600), ("b", 300)):
        waiting = await store.resume(f"/vo/{key}", key, size=size)
        await waiting.write(b"x" * (size - 1))
        await waiting.pause()
    with pytest.raises(StorageFull, match="900 bytes of the quota of /vo, and 800 are left"):
        await store.resume("/vo/c", "c", size=200)
    assert not [name for name in os.listdir(tmp_path / ".doma" / "parts") if name.startswith("c")]
    other = await store.resume("/elsewhere", "d", size=200)
    await other.pause()
    again = await store.resume("/vo/a", "a", size=600)
    await again.abort()
    begun = await store.resume("/vo/c", "c", size=200)
    await begun.write(b"y" * 200)
    await begun.commit()
    assert (await store.space_at("/vo")).used == 200
    await put(store, "/vo/whole", 800)  # what waits is in nobody's way but that of others like it
    await store.close()


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
from doma.store.file import FileStore
from doma.store.quota import Quota
async def main():
    store = FileStore(Path(sys.argv[1]), fsync=False, quota=Quota({"/": 1000}))
    upload = await store.create("/mine", size=100)
    await upload.write(b"x" * 100)
    await upload.commit()
    held = await store.create("/never", size=700)
    print("here", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    await store.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_processes_count_together_and_a_dead_one_holds_nothing(tmp_path, program, end):
    (tmp_path / "old").write_bytes(b"x" * 50)
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000}))
    child = program(
        [sys.executable, "-c", CHILD, str(tmp_path), end], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"here\n"
    space = await store.space_at("/")
    assert (space.used, space.available) == (150, 150)
    with pytest.raises(StorageFull):
        await store.create("/f", size=151)
    child.communicate(b"\n", timeout=30)
    assert child.returncode == (-signal.SIGKILL if end == "kill" else 0)
    another = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000}))
    assert (await store.space_at("/")).available == 850
    await another.close()
    await store.close()


async def test_the_tree_is_counted_again_after_a_kill_or_other_prefixes(tmp_path, program):
    child = program(
        [sys.executable, "-c", CHILD, str(tmp_path), "kill"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.communicate(b"\n", timeout=30)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "aside").write_bytes(b"x" * 7)
    os.symlink("/etc/passwd", tmp_path / "d" / "link")
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000}))
    assert (await store.space_at("/")).used == 107
    await store.close()
    (tmp_path / "unseen").write_bytes(b"x" * 7)
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000}))
    assert (await store.space_at("/")).used == 107, "an orderly end needs no count"
    await store.close()
    store = FileStore(tmp_path, fsync=False, quota=Quota({"/": 1000, "/d": 10}))
    assert ((await store.space_at("/")).used, (await store.space_at("/d")).used) == (114, 7)
    await store.close()


def test_a_prefix_is_a_path():
    with pytest.raises((ConfigError, DomaError)):
        Quota({"vo": 5})
    with pytest.raises(DomaError):
        Quota({"/vo": 5, "/vo/": 6})
