"""Damaged files: whatever byte is wrong, a result or an error of ours comes soon and in little memory."""

import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
DATA = REPO / "tests/data"
ALL = "(call Select (call EventDataset 'f' 'Events') (lambda (list e) e))"
ONE = "(call Select (call EventDataset 'f' '{}') (lambda (list e) (dict (list 'a' 'b') (list {}))))"
FILES = {
    "tree": (DATA / "uproot-Zmumu.root", ONE.format("events", "(attr e 'pt1') (attr e 'Run')")),
    "ntuple": (
        DATA / "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root",
        ONE.format("Events", "(attr e 'nMuon') (attr e 'Muon_pt')"),
    ),
    "parquet": (
        DATA / "Run2012B_SingleMu-1000.parquet",
        ONE.format("Events", "(attr e 'MET_pt') (attr e 'Jet_pt')"),
    ),
    "nano": (
        REPO / "src/doma/facility/data/nano_dy.root",
        ONE.format("Events", "(attr e 'Jet_pt') (attr e 'MET_pt')"),
    ),
}
PROGRAM = """
import resource, signal, sys
from pathlib import Path
from doma.columns.execute import execute
from doma.columns.model import Task
from doma.core.errors import DomaError
import doma.columns.source_root, doma.columns.source_parquet
folder, query = Path(sys.argv[1]), sys.argv[2]
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for file in sorted(folder.glob("*.bin")):
    signal.alarm(10)
    try:
        execute(Task(file.as_uri(), query, str(folder / "out"), allow=("file://",)))
        word = "result"
    except (DomaError, MemoryError) as e:
        word = type(e).__name__
    (folder / "out").unlink(missing_ok=True)
    print(file.name, word, flush=True)
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
def test_a_damaged_file_gives_a_result_or_an_error_of_ours_within_seconds(kind, tmp_path):
    source, query = FILES[kind]
    whole, rng = source.read_bytes(), random.Random(kind)
    (tmp_path / "000.bin").write_bytes(whole)
    for number in range(1, 126):
        (tmp_path / f"{number:03}.bin").write_bytes(damaged(whole, rng))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), query]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    words = dict(line.split() for line in done.stdout.splitlines())
    assert done.returncode == 0, (len(words), done.stderr[-2000:])
    assert len(words) == 126
    assert words["000.bin"] == "result"
    assert "MemoryError" not in words.values()
    assert len(set(words.values())) > 1
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 << 20
