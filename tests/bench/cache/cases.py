"""What the caches are put through, row by row, with the bars that ours must hold."""

import itertools
import os
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench.cache import http_load, nano, root_load
from tests.bench.cache.caches import KINDS, Cache, Caches
from tests.bench.dataplane_load import percentile
from tests.bench.storage_sites import cpu_of, quiet

MIB = 1 << 20
Round = Callable[[Cache], float]
"""Puts a cache through one round; the figure."""


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        name: What is done.
        unit: Of the figure.
        round: One round.
        bars: The most that our figure may be over another's (its kind), or at all (``""``); for rates the
            least.
        rate: More is better.
        kinds: Who takes part.
        over: What they must speak.
    """

    name: str
    unit: str
    round: Round
    bars: tuple[tuple[str, float], ...]
    rate: bool = False
    kinds: tuple[str, ...] = KINDS
    over: str = "http"

    @property
    def cpu(self) -> bool:
        """Whether the figure is CPU: noise only adds to it, so the lowest one counts."""
        return self.unit in {"us", "s/GB"}

    def figure(self, rounds: list[float]) -> float:
        """What counts of several rounds; of what must never happen, the worst."""
        if self.name == "herd":
            return max(rounds)
        return min(rounds) if self.cpu else median(rounds)

    @property
    def most(self) -> int:
        """Rounds that suffice: what an origin sends for the same reads hardly differs."""
        return 2 if self.unit.startswith("origin/") else 100

    @property
    def cold(self) -> bool:
        """Whether each round begins anew, so that none has to warm."""
        return not self.cpu and self.name != "stall"


class Cases:
    """The rounds themselves.

    Args:
        made: The caches.
        folder: For other files.
        quick: Smaller files, fewer requests.
    """

    def __init__(self, made: Caches, folder: Path, quick: bool) -> None:
        self.made, self.folder, self.quick = made, folder, quick
        self.size = (256 if quick else 1024) * MIB
        self.count = 2000 if quick else 10_000
        self._turn = itertools.count()
        self._warm: set[tuple[str, str]] = set()
        block = os.urandom(16 * MIB)
        with (made.files / "f").open("wb") as file:
            for _ in range(self.size // len(block)):
                file.write(block)

    def every(self) -> list[Case]:
        """All rows, with the bars of the cache."""
        two = ("xcache", "doma")
        many = partial(self.range, parts=16, size=16384)
        readv = partial(self.root, what=root_load.READV, size=16384, parts=16)
        pgread = partial(self.root, what=root_load.PGREAD)
        over_root = partial(self.coffea, scheme="root")
        return [
            Case("http 64 KiB warm", "us", self.range, (("xcache", 0.35), ("nginx", 1.3))),
            Case("http 16 x 16 KiB warm", "us", many, (("xcache", 0.5),), kinds=two),
            Case("root 64 KiB warm", "us", self.root, (("xcache", 1.0),), over="root"),
            Case("root readv 16 x 16 KiB warm", "us", readv, (("xcache", 1.3),), over="root"),
            Case("root pgread 64 KiB warm", "us", pgread, (), over="root"),
            Case("xrdcp warm", "s/GB", self.xrdcp, (("xcache", 0.8),), over="root"),
            Case("curl warm", "s/GB", self.curl, (("xcache", 1.0),)),
            Case("stall", "x quiet p99", self.stall, (("", 2.0),), kinds=("doma",)),
            Case("cold random 64 KiB", "origin/given", self.cold_random, (("", 1.2),)),
            Case("herd", "x read", self.herd, (("", 1.01),)),
            Case("coffea http", "origin/columns", self.coffea, (("", 1.3),)),
            Case("coffea root", "origin/columns", over_root, (("", 1.3),), over="root"),
            Case("cold whole", "MB/s", self.cold, (("xcache", 1.0),), rate=True),
        ]

    def range(self, cache: Cache, parts: int = 1, size: int = 65536) -> float:
        """CPU of a request for random spans that are in memory."""
        self.warm(cache)
        count = self.count // (4 if parts > 1 else 1)
        where = http_load.target(cache, "/f")
        work = partial(http_load.ranges, where, count, size, self.size, parts=parts)
        return 1e6 / count * spent(cache, work)

    def root(self, cache: Cache, what: int = root_load.READ, size: int = 65536, parts: int = 1) -> float:
        """The same over root://."""
        self.warm(cache, "root")
        count = self.count // (2 if parts > 1 else 1)
        opened = [root_load.Connection(cache.url("/f", "root"), cache.token) for _ in range(8)]
        try:
            return 1e6 / count * spent(cache, lambda: root_load.run(opened, what, count, size, parts))
        finally:
            for connection in opened:
                connection.close()

    def xrdcp(self, cache: Cache) -> float:
        """CPU of a whole warm file, read with its page sums."""
        self.warm(cache, "root")
        times = 4 if self.quick else 2
        return spent(cache, lambda: [http_load.xrdcp(cache, "/f") for _ in range(times)]) / self.gb / times

    def curl(self, cache: Cache) -> float:
        """CPU of a whole warm file."""
        self.warm(cache)
        times = 8 if self.quick else 4
        work = partial(http_load.curl, cache, "/f", self.folder, self.size)
        return spent(cache, lambda: [work() for _ in range(times)]) / self.gb / times

    def stall(self, cache: Cache) -> float:
        """The slowest of a hundred warm reads while 64 clients wait for an origin that does not answer."""
        self.warm(cache)
        where = http_load.target(cache, "/f")
        work = partial(http_load.ranges, where, self.count, 65536, self.size)
        work()
        calm = percentile(work(), 0.99)
        with ExitStack() as stack:
            for number in range(64):
                sock = stack.enter_context(where.dial(tls=False))
                sock.sendall(where.request(path=f"/stalled/{next(self._turn)}-{number}"))
            time.sleep(0.5)
            return percentile(work(), 0.99) / calm

    def cold_random(self, cache: Cache) -> float:
        """What the origin sent over what the clients got."""
        path, count = self.fresh("f"), 100 if self.quick else 400
        before = cache.origin.sent
        http_load.ranges(http_load.target(cache, path), count, 65536, self.size, seed=next(self._turn))
        self.settle(cache)
        return (cache.origin.sent - before) / (count * 65536)

    def herd(self, cache: Cache) -> float:
        """How often the origin was read for 16 readers of one cold file."""
        path, before = self.fresh("f"), cache.origin.sent
        http_load.herd(http_load.target(cache, path), self.size, 16)
        self.settle(cache)
        self.forget(cache, path)
        return (cache.origin.sent - before) / self.size

    def coffea(self, cache: Cache, scheme: str = "http") -> float:
        """What the origin sent for five columns over what they take in the file."""
        if not (self.made.files / "nano.root").exists():
            nano.make(self.made.files / "nano.root", 20_000 if self.quick else 100_000)
        path, before = self.fresh("nano.root"), cache.origin.sent
        nano.analyse(cache.url(path, scheme), cache.token, self.folder)
        self.settle(cache)
        return (cache.origin.sent - before) / nano.weight(self.made.files / "nano.root")

    def cold(self, cache: Cache) -> float:
        """Rate at which one client reads a whole file that is not there."""
        path = self.fresh("f")
        seconds = http_load.curl(cache, path, self.folder, self.size)
        self.settle(cache)
        self.forget(cache, path)
        return self.size / 1e6 / seconds

    @property
    def gb(self) -> float:
        return self.size / 1e9

    def warm(self, cache: Cache, scheme: str = "http") -> None:
        """Read the file until it comes from the cache, and from memory."""
        if (cache.kind, scheme) in self._warm:
            return
        self._warm.add((cache.kind, scheme))
        for _ in range(3):
            before = cache.origin.sent
            if scheme == "root":
                http_load.xrdcp(cache, "/f")
            else:
                http_load.whole(http_load.target(cache, "/f"), self.size)
            self.settle(cache)
        assert cache.origin.sent - before < self.size / 100, f"{cache.kind} does not keep the file"

    def fresh(self, name: str) -> str:
        """A new path of the origin with the content of a file."""
        path = f"/{next(self._turn)}-{name}"
        os.link(self.made.files / name, self.made.files / path[1:])
        return path

    def settle(self, cache: Cache) -> None:
        """Wait until the cache fetches no more."""
        sent = -1
        while sent != cache.origin.sent:
            sent = cache.origin.sent
            quiet(0.5)

    def forget(self, cache: Cache, path: str) -> None:
        """Take a file out of the cache, so that disk and memory last."""
        if cache.kind == "doma":
            query = urllib.parse.urlencode({"path": path, "immediate": "true"})
            address = f"http://127.0.0.1:{cache.http}/pelican/api/v1.0/evict?{query}"
            asked = urllib.request.Request(address, headers={"Authorization": f"Bearer {cache.token}"})
            urllib.request.urlopen(asked, timeout=30).close()
        elif cache.kind == "xcache":
            for tail in ("", ".cinfo"):
                (cache.kept / (path[1:] + tail)).unlink(missing_ok=True)
        else:
            self._warm.discard((cache.kind, "http"))
            for part in cache.kept.iterdir():
                shutil.rmtree(part, ignore_errors=True)


def spent(cache: Cache, work: Callable[[], object]) -> float:
    """Seconds on a core of a whole cache for this work."""
    quiet()
    before = cpu_of(cache.pid)
    work()
    quiet()
    return cpu_of(cache.pid) - before
