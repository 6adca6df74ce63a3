"""A storage element against XRootD's: copies, large and small files, listings; CPU of both ends, and rates.

    python tests/bench/bench_storage.py [--quick] [--json FILE] [--only WORDS] [--dir FOLDER]

Two servers of each kind (``storage_sites.py``) over TLS with a token, driven by the same clients
(``storage_load.py``). Rounds alternate between the kinds; a figure is the median of its rounds, a ratio
the median of the ratios of neighbouring rounds. CPU is that of all processes of both ends of a copy, or of
the one server. XRootD verifies no checksum of what it pulls; ours does.

Files lie in memory (``/dev/shm``) where that has room. On a disk the file system would be measured instead:
after mass deletes ext4 looks for an inode for a millisecond, at either server.

As root it runs in a network namespace of its own, for the reasons told in ``bench_dataplane.py``.

Needs curl and Debian's xrootd-server, xrootd-server-plugins, xrootd-plugins, xrootd-scitokens-plugins.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.bench_dataplane import own_network
from tests.bench.storage_load import Curl, Wire
from tests.bench.storage_sites import Site, Sites, cpu, memory, quiet, sites, tree
from tests.clients.xrootd_server import missing

MIB = 1 << 20
Work = Callable[[str], float]
"""Does one round with the servers of a kind; seconds."""


@dataclass(frozen=True)
class Case:
    """One row.

    Args:
        name: What is done.
        amount: Units of work a round.
        unit: Of the work, for CPU and rate.
        work: One round.
        servers: Whose CPU counts, by kind.
        cpu_at_most: Target for our CPU over theirs; None: none.
        rate_at_least: Target for our rate over theirs; None: none.
        kinds: Theirs, then ours.
        before, after: What makes ready for a round and clears up behind it; not measured.
    """

    name: str
    amount: float
    unit: str
    work: Work
    servers: Callable[[str], tuple[Site, ...]]
    cpu_at_most: float | None = None
    rate_at_least: float | None = None
    kinds: tuple[str, str] = ("xrootd", "doma")
    before: Work | None = None
    after: Work | None = None


@dataclass
class Bench:
    """Runs cases and keeps their rows."""

    rounds: int
    only: str
    baseline: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def compare(self, case: Case) -> None:
        """Alternate between the kinds; print and keep the medians."""
        if self.only and not any(word in case.name for word in self.only.split(",")):
            return
        if self.baseline and "doma" in case.kinds[0]:
            return
        kinds = case.kinds[:1] if self.baseline else case.kinds
        spent: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(self.rounds + 1):
            for kind in kinds if turn % 2 else reversed(kinds):
                if case.before:
                    case.before(kind)
                    quiet()
                before = cpu(*case.servers(kind))
                seconds = case.work(kind)
                quiet()
                used = cpu(*case.servers(kind)) - before
                if case.after:
                    case.after(kind)
                if turn:  # the first round warms
                    spent[kind].append((used / case.amount, case.amount / seconds))
        row: dict[str, Any] = {"name": case.name, "unit": case.unit}
        for kind in kinds:
            row[kind] = {
                "cpu": statistics.median(c for c, _ in spent[kind]),
                "rate": statistics.median(r for _, r in spent[kind]),
            }
        if len(kinds) == 2:
            both = list(zip(*(spent[kind] for kind in kinds), strict=True))
            row["cpu_ratio"] = statistics.median(ours[0] / max(theirs[0], 1e-9) for theirs, ours in both)
            row["rate_ratio"] = statistics.median(ours[1] / theirs[1] for theirs, ours in both)
            row["holds"] = (case.cpu_at_most is None or row["cpu_ratio"] <= case.cpu_at_most) and (
                case.rate_at_least is None or row["rate_ratio"] >= case.rate_at_least
            )
        self.rows.append(row)
        self._show(case, row)

    def _show(self, case: Case, row: dict[str, Any]) -> None:
        words = [f"{case.name:34}"]
        for kind in case.kinds:
            if kind in row:
                each = row[kind]
                words.append(
                    f"{kind:>14} {each['cpu'] * 1e3:9.2f} ms/{case.unit} {each['rate']:9.2f} {case.unit}/s"
                )
        if "cpu_ratio" in row:
            words.append(f"  CPU x{row['cpu_ratio']:.2f}{_goal('<=', case.cpu_at_most)}")
            words.append(f"rate x{row['rate_ratio']:.2f}{_goal('>=', case.rate_at_least)}")
            if (case.cpu_at_most, case.rate_at_least) != (None, None):
                words.append("ok" if row["holds"] else "MISSED")
        print(" ".join(words), flush=True)


def _goal(sign: str, value: float | None) -> str:
    return f" ({sign}{value:g})" if value is not None else ""


class Cases:
    """The rounds themselves.

    Args:
        made: The servers.
        folder: For local files.
        quick: Smaller amounts.
    """

    def __init__(self, made: Sites, folder: Path, quick: bool) -> None:
        self.made, self.folder = made, folder
        self.size = 128 * MIB if quick else 1024 * MIB
        self.small = 1000 if quick else 10_000
        self.listed = 10_000 if quick else 100_000
        self.curl = Curl(made.token, made.ca, folder)
        self.big = folder / "big"
        block = os.urandom(16 * MIB)
        with self.big.open("wb") as file:
            for _ in range(self.size // len(block)):
                file.write(block)
        (folder / "ten").write_bytes(block[: 10 * MIB])

    def prepare(self, kinds: tuple[str, ...]) -> None:
        """Upload the sources to the first server of each kind, and ask for their digests once."""
        for kind in kinds:
            source = self.made.pair(kind)[0]
            self.curl.put(self.big, f"{source.url}/big")
            for number in range(50):
                self.curl.put(self.folder / "ten", f"{source.url}/ten/{number}")
            # XRootD makes no folders for what it pulls
            target = self.made.pair(kind)[1]
            self.curl.put(self.folder / "ten", f"{target.url}/to/one")

    def both(self, kind: str) -> tuple[Site, ...]:
        return self.made.pair(kind)

    def one(self, kind: str) -> tuple[Site, ...]:
        return self.made.pair(kind)[:1]

    def _copy(self, pairs: list[tuple[str, str, str]], targets: list[str]) -> float:
        begun = time.perf_counter()
        self.curl.copies(pairs)
        seconds = time.perf_counter() - begun
        for target in targets:
            self.curl.delete(target)
        return seconds

    def pull(self, kind: str) -> float:
        source, target = self.made.pair(kind)
        end = f"{target.url}/to/big"
        return self._copy([(end, "Source", f"{source.url}/big")], [end])

    def push(self, kind: str) -> float:
        source, target = self.made.pair(kind)
        end = f"{target.url}/to/big"
        return self._copy([(f"{source.url}/big", "Destination", end)], [end])

    def pulls(self, kind: str) -> float:
        source, target = self.made.pair(kind)
        ends = [f"{target.url}/to/{number}" for number in range(50)]
        pairs = [(end, "Source", f"{source.url}/ten/{number}") for number, end in enumerate(ends)]
        return self._copy(pairs, ends)

    def get(self, kind: str) -> float:
        begun = time.perf_counter()
        self.curl.get(f"{self.one(kind)[0].url}/big")
        return time.perf_counter() - begun

    def put(self, kind: str) -> float:
        begun = time.perf_counter()
        self.curl.put(self.big, f"{self.one(kind)[0].url}/again")
        return time.perf_counter() - begun

    def wired(
        self, kind: str, method: str, count: int, good: tuple[int, ...], more: str, body: bytes = b""
    ) -> float:
        wire = Wire(self.one(kind)[0].url, self.made.token, self.made.ca)
        try:
            address = (lambda n: "/big") if method == "PROPFIND" else (lambda n: f"/small/{n % 100}/{n}")
            made = [wire.request(method, address(n), more, body) for n in range(count)]
            seconds = wire.run(made.__getitem__, count, good)
        finally:
            wire.close()
        if method in {"PUT", "DELETE"}:
            small = self.one(kind)[0].files / "small"
            found = sum(1 for path in small.rglob("*") if path.is_file() and not path.name.startswith("."))
            assert found == (count if method == "PUT" else 0), (kind, method, found)
        return seconds

    def listing(self, kind: str) -> float:
        begun = time.perf_counter()
        text = self.curl.text(f"{self.one(kind)[0].url}/many", "PROPFIND", "Depth: 1")
        seconds = time.perf_counter() - begun
        assert text.count("<D:href>") == self.listed + 1, text[:300]
        return seconds

    def fill(self, kinds: tuple[str, ...]) -> None:
        """Make the folder of many files, behind the servers' backs."""
        for kind in kinds:
            many = self.one(kind)[0].files / "many"
            many.mkdir()
            for number in range(self.listed):
                (many / f"file-{number:06d}.root").touch()
            if os.getuid() == 0:
                owner = many.parent.stat()
                os.chown(many, owner.st_uid, owner.st_gid)

    def every(self) -> list[Case]:
        """All rows, with the targets of the storage endpoint."""
        gib, count = self.size / (1024 * MIB), self.small
        body = os.urandom(4096)
        put = partial(self.wired, method="PUT", count=count, good=(200, 201, 204), more="", body=body)
        delete = partial(self.wired, method="DELETE", count=count, good=(200, 204), more="")
        stat = partial(
            self.wired, method="PROPFIND", count=count, good=(207,), more="Depth: 0\r\nContent-Length: 0\r\n"
        )
        return [
            Case("TPC pull", gib, "GiB", self.pull, self.both, 1.2, 0.9),
            Case("TPC push", gib, "GiB", self.push, self.both),
            Case("TPC 50 pulls of 10 MiB", 50, "copy", self.pulls, self.both, None, 1.0),
            Case(
                "TPC pull by one from the other", gib, "GiB", self.pull, self.both,
                kinds=("doma to xrootd", "xrootd to doma"),
            ),
            Case("GET large", gib, "GiB", self.get, self.one, 1.0),
            Case("PUT large", gib, "GiB", self.put, self.one, 1.0),
            Case("PUT 4 KiB", count, "file", put, self.one, None, 1.0, after=delete),
            Case("DELETE 4 KiB", count, "file", delete, self.one, None, 1.0, before=put),
            Case("PROPFIND Depth 0", count, "request", stat, self.one),
            Case(f"list {self.listed} files", 1, "listing", self.listing, self.one),
        ]  # fmt: skip


