"""Our cache against XRootD's (XCache) and nginx's over the same origin: CPU, rates, bytes fetched.

    python tests/bench/cache/bench_cache.py [--quick] [--only WORDS] [--rounds N] [--json FILE]
        [--kinds xcache,nginx,doma] [--origin http|root] [--dir FOLDER]

Rows are in ``cases.py``, servers in ``caches.py``. Rounds alternate between the caches. For CPU a cache's
figure is the lowest of its rounds, since noise only adds; for a herd the worst, for all else the median. CPU
is that of all processes and threads of a cache, from ``/proc``; the origin's, the relay's and the clients' is
not counted.

As root it runs in a network namespace of its own, for the reasons told in ``bench_dataplane.py``.

Needs nginx with its slice module, curl and Debian's xrootd-server, xrootd-server-plugins, xrootd-client.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.bench.bench_dataplane import own_network, pressed
from tests.bench.cache.caches import KINDS, Cache, Caches, caches, missing
from tests.bench.cache.cases import MIB, Case, Cases
from tests.bench.storage_sites import memory_of, tree

MEMORY = 300 * MIB
"""The most that a process of ours may hold, pages of files that it maps among it."""


@dataclass
class Bench:
    """Runs cases and keeps their rows."""

    made: Caches
    rounds: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)

    def attempt(self, case: Case) -> None:
        """Run a case; if it breaks, say so and let the others come."""
        try:
            self.run(case)
        except (AssertionError, OSError, subprocess.SubprocessError) as e:
            print(f"{case.name:28} BROKEN: {type(e).__name__}: {str(e)[:300]}", flush=True)
            self.rows.append({"name": case.name, "broken": str(e), "holds": False})

    def run(self, case: Case) -> None:
        """Alternate between the caches; print and keep the figures."""
        taking = [cache for cache in self.made.every if cache.kind in case.kinds]
        if case.over == "root":
            taking = [cache for cache in taking if cache.root]
        found: dict[str, list[float]] = {cache.kind: [] for cache in taking}
        waited = pressed()
        for turn in range(min(self.rounds, case.most) + (0 if case.cold else 1)):
            for cache in taking if turn % 2 else reversed(taking):
                figure = case.round(cache)
                self._remember(cache)
                if turn or case.cold:  # else the first round warms
                    found[cache.kind].append(figure)
        row: dict[str, Any] = {"name": case.name, "unit": case.unit, "rounds": found}
        row["waited"] = pressed() - waited
        for kind, figures in found.items():
            row[kind] = case.figure(figures)
        row["ratios"], row["holds"] = self._judge(case, row)
        self.rows.append(row)
        self._show(case, row)

    def _judge(self, case: Case, row: dict[str, Any]) -> tuple[dict[str, float], bool | None]:
        """Our figure over the others', and whether the bars hold; None if something is not there."""
        ratios: dict[str, float] = {}
        holds = []
        for kind, bar in case.bars:
            if "doma" not in row or (kind and kind not in row):
                return ratios, None
            ratios[kind or "itself"] = ratio = row["doma"] / (row[kind] if kind else 1.0)
            holds.append(ratio >= bar if case.rate else ratio <= bar)
        return ratios, all(holds)

    def _show(self, case: Case, row: dict[str, Any]) -> None:
        words = [f"{case.name:28}"]
        for kind, figures in row["rounds"].items():
            words.append(f"{kind} {row[kind]:.4g} ({min(figures):.3g}-{max(figures):.3g})")
        words.append(case.unit)
        for (kind, bar), ratio in zip(case.bars, row["ratios"].values(), strict=False):
            words.append(f" x{ratio:.2f} {kind} ({'>=' if case.rate else '<='}{bar:g})")
        words.append({True: "ok", False: "MISSED", None: ""}[row["holds"]] if case.bars else "")
        print(" ".join(words), flush=True)

    def _remember(self, cache: Cache) -> None:
        """Note what its largest process holds."""
        held = max(memory_of(pid) for pid in tree(cache.pid))
        self.peak[cache.kind] = max(held, self.peak.get(cache.kind, 0))

    def memory(self) -> None:
        """Print and keep what the processes held after any round."""
        row: dict[str, Any] = {"name": "memory", "unit": "MiB"}
        for cache in self.made.every:
            resident = max(memory_of(pid, "VmHWM") for pid in tree(cache.pid)) / MIB
            row[cache.kind] = self.peak.get(cache.kind, 0) / MIB
            row[f"{cache.kind}_resident"] = resident
            print(f"{cache.kind}: private {row[cache.kind]:.0f} MiB, resident {resident:.0f} MiB")
        if "doma" in self.peak:
            row["holds"] = row["doma_resident"] * MIB < MEMORY
            print(f"a process of ours below {MEMORY // MIB} MiB: {'ok' if row['holds'] else 'MISSED'}")
        self.rows.append(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer requests and rounds")
    parser.add_argument("--rounds", type=int, default=0, help="rounds that count")
    parser.add_argument("--only", default="", help="comma-separated words; only rows with one of them")
    parser.add_argument("--kinds", default=",".join(KINDS), help="caches that take part")
    parser.add_argument("--origin", choices=("http", "root"), default="http", help="how ours talks to it")
    parser.add_argument("--prefetch", type=int, default=0, help="pfc.prefetch of XCache")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--dir", default=None, help="where the files go (default: the temporary directory)")
    options = parser.parse_args()
    if packages := missing():
        raise SystemExit(f"not installed (Debian): {packages}")
    control = own_network()
    os.environ.pop("DOMA_BENCH_NETWORK", None)  # to a server it would be a setting that nobody knows
    for end in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(end, lambda *_: sys.exit("ended"))  # the servers end with it
    folder = Path(tempfile.mkdtemp(prefix="doma-bench-", dir=options.dir))
    folder.chmod(0o755)
    kinds = [kind for kind in KINDS if kind in options.kinds.split(",")]
    try:
        with caches(folder, kinds, scheme=options.origin, prefetch=options.prefetch) as made:
            about = (
                f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
                f"Python {platform.python_version()}, TCP {control}, files in {folder.parent}"
            )
            print(about, flush=True)
            ours = made.of("doma")
            if ours and not ours.root:
                print("ours has no root:// door here: rows over root:// are of XCache alone")
            bench = Bench(made, options.rounds or (2 if options.quick else 5))
            for case in Cases(made, folder, options.quick).every():
                if not options.only or any(word in case.name for word in options.only.split(",")):
                    bench.attempt(case)
            bench.memory()
            if options.json:
                options.json.write_text(json.dumps({"machine": about, "rows": bench.rows}, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
