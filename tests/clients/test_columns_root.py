"""Our results read by ROOT itself: PyPI's ``root`` (a pre-release) in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from doma.columns.evaluate import Table
from doma.columns.execute import execute
from doma.columns.model import Task
from doma.columns.sink import open_sink

PYTHON = os.environ.get("DOMA_ROOT_PYTHON", "")
FILE = Path(__file__).parents[1] / "data/Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"
QUERY = (
    "(call Select (call EventDataset 'f' 'Events') (lambda (list e)"
    " (dict (list 'n' 'pt') (list (attr e 'nMuon') (attr e 'Muon_pt')))))"
)

# Every column through RDataFrame, with the C++ type that ROOT itself says it has.
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
import ROOT

def plain(value):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, ROOT.std.string):
        return bytes(value).decode()
    if hasattr(value, "has_value"):
        return plain(value.value()) if value.has_value() else None
    return [plain(v) for v in value]

file = ROOT.TFile.Open(sys.argv[1])
tree = file.Get("servicex") if file.GetKey("servicex").GetClassName() == "TTree" else None
if tree is None:
    reader = ROOT.RNTupleReader.Open("servicex", sys.argv[1])
    if not reader.GetNEntries():  # RDataFrame 6.40 crashes on it, on ROOT's own too
        fields = reader.GetDescriptor().GetTopLevelFields()
        print(json.dumps({str(f.GetFieldName()): [str(f.GetTypeName()), []] for f in fields}))
        sys.exit()
frame = ROOT.RDataFrame("servicex", sys.argv[1])
found = {}
for name in map(str, frame.GetColumnNames()):
    kind = str(frame.GetColumnType(name))
    leaf = tree.GetLeaf(name) if tree else None
    if leaf and leaf.ClassName() == "TLeafC":  # a C string, which RDataFrame takes for one character
        values = [str(leaf.GetValueString()) for i in range(tree.GetEntries()) if tree.GetEntry(i) > 0]
    elif kind in ("Char_t", "std::int8_t"):  # a small integer, which Python takes for a letter
        values = frame.Define("number_", "int(%s)" % name).Take["int"]("number_")
    elif "optional" in kind:  # RDataFrame 6.40 makes no column of std::optional<std::int32_t>
        view = reader.GetView[kind](name)
        values = [plain(view(i)) for i in range(reader.GetNEntries())]
        del view  # or it would outlive its reader
    else:
        values = frame.Take[kind](name)
    found[name] = [kind, [plain(v) for v in values]]
print(json.dumps(found))
"""

COLUMNS = {
    "i8": np.array([-128, 0, 127], np.int8),
    "u16": np.array([0, 1, 65535], np.uint16),
    "i32": np.array([-(2**31), 0, 2**31 - 1], np.int32),
    "u32": np.array([0, 1, 2**32 - 1], np.uint32),
    "i64": np.array([-(2**63), 0, 2**63 - 1], np.int64),
    "u64": np.array([0, 1, 2**64 - 1], np.uint64),
    "f32": np.array([0.1, -1e38, 3.0], np.float32),
    "f64": np.array([0.1, -1e300, 3.0], np.float64),
    "flag": np.array([True, False, True]),
    "fixed": np.array([[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]),
    "lists": [[1.5, 2.5], [], [3.5]],
    "flags": [[True, False], [], [True]],
    "ints": ak.values_astype(ak.Array([[1, 2], [], [-3]]), np.int16),
    "some": [1.5, None, 2.5],
    "text": ["a", "", "höher"],
    "пт": [1.0, 2.0, 3.0],
    "nested": [[[1.0], [2.0, 3.0]], [], [[]]],
    "words": [["a", "bc"], [], [""]],
    "jets": [[{"pt": 1.0, "q": 1}, {"pt": 2.0, "q": -1}], [], [{"pt": 3.0, "q": 0}]],
    "lost": ak.values_astype(ak.Array([1, None, 3]), np.int32),
}

NO_TREE = ("nested", "words", "lost")
"""What a TTree does not hold; asking for it is refused."""
ROOT_ONLY = pytest.mark.skipif(
    not PYTHON, reason="DOMA_ROOT_PYTHON names no Python with ROOT: pip install --pre root"
)


def written(path: Path, format_: str, columns: dict[str, object]) -> Path:
    with open_sink(path, format_) as sink:
        sink.write(Table({n: ak.Array(v) for n, v in columns.items()}))
        sink.close()
    return path


def by_root(path: Path) -> dict[str, list[object]]:
    done = subprocess.run(
        [PYTHON, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: values for name, (_, values) in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.client
@ROOT_ONLY
def test_root_reads_every_value_of_a_tree(tmp_path):
    columns = {n: v for n, v in COLUMNS.items() if n not in NO_TREE}
    found = by_root(written(tmp_path / "out.root", "root-file", columns))
    assert np.isnan(found.pop("some")[1])
    jets = ak.Array(columns["jets"])
    assert (found.pop("jets_pt"), found.pop("jets_q")) == (jets.pt.to_list(), jets.q.to_list())
    counters = {n: found.pop(n) for n in [n for n in found if n.startswith("n")]}
    assert counters == {n: [2, 0, 1] for n in ("nlists", "nflags", "nints", "njets")}
    assert found == {n: ak.to_list(v) for n, v in columns.items() if n not in ("some", "jets")}


@pytest.mark.client
@ROOT_ONLY
def test_root_reads_every_value_of_an_ntuple(tmp_path):
    columns = {n: v for n, v in COLUMNS.items() if n != "jets"}
    found = by_root(written(tmp_path / "out.root", "root-rntuple", columns))
    assert found == {n: ak.to_list(v) for n, v in columns.items()}


@pytest.mark.client
@ROOT_ONLY
@pytest.mark.parametrize("format_", ["root-file", "root-rntuple"])
def test_root_reads_a_result_without_rows(tmp_path, format_):
    columns = {"x": np.zeros(0), "пт": ak.Array([[1.5]])[:0]}
    found = by_root(written(tmp_path / "out.root", format_, columns))
    assert (found["x"], found["пт"]) == ([], [])


@pytest.mark.client
@ROOT_ONLY
@pytest.mark.parametrize("format_", ["root-file", "root-rntuple"])
def test_root_reads_what_a_query_asked_for(tmp_path, format_):
    out = tmp_path / "out.root"
    execute(Task(FILE.as_uri(), QUERY, str(out), allow=("file://",), format=format_))
    with uproot.open(FILE) as file:
        fields = {f.name: f for f in file["Events"].fields}
        expected = {n: fields[f].array().to_list() for n, f in (("n", "nMuon"), ("pt", "Muon_pt"))}
    found = by_root(out)
    assert {n: found[n] for n in expected} == expected


@pytest.mark.client
def test_pyarrow_reads_every_value_of_a_parquet_result(tmp_path):
    found = pq.read_table(written(tmp_path / "out.parquet", "parquet", COLUMNS))
    assert found.to_pydict() == {n: ak.to_list(v) for n, v in COLUMNS.items()}