def scaling(folder: Path, count: int, rounds: int) -> list[dict[str, Any]]:
    """Rates of two processes of ours over those of one, for small requests.

    The clients share the cores with the servers, so each process gets a fifth of a core where the kernel
    can be told so (cpu controller of cgroup v1): else what the clients leave would be measured.
    """
    rates: dict[str, dict[int, list[float]]] = {}
    body = os.urandom(4096)
    with ExitStack() as stack:
        servers = {}
        for workers in (1, 2):
            place = folder / f"workers-{workers}"
            place.mkdir()
            servers[workers] = stack.enter_context(sites(place, workers))
            share = stack.enter_context(a_fifth_of_a_core(tree(servers[workers].doma[0].pid)))
        for turn in range(rounds + 1):
            for workers, made in servers.items():
                wire = Wire(made.doma[0].url, made.token, made.ca, connections=48)
                depth = "Depth: 0\r\nContent-Length: 0\r\n"
                for method, more, data in (
                    ("PUT", "", body), ("PROPFIND", depth, b""), ("GET", "", b""), ("DELETE", "", b""),
                ):  # fmt: skip
                    asked = [wire.request(method, f"/s/{n % 100}/{n}", more, data) for n in range(count)]
                    seconds = wire.race(asked.__getitem__, count, (200, 201, 204, 207))
                    if turn:
                        rates.setdefault(method, {}).setdefault(workers, []).append(count / seconds)
                wire.close()
    rows = []
    for name, found in rates.items():
        one, two = (statistics.median(found[workers]) for workers in (1, 2))
        rows.append({"name": f"two workers, {name} 4 KiB", "one": one, "two": two, "ratio": two / one})
        rate = f"{one:8.0f}/s with one, {two:8.0f}/s with two: x{two / one:.2f}"
        print(f"two workers, {name:10} {rate}; {share}", flush=True)
    return rows


