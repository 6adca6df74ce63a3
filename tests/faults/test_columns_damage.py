"""Damaged files: whatever byte is wrong, the right values or an error of ours come soon and in little memory.

Right are the values before the damage. Not all bytes are under a checksum, so a reader may also see other
values: then those that the reference reader (uproot, pyarrow) finds in the damaged file.
"""

import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
DATA = REPO / "tests/data"
ONE = (
    "(call Select (call EventDataset 'f' '{}')"
    " (lambda (list e) (dict (list 'a' 'b') (list (attr e '{}') (attr e '{}')))))"
)
VARIANTS = 125
FILES = {
    "tree": (DATA / "uproot-Zmumu.root", "events", ("pt1", "Run")),
    "ntuple": (
        DATA / "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root",
        "Events",
        ("nMuon", "Muon_pt"),
    ),
    "parquet": (DATA / "Run2012B_SingleMu-1000.parquet", "Events", ("MET_pt", "Jet_pt")),
    "nano": (REPO / "src/doma/facility/data/nano_dy.root", "Events", ("Jet_pt", "MET_pt")),
}
PROGRAM = """
import json, resource, signal, sys
from pathlib import Path
import awkward as ak
import pyarrow.parquet as pq
import uproot
from doma.columns.execute import execute
from doma.columns.model import Task
from doma.core.errors import DomaError
import doma.columns.source_root, doma.columns.source_parquet
folder, query, tree, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (size, size))


def lists(columns):
    return str([ak.to_list(columns[name]) for name in columns])


def reference(file):
    if file.read_bytes()[:4] == b"PAR1":
        table = pq.read_table(file, columns=names)
        return lists({n: table[n].to_pylist() for n in names})
    with uproot.open({file: None}, object_cache=None, array_cache=None) as opened:
        found = opened[tree]
        return lists({n: found[n].array() for n in names})


expected = None
for file in sorted(folder.glob("*.bin")):
    signal.setitimer(signal.ITIMER_PROF, 20)
    word = text = ""
    try:
        execute(Task(file.as_uri(), query, str(folder / "out"), allow=("file://",)))
        got = ak.from_parquet(folder / "out")
        got = lists({n: got[n] for n in ("a", "b")})
        expected = expected or got
        word = "same" if got == expected else "changed"
    except (DomaError, MemoryError) as e:
        word, text = type(e).__name__, str(e)
    (folder / "out").unlink(missing_ok=True)
    if word == "changed":
        try:
            word = "referred" if got == reference(file) else "wrong"
        except Exception as e:
            word, text = "wrong", f"the reference fails: {e!r}"
    print(json.dumps([file.name, word, text]), flush=True)
"""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One of the ways in which files are broken."""
    out = bytearray(data)
    match rng.randrange(5):
        case 0:
            return bytes(out[: rng.randrange(4, len(out))])
        case 1:
            for _ in range(rng.choice((1, 3, 30))):
                out[rng.randrange(4, len(out))] = rng.randrange(256)
        case 2:  # near the ends, where the structure is
            for _ in range(3):
                place = rng.choice((rng.randrange(4, 400), len(out) - rng.randrange(1, 2000)))
                out[max(4, place)] = rng.choice((0, 1, 127, 128, 255))
        case 3:  # lengths that lie
            place = rng.randrange(4, len(out) - 8)
            out[place : place + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))
        case _:
            start, size = rng.randrange(4, len(out)), rng.randrange(1, 4096)
            out[start : start + size] = bytes(min(size, len(out) - start))
    return bytes(out)


@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_gives_the_right_values_or_an_error_of_ours_within_seconds(kind, tmp_path):
    source, tree, names = FILES[kind]
    whole, rng = source.read_bytes(), random.Random(kind)
    (tmp_path / "000.bin").write_bytes(whole)
    for number in range(1, 1 + VARIANTS):
        (tmp_path / f"{number:03}.bin").write_bytes(damaged(whole, rng))
    query = ONE.format(tree, *names)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), query, tree, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (len(found), done.stderr[-2000:])
    assert not done.stderr
    assert len(found) == 1 + VARIANTS
    assert found[0][1] == "same"
    words = {word for _, word, _ in found}
    assert not words & {"wrong", "MemoryError"}, [f for f in found if f[1] in ("wrong", "MemoryError")]
    assert words - {"same", "referred"}
    for name, word, text in found:
        assert word in ("same", "referred") or (name in text and len(text) > text.index(name) + 20), text
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 << 20
