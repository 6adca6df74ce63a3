"""``kill -9`` in the middle of pins, purges, prestages and evicts: what was promised is still there."""

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

FILES = 12
SIZE = 1_000_003

BUSY = """
import asyncio, random, sys
from pathlib import Path
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import Conflict, DomaError, NotFound
from doma.store.file import FileStore

async def main(cache_root, origin_root, seed):
    rng = random.Random(seed)
    config = Cache(size=8_000_000, low=0.3, file_lifetime=0.05, pin_quota=0.4, pin_share=0.4)
    cache = CacheStore(Path(cache_root), Origins(FileStore(Path(origin_root), read_only=True)), config)
    print("ready", flush=True)

    async def worker(n):
        while True:
            path = f"/f{rng.randrange(12)}"
            try:
                match n:
                    case 0:
                        await (await cache.prestage(path)).done()
                    case 1:
                        await cache.pin(path, "me", 1000)
                        print("pinned", path, flush=True)  # said only once it was done
                        await asyncio.sleep(0.01)
                    case 2:
                        await cache.purge()
                    case 3:
                        await cache.evict(path, immediate=True, force=rng.random() < 0.3)
                    case 4:
                        await cache.verify(path)
            except DomaError:
                await asyncio.sleep(0.001)

    await asyncio.gather(*(worker(n) for n in range(5)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def _look(root: Path, origin: Path, pinned: set[str]) -> None:
    """A cache over what was left: pins stand, usage is that of the disk, every byte is right."""
    cache = CacheStore(root, Origins(FileStore(origin, read_only=True)), Cache(size=1 << 30))
    keeper = cache.catalogue.keeper
    assert {pin.path for pin in await cache.pins.pins("me")} == pinned
    await asyncio.to_thread(keeper.looked.wait)
    await asyncio.to_thread(keeper.total)
    used = sum(os.lstat(p).st_blocks * 512 for p in [root, *root.rglob("*")])
    assert abs(cache.stats().used - used) <= 0.01 * used
    rows = {row.path: row for row in await cache.holdings_below("/")}
    assert [holding.path for holding in await cache.holdings(sorted(rows)) if holding.size is None] == []
    for n in range(FILES):
        reader = await cache.open(f"/f{n}")
        assert bytes(await reader.read(0, SIZE)) == (origin / f"f{n}").read_bytes()
        await reader.close()
    await cache.purge()
    await cache.close()


def test_a_cache_killed_among_its_commands_keeps_pins_and_counts_right(tmp_path: Path) -> None:
    rng = random.Random(11)
    origin, root = tmp_path / "origin", tmp_path / "cache"
    origin.mkdir()
    for n in range(FILES):
        (origin / f"f{n}").write_bytes(rng.randbytes(SIZE))
    pinned: set[str] = set()
    for seed in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(root), str(origin), str(seed)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.2 + 0.4 * rng.random())
            assert child.poll() is None, "it must be killed, not end by itself"
        finally:
            os.kill(child.pid, signal.SIGKILL)
            out, _ = child.communicate()
        pinned |= {line.split()[1] for line in out.splitlines() if line.startswith("pinned ")}
        assert pinned
        # A pin may have been written in the instant before its word could be said.
        asyncio.run(_look(root, origin, _with_unsaid(root, pinned)))


def _with_unsaid(root: Path, said: set[str]) -> set[str]:
    """The pins on disk, at most one more than was said."""
    from doma.cache.index import Index

    index = Index(root / "index.db")
    found = {pin.path for pin in index.pins(time.time())}
    index.close(clean=False)
    assert said <= found
    assert len(found - said) <= 1
    said |= found
    return found