@contextmanager
def a_fifth_of_a_core(pids: list[int]) -> Iterator[str]:
    """Give each process that much, and say so; without the right to do that, all of it."""
    made: list[Path] = []
    try:
        for pid in pids:
            group = Path(f"/sys/fs/cgroup/cpu/doma-bench-{pid}")
            group.mkdir()
            made.append(group)
            (group / "cpu.cfs_period_us").write_text("20000")
            (group / "cpu.cfs_quota_us").write_text("4000")
            (group / "cgroup.procs").write_text(str(pid))
        said = "a fifth of a core for each process"
    except OSError as e:
        said = f"unlimited: {e.strerror}"
    try:
        yield said
    finally:
        for group in made:
            for left in (group / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (group.parent / "cgroup.procs").write_text(left)
            with suppress(OSError):
                group.rmdir()


def roomy(needed: int) -> str | None:
    """A folder in memory with this many bytes free; None: the usual temporary one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > needed else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer rounds")
    parser.add_argument("--baseline", action="store_true", help="XRootD alone")
    parser.add_argument("--rounds", type=int, default=0, help="rounds that count")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", default="", help="comma-separated words; only rows with one of them")
    parser.add_argument("--dir", default=None, help="where the files go (default: memory)")
    options = parser.parse_args()
    if packages := missing():
        raise SystemExit(f"XRootD is not installed (Debian: {packages})")
    control = own_network()
    os.environ.pop("DOMA_BENCH_NETWORK", None)  # to a server it would be a setting that nobody knows
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # the servers end with it
    place = options.dir or roomy((2 if options.quick else 10) << 30)
    folder = Path(tempfile.mkdtemp(prefix="doma-bench-", dir=place))
    folder.chmod(0o755)
    try:
        with sites(folder) as made:
            about = (
                f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
                f"Python {platform.python_version()}, TCP {control}, files in {folder.parent}"
            )
            print(about, flush=True)
            bench = Bench(options.rounds or (2 if options.quick else 5), options.only, options.baseline)
            kinds = ("xrootd",) if options.baseline else ("xrootd", "doma")
            cases = Cases(made, folder, options.quick)
            cases.prepare(kinds)
            cases.fill(kinds)
            for case in cases.every():
                bench.compare(case)
            for kind in kinds:
                held = [memory(site) / MIB for site in made.pair(kind)]
                print(f"private memory at the end, {kind}: {held[0]:.0f} and {held[1]:.0f} MiB")
        if not options.baseline and (not options.only or "workers" in options.only):
            bench.rows += scaling(folder, 1000 if options.quick else 5000, bench.rounds)
        if options.json:
            options.json.write_text(json.dumps({"machine": about, "rows": bench.rows}, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
