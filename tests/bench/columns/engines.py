"""One query on one file by one engine, as a process of its own: JSON with its CPU, wall and peak memory.

    python engines.py (doma|reference|hand) QUERY FILE OUTPUT [WARM]

``doma`` is the column service's worker without its service: forked, as all workers are, from a process that
has done the imports. ``reference`` is the function that func_adl_uproot generates, followed by
``ak.to_parquet``, ``hand`` what a person would write with uproot and awkward. All begin after their imports
and a first run on a small file WARM, as a warm worker does.

``peak`` is the most that the process had resident (VmHWM), pages that it shares with others among it;
``own`` is what of that peak nobody shares, ``template`` the size of the process it was forked from.
"""

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SOURCE = "EventDataset('f', 'Events')"
MASS = "np.sqrt(2 * {pt} * (np.cosh({eta}) - np.cos({phi})))"
LEADING = MASS.format(
    pt="e.Muon_pt.ElementAt(0) * e.Muon_pt.ElementAt(1)",
    eta="e.Muon_eta.ElementAt(0) - e.Muon_eta.ElementAt(1)",
    phi="e.Muon_phi.ElementAt(0) - e.Muon_phi.ElementAt(1)",
)
PAIRS = "Zip({'pt': e.Muon_pt, 'eta': e.Muon_eta, 'phi': e.Muon_phi}).Choose(2)"
MASSES = MASS.format(pt="p[0].pt * p[1].pt", eta="p[0].eta - p[1].eta", phi="p[0].phi - p[1].phi")
QUERIES = {
    "column": f"{SOURCE}.Select(lambda e: {{'met': e.MET_pt}})",
    "cut": f"{SOURCE}.Where(lambda e: e.MET_pt > 25 and e.nJet >= 2).Select(lambda e: {{'met': e.MET_pt, "
    "'jet_pt': e.Jet_pt[e.Jet_pt > 30], 'jet_eta': e.Jet_eta[e.Jet_pt > 30], 'muon_pt': e.Muon_pt})",
    "combine": f"{SOURCE}.Where(lambda e: e.nMuon >= 2).Select(lambda e: {{'met': e.MET_pt, "
    f"'mass': {LEADING}, 'triple': e.Jet_pt.Choose(3).Select(lambda t: t.Sum())}})",
    # The reference cannot name the members of a combination; against plain awkward alone.
    "pairs": f"{SOURCE}.Where(lambda e: e.nMuon >= 1).Select(lambda e: {{'met': e.MET_pt, "
    f"'mass': {PAIRS}.Select(lambda p: {MASSES}), "
    "'triple': e.Jet_pt.Choose(3).Select(lambda t: t[0] + t[1] + t[2])})",
    "nano": f"{SOURCE}.Select(lambda e: {{'jet_pt': e.Jet_pt[e.Jet_pt > 30], 'met': e.MET_pt, "
    "'muon_pt': e.Muon_pt, 'muon_eta': e.Muon_eta, 'npv': e.PV_npvs})",
}  # fmt: skip


FRONT = """
import ast, sys, qastle
print(qastle.python_ast_to_text_ast(qastle.insert_linq_nodes(ast.parse(sys.argv[1]))))
"""


