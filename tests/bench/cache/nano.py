"""A NanoAOD of 1,499 branches that does not compress, and coffea's reading of five columns of it.

    python tests/bench/cache/nano.py ADDRESS FILE_WITH_TOKEN   # reads, as a process of its own

Branches, types and mean multiplicities are those of the sample that comes with the package, the values are
random: so every column weighs what it would, and a file of 100,000 events is 0.56 GB.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

COLUMNS = (("Jet", "pt"), ("Jet", "eta"), ("Jet", "phi"), ("Jet", "mass"), ("GenPart", "pt"))
STEP = 10_000
"""Events of a cluster, and of what is analysed at a time."""


def make(file: Path, events: int) -> None:
    """Write the file, with as many events rounded up to clusters."""
    import awkward as ak
    import numpy as np
    import uproot

    from doma.facility.sample import sample

    rng = np.random.default_rng(7)
    with uproot.open(sample("nano_dy.root")) as source:
        branches = source["Events"].branches
        groups = _groups(branches)
        means = {name: float(np.mean(source["Events"][f"n{name}"].array(library="np"))) for name in groups}
    kinds = {branch.name: branch.interpretation for branch in branches}

    def values(name: str, count: int) -> Any:
        kind = np.dtype(getattr(kinds[name], "content", kinds[name]).to_dtype).newbyteorder("=")
        if kind.kind == "f":
            return rng.random(count, dtype=np.float32).astype(kind) * 100
        return rng.integers(0, 2 if kind.kind == "b" else 10, count).astype(kind)

    def cluster() -> dict[str, Any]:
        chunk: dict[str, Any] = {
            branch.name: values(branch.name, STEP)
            for branch in branches
            if branch.count_branch is None and branch.name[1:] not in groups
        }
        for name, members in groups.items():
            counts = rng.poisson(means[name], STEP)
            columns = {
                member.removeprefix(f"{name}_"): ak.unflatten(values(member, counts.sum()), counts)
                for member in members
            }
            chunk[name] = columns[name] if list(columns) == [name] else ak.zip(columns)
        return chunk

    with uproot.recreate(file, compression=None) as target:
        tree = None
        for _ in range(0, events, STEP):
            chunk = cluster()
            if tree is None:
                tree = target.mktree("Events", {name: _kind(column) for name, column in chunk.items()})
            tree.extend(chunk)


def _groups(branches: Any) -> dict[str, list[str]]:
    """The branches with variable numbers of values, by the name of what they count."""
    found: dict[str, list[str]] = {}
    for branch in branches:
        if branch.count_branch is not None:
            found.setdefault(branch.count_branch.name[1:], []).append(branch.name)
    return found


def _kind(column: Any) -> Any:
    return column.dtype if hasattr(column, "dtype") else column.type


def weight(file: Path) -> int:
    """Bytes of the five columns in the file, with those that count their values."""
    import uproot

    with uproot.open(file) as source:
        tree = source["Events"]
        names = {f"{group}_{name}" for group, name in COLUMNS} | {f"n{group}" for group, _ in COLUMNS}
        return sum(int(tree[name].compressed_bytes) for name in names)


def analyse(url: str, token: str, folder: Path) -> None:
    """Read the five columns by coffea in a new process."""
    if url.startswith("root:"):
        assert find_spec("fsspec_xrootd"), "fsspec-xrootd and xrootd are not installed"
    secret = folder / "nano.token"
    secret.write_text(token)
    command = [sys.executable, str(Path(__file__)), url, str(secret)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})


def main(url: str, token: str) -> None:
    import awkward as ak
    import uproot
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    NanoAODSchema.warn_missing_crossrefs = False
    options: dict[str, Any] = {}
    if token and url.startswith("http"):
        options["client_kwargs"] = {"headers": {"Authorization": f"Bearer {token}"}}
    elif token:
        url += f"?authz=Bearer%20{token}"
    with uproot.open(url, **options) as source:
        total = source["Events"].num_entries
        for start in range(0, total, STEP):
            events = NanoEventsFactory.from_root(
                source, treepath="Events", schemaclass=NanoAODSchema, mode="virtual",
                entry_start=start, entry_stop=start + STEP,
            ).events()  # fmt: skip
            for group, name in COLUMNS:
                assert len(ak.materialize(events[group][name])) == STEP


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).read_text())
