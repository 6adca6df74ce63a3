"""Column delivery against func_adl_uproot and against plain uproot and awkward, and what the service adds.

Run it by hand: ``python tests/bench/columns/bench_columns.py [--only WORD …] [--rounds N] [--json FILE]``.
The reference lives in an environment of its own (``make clients`` makes it; ``--reference PYTHON`` names
another). Every run of an engine is a process of its own that has imported and warmed up before it is timed.
Engines take turns; of each the lowest figure counts, since noise only adds. The results of all engines on a
query are compared, value by value.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

HERE = Path(__file__).parent
REPO = HERE.parents[2]
sys.path[:0] = [str(HERE), str(REPO)]
ADL = REPO / "tests/data/Run2012B_SingleMu-1000.parquet"
NANO = REPO / "src/doma/facility/data/nano_dy.root"
FILES: dict[str, tuple[str, int]] = {
    "small.root": ("adl", 2_000),
    "small.rntuple.root": ("adl", 2_000),
    "small.parquet": ("adl", 2_000),
    "nano-small.root": ("nano", 100),
    "adl.root": ("adl", 1_000_000),
    "adl-10.root": ("adl", 10_000_000),
    "adl.rntuple.root": ("adl", 1_000_000),
    "adl.parquet": ("adl", 1_000_000),
    "nano.root": ("nano", 20_000),
}
CASES = {
    "tree": ("adl.root", ("column", "cut", "combine"), ("reference", "doma", "hand")),
    "members": ("adl.root", ("pairs",), ("doma", "hand")),
    "ntuple": ("adl.rntuple.root", ("column", "cut", "combine"), ("doma", "hand")),
    "parquet": ("adl.parquet", ("column", "cut", "combine"), ("doma", "hand")),
    "nano": ("nano.root", ("nano",), ("reference", "doma", "hand")),
    "tenfold": ("adl-10.root", ("column", "cut", "combine"), ("doma", "hand")),
}
"""File, queries and engines of each part; ``tenfold`` is left out unless it is named."""


def sample(folder: Path, name: str) -> Path:
    """A file of the benchmark, made once."""
    from tests.bench.columns import samples

    kind, events = FILES[name]
    path = folder / name
    if not path.exists():
        print(f"making {path} …", file=sys.stderr)
        samples.adl(path, ADL, events) if kind == "adl" else samples.nano(path, NANO, events)
    return path


def measured(python: str, engine: str, query: str, file: Path, folder: Path) -> dict[str, float]:
    """CPU, wall and memory of one run."""
    warm = sample(folder, "nano-small.root" if query == "nano" else f"small.{file.name.partition('.')[2]}")
    out = folder / f"out-{engine}.parquet"
    out.unlink(missing_ok=True)
    command = [python, str(HERE / "engines.py"), engine, query, str(file), str(out), str(warm)]
    env = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    if engine == "doma":
        env["PYTHONPATH"] = str(REPO / "src")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine}, {query}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def same(folder: Path, engines: tuple[str, ...]) -> None:
    """Fails unless all engines wrote the same values."""
    tables = [pq.read_table(folder / f"out-{e}.parquet") for e in engines]
    for name in tables[0].schema.names:
        first = tables[0][name].to_pylist()
        for engine, table in zip(engines, tables, strict=True):
            if repr(table[name].to_pylist()) != repr(first) and not _near(table[name].to_pylist(), first):
                raise SystemExit(f"{engine}: the column {name!r} differs from that of {engines[0]}")


def _near(one: Any, other: Any) -> bool:
    """Sums of float32 may differ in their last bit by the order of their terms."""
    import awkward as ak

    a, b = ak.Array(one), ak.Array(other)
    flat = ak.flatten(a, axis=None), ak.flatten(b, axis=None)
    counts = a.ndim == b.ndim and (a.ndim == 1 or ak.all(ak.num(a) == ak.num(b)))
    return len(a) == len(b) and bool(counts) and bool(ak.all(abs(flat[0] - flat[1]) <= 1e-5 * abs(flat[1])))


def engines(args: argparse.Namespace, only: set[str]) -> list[dict[str, Any]]:
    """The table of queries."""
    rows = []
    for part, (name, queries, names) in CASES.items():
        if part not in only:
            continue
        file = sample(args.folder, name)
        for query in queries:
            best: dict[str, dict[str, float]] = {}
            for _ in range(args.rounds):
                for engine in names:
                    python = args.reference if engine == "reference" else sys.executable
                    found = measured(python, engine, query, file, args.folder)
                    held = best.setdefault(engine, found)
                    best[engine] = {k: min(v, held[k]) for k, v in found.items()}
            if part != "tenfold":
                same(args.folder, names)
            rows.append({"part": part, "query": query, **best})
            print(_line(part, query, best), flush=True)
    return rows


def _line(part: str, query: str, best: dict[str, dict[str, float]]) -> str:
    ours = best["doma"]
    cells = [part, query]
    for engine in ("reference", "hand"):
        if engine not in best:
            cells += ["", "", "", ""]
            continue
        its = best[engine]
        growth = (ours["peak"] - ours["base"]) / max(its["peak"] - its["base"], 0.1)
        cells += [f"{its['cpu']:.2f} s", f"**{its['cpu'] / ours['cpu']:.2f}**"]
        cells += [f"{its['peak']:.0f} ({its['peak'] - its['base']:.0f})"]
        cells += [f"**{ours['peak'] / its['peak']:.2f}** ({growth:.2f})"]
    memory = f"{ours['peak']:.0f} ({ours['peak'] - ours['base']:.0f}; own {ours['own']:.0f})"
    cells[2:2] = [f"{ours['cpu']:.2f} s", memory]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| part | query | DOMA CPU | DOMA MiB (over idle) | reference CPU | speed | MiB | ratio "
    "| by hand CPU | speed | MiB | ratio |\n|" + " --- |" * 12
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[*(c for c in CASES if c != "tenfold"), "service"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "doma-bench-columns")
    parser.add_argument("--reference", default=str(REPO / ".venv/reference/bin/python"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{HEAD}")
    rows = engines(args, set(args.only))
    if "service" in args.only:
        from tests.bench.columns import service

        work: Callable[[Path], Any] = service.measure
        found = asyncio.run(work(args.folder))
        rows.append(found)
        print("\n" + "\n".join(f"{k}: {v}" for k, v in found.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
