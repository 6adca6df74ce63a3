"""Memory of a task: it does not grow with the file."""

import subprocess
import sys

import awkward as ak
import numpy as np
import pytest
import uproot

QUERY = (
    "(call Select (call Where (call EventDataset 'f' 'T') (lambda (list e) (> (attr e 'x') 0.5)))"
    " (lambda (list e) (dict (list 'x' 'y') (list (attr e 'x') (attr e 'y')))))"
)
PROGRAM = """
import sys
from pathlib import Path
from doma.columns import process
process.warm()
from doma.columns.execute import execute
from doma.columns.model import Task
execute(Task(sys.argv[1], sys.argv[2], sys.argv[3], allow=("file://",), step=4 << 20))
lines = Path("/proc/self/status").read_text().splitlines()
print(next(x for x in lines if x.startswith("VmHWM")).split()[1])
"""
CLUSTER = 20_000


def written(path, kind, events):
    """Numbers and lists of them, about 24 bytes an event."""
    rng = np.random.default_rng(1)
    with uproot.recreate(path) as made:
        for start in range(0, events, CLUSTER):
            counts = rng.poisson(4, CLUSTER)
            values = rng.random(int(counts.sum()), np.float32)
            part = {"x": rng.random(CLUSTER, np.float32), "y": ak.unflatten(values, counts)}
            if start == 0 and kind == "tree":
                tree = made.mktree("T", {"x": np.float32, "y": "var * float32"})
            if start == 0 and kind == "ntuple":
                tree = made.mkrntuple("T", part)
            else:
                tree.extend(part)


@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_a_file_ten_times_as_large_takes_the_same_memory(kind, tmp_path):
    peaks = []
    for events in (100_000, 1_000_000):
        file, out = tmp_path / f"{events}.root", tmp_path / f"{events}.parquet"
        written(file, kind, events)
        command = [sys.executable, "-c", PROGRAM, file.as_uri(), QUERY, str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert out.stat().st_size > events * 5
        peaks.append(int(done.stdout) / 1024)
    # MiB: a million events have 24, all of which a reader without steps would hold several times.
    assert peaks[1] - peaks[0] < 16
