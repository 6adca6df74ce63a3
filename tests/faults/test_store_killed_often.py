"""``kill -9`` at random points of many uploads: nothing partial, nothing lost that was told, no litter."""

import os
import subprocess
import sys
import zlib

import pytest

from doma.store.file import FileStore
from doma.store.quota import Quota

pytestmark = pytest.mark.fault

ROUNDS = 50

# One interpreter that forks: a new one for each round would cost most of the time.
CHILDREN = """
import asyncio, os, random, signal, sys, time
from pathlib import Path
from doma.store.file import FileStore
from doma.store.quota import Quota

root, rounds = Path(sys.argv[1]), int(sys.argv[2])

async def main(number, out):
    rng = random.Random(number)
    store = FileStore(root, fsync=rng.random() < 0.3, quota=Quota({"/": 1 << 30}))
    while True:
        name, kind = f"/d{rng.randrange(3)}/f{rng.randrange(8)}", rng.randrange(8)
        os.write(out, f"{name} begins -\\n".encode())
        data = bytes([rng.randrange(256)]) * rng.choice([0, 10, 4096, 300_000, 2_000_000])
        if kind == 0:
            try:
                await store.delete(name)
            except Exception as e:
                if type(e).__name__ != "NotFound":
                    raise
            os.write(out, f"{name} gone -\\n".encode())
            continue
        if kind == 1:
            upload = await store.resume(name, f"k{number}", size=len(data))
        else:
            upload = await store.create(name, size=len(data) if kind > 3 else None)
        for at in range(0, len(data), 100_000):
            await upload.write(data[at : at + 100_000])
        stat = await upload.commit()
        os.write(out, f"{name} {stat.version} {stat.checksums['adler32']}\\n".encode())

for number in range(rounds):
    pid = os.fork()
    if not pid:
        asyncio.run(main(number, 1))
    time.sleep(random.Random(number).uniform(0.01, 0.12))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.write(1, b"killed\\n")
    sys.stdin.readline()
"""


def files(root):
    for folder, _, names in os.walk(root):
        if ".doma" not in folder:
            for name in names:
                yield os.path.join(folder, name)


async def test_uploads_killed_at_fifty_random_points(tmp_path):
    root = tmp_path / "store"
    root.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(root), str(ROUNDS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    under_way = ""
    landed, now = 0, dict[str, tuple[str, str]]()
    for _ in range(ROUNDS):
        while (line := child.stdout.readline()) != b"killed\n":
            assert line, "the children ended"
            name, version, adler = line.decode().split()
            if version == "begins":
                under_way = name
            else:
                now[name] = (version, adler)
                landed += version != "gone"
        store = FileStore(root, fsync=False, quota=Quota({"/": 1 << 30}))
        assert os.listdir(root / ".doma" / "new") == []
        total, there = 0, dict[str, tuple[str, str]]()
        for place in files(root):
            stat = await store.stat("/" + os.path.relpath(place, root))
            with open(place, "rb") as file:
                data = file.read()
            assert stat.checksums["adler32"] == f"{zlib.adler32(data):08x}", "whole, and what it says"
            assert len(set(data)) <= 1, "of one upload"
            there[stat.path] = (stat.version, stat.checksums["adler32"])
            total += len(data)
        for name, last in now.items():
            assert name == under_way or there.get(name, ("gone", "-")) == last
        # What was under way has happened or not; from here on it is as it is.
        now[under_way] = there.get(under_way, ("gone", "-"))
        assert (await store.space()).used == total
        await store.close()
        child.stdin.write(b"\n")
        child.stdin.flush()
    child.communicate()
    assert child.returncode == 0
    assert landed > ROUNDS