def text(query: str) -> str:
    """The query as func_adl's front end sends it: made in another process, as it is by a user."""
    done = subprocess.run(
        [sys.executable, "-c", FRONT, QUERIES[query]], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def doma(query: str) -> Callable[[str, str], None]:
    from doma.columns import process
    from doma.columns.execute import execute
    from doma.columns.model import Task

    process.warm()
    selection = text(query)

    def run(source: str, output: str) -> None:
        execute(Task(Path(source).as_uri(), selection, output, allow=("file://",)))

    return run


def reference(query: str) -> Callable[[str, str], None]:
    import awkward as ak
    from func_adl_uproot.translation import generate_function  # type: ignore[import-not-found]

    selection = text(query)

    def run(source: str, output: str) -> None:
        ak.to_parquet(generate_function(selection)(source, "Events"), output)

    return run


def hand(query: str) -> Callable[[str, str], None]:
    import awkward as ak
    import numpy as np
    import uproot

    def column(source: str, output: str) -> None:
        e = _read(source, ["MET_pt"])
        ak.to_parquet(ak.zip({"met": e.MET_pt}, depth_limit=1), output)

    def cut(source: str, output: str) -> None:
        e = _read(source, ["MET_pt", "nJet", "Jet_pt", "Jet_eta", "Muon_pt"])
        e = e[(e.MET_pt > 25) & (e.nJet >= 2)]
        jets = e.Jet_pt > 30
        columns = {
            "met": e.MET_pt, "jet_pt": e.Jet_pt[jets], "jet_eta": e.Jet_eta[jets], "muon_pt": e.Muon_pt
        }  # fmt: skip
        ak.to_parquet(ak.zip(columns, depth_limit=1), output)

    def combine(source: str, output: str) -> None:
        e = _read(source, ["MET_pt", "nMuon", "Muon_pt", "Muon_eta", "Muon_phi", "Jet_pt"])
        e = e[e.nMuon >= 2]
        pt, eta, phi = (((v[:, 0]), (v[:, 1])) for v in (e.Muon_pt, e.Muon_eta, e.Muon_phi))
        mass = np.sqrt(2 * pt[0] * pt[1] * (np.cosh(eta[0] - eta[1]) - np.cos(phi[0] - phi[1])))
        x, y, z = ak.unzip(ak.combinations(e.Jet_pt, 3))
        ak.to_parquet(ak.zip({"met": e.MET_pt, "mass": mass, "triple": x + y + z}, depth_limit=1), output)

    def pairs(source: str, output: str) -> None:
        e = _read(source, ["MET_pt", "nMuon", "Muon_pt", "Muon_eta", "Muon_phi", "Jet_pt"])
        e = e[e.nMuon >= 1]
        muons = ak.zip({"pt": e.Muon_pt, "eta": e.Muon_eta, "phi": e.Muon_phi})
        a, b = ak.unzip(ak.combinations(muons, 2))
        mass = np.sqrt(2 * a.pt * b.pt * (np.cosh(a.eta - b.eta) - np.cos(a.phi - b.phi)))
        x, y, z = ak.unzip(ak.combinations(e.Jet_pt, 3))
        ak.to_parquet(ak.zip({"met": e.MET_pt, "mass": mass, "triple": x + y + z}, depth_limit=1), output)

    def nano(source: str, output: str) -> None:
        e = _read(source, ["Jet_pt", "MET_pt", "Muon_pt", "Muon_eta", "PV_npvs"])
        columns = {
            "jet_pt": e.Jet_pt[e.Jet_pt > 30], "met": e.MET_pt, "muon_pt": e.Muon_pt, "muon_eta": e.Muon_eta,
            "npv": e.PV_npvs,
        }  # fmt: skip
        ak.to_parquet(ak.zip(columns, depth_limit=1), output)

    def _read(source: str, names: list[str]) -> ak.Array:
        if source.endswith(".parquet"):
            return ak.from_parquet(source, columns=names)
        return uproot.open(source)["Events"].arrays(names)

    return {"column": column, "cut": cut, "combine": combine, "pairs": pairs, "nano": nano}[query]


ENGINES = {"doma": doma, "reference": reference, "hand": hand}


def cpu() -> float:
    """User and system seconds of this process and its children."""
    own, kids = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + kids.ru_utime + kids.ru_stime


def peak() -> float:
    """MiB of the process at its largest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024


def own() -> float:
    """MiB that only this process has: private pages now, and what more there were at the peak."""
    fields = dict(x.split(":", 1) for x in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    rss, *private = (int(fields[k].split()[0]) / 1024 for k in ("Rss", "Private_Clean", "Private_Dirty"))
    return sum(private) + peak() - rss


def main(engine: str, query: str, source: str, output: str, warm: str = "") -> None:
    run = ENGINES[engine](query)
    template = 0.0
    if engine == "doma":
        template = peak()
        gc.collect()
        gc.freeze()  # as doma.columns.process does
        if child := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if warm:
        run(warm, f"{output}.warm")
        Path(f"{output}.warm").unlink()
    base, used, begun = peak(), cpu(), time.perf_counter()
    run(source, output)
    took = time.perf_counter() - begun
    found = {"cpu": cpu() - used, "wall": took, "peak": peak(), "base": base, "own": own()}
    print(json.dumps(found | {"template": template}))


if __name__ == "__main__":
    main(*sys.argv[1:])
