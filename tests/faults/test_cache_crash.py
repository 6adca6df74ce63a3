"""``kill -9`` at any instant of a fill (C8): afterwards no wrong byte, and what was kept is still there."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.store.file import FileStore

FILES = 6
SIZE = 3_000_003

FILLER = """
import asyncio, random, sys
from pathlib import Path
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.store.file import FileStore

async def main(cache_root, origin_root, seed):
    rng = random.Random(seed)
    origin = FileStore(Path(origin_root), read_only=True)
    # Small enough that purges run among the fills.
    cache = CacheStore(Path(cache_root), Origins(origin), Cache(size=14_000_000, file_lifetime=0.01))
    print("ready", flush=True)

    async def client(n):
        while True:
            name = rng.choice(sorted(p.name for p in Path(origin_root).iterdir() if p.is_file()))
            reader = await cache.open("/" + name)
            for _ in range(8):
                a = rng.randrange(reader.stat.size)
                b = min(reader.stat.size, a + rng.randrange(1, 700_000))
                await reader.read(a, b)
            await reader.close()

    await asyncio.gather(*(client(n) for n in range(4)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


class Counted(FileStore):
    """Counts what it sends."""

    sent = 0

    async def open(self, path):
        reader = await super().open(path)
        inner = reader.read

        async def read(start, stop):
            Counted.sent += stop - start
            return await inner(start, stop)

        reader.read = read
        return reader


async def _compare(cache_root: Path, origin_root: Path) -> int:
    """Read everything through the cache and compare; the bytes that were warm."""
    Counted.sent = 0
    cache = CacheStore(cache_root, Origins(Counted(origin_root, read_only=True)), Cache())
    for path in sorted(p for p in origin_root.iterdir() if p.is_file()):
        reader = await cache.open("/" + path.name)
        got = b"".join(
            [bytes(await reader.read(a, min(a + 1_000_000, SIZE))) for a in range(0, SIZE, 1_000_000)]
        )
        assert got == path.read_bytes(), path.name
        await reader.close()
    await cache.close()
    return FILES * SIZE - Counted.sent


def test_a_cache_killed_in_the_middle_of_fills_five_times_never_serves_a_wrong_byte(tmp_path):
    rng = random.Random(7)
    origin, cache = tmp_path / "origin", tmp_path / "cache"
    origin.mkdir()
    for n in range(FILES):
        (origin / f"f{n}").write_bytes(rng.randbytes(SIZE))
    for round_ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", FILLER, str(cache), str(origin), str(round_)],
            stdout=subprocess.PIPE,
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(0.05 + 0.3 * rng.random())
            assert child.poll() is None, "the filler must be killed, not end by itself"
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
        if round_ == 2:  # the origin changes while the cache is down
            (origin / "new").write_bytes(rng.randbytes(SIZE))
            (origin / "new").rename(origin / "f0")
    assert asyncio.run(_compare(cache, origin)) > 0, "a kill must not cost what was already kept"
    assert asyncio.run(_compare(cache, origin)) > 0.9 * FILES * SIZE
