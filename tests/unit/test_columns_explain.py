"""What is said of a query before it runs: its plan in words, its columns, what it would take of a file."""

import json
from pathlib import Path

import pytest

from doma.columns.explain import explain
from doma.columns.remote import open_bytes
from doma.core.errors import BadQuery, UnknownColumn

REPO = Path(__file__).parents[2]
CMS = REPO / "src/doma/facility/data/nano_dy.root"
ZMUMU = REPO / "tests/data/uproot-Zmumu.root"
ADL = REPO / "tests/data/Run2012B_SingleMu-1000.parquet"
FILTERED = "(call Where (call EventDataset 'f' 'Events') 'lambda e: e.nMuon >= 2 and e.Muon_pt.Max() > 20')"
PAIR = "{'pt': e.Muon_pt[:2], 'n': e.nMuon}"
QUERY = f"(call ResultTTree (call Select {FILTERED} \"lambda e: {PAIR}\") (list 'x' 'y') 'out' 'f')"


def opened(path: Path):
    return open_bytes(path.as_uri(), "", "", ("file://",))


def test_without_a_file_the_plan_is_told_in_words():
    found = explain("uproot", QUERY)
    assert (found.tree, found.tree_out, found.filters) == ("Events", "out", ("Muon_pt", "nMuon"))
    assert found.branches == ("Muon_pt", "nMuon")
    assert (found.columns, found.file) == ((), None)
    assert [s.text for s in found.steps] == [
        "the events of tree 'Events'",
        "keep each $1 for which (($1.nMuon >= 2) and ($1.Muon_pt.Max() > 20))",
        "for each $2: the columns",
        "pt = $2.Muon_pt[:2:]",
        "n = $2.nMuon",
        "columns are named x, y",
    ]
    assert [s.depth for s in found.steps] == [0, 0, 0, 1, 1, 0]


def test_a_file_adds_types_and_bytes():
    data = opened(CMS)
    found = explain("uproot", QUERY, data)
    assert [(c.name, c.type) for c in found.columns] == [("x", "var * float32"), ("y", "uint32")]
    assert found.file is not None
    assert (found.file.entries, found.file.size) == (40, CMS.stat().st_size)
    assert 0 < found.file.compressed < found.file.size
    assert found.file.compressed == found.file.filters < found.file.uncompressed
    many = explain("uproot", QUERY, data, step=100).file
    assert many is not None
    assert many.windows > found.file.windows
    data.close()


def test_it_is_data_for_programs_and_lines_for_people():
    data = opened(ADL)
    found = explain("uproot", "(call SelectMany (call EventDataset) 'lambda e: e.Jet_pt')", data)
    assert json.loads(json.dumps(found.as_json()))["columns"][0]["name"] == ""
    lines = found.text().splitlines()
    assert "tree      the only one of the file" in lines
    assert any(line.startswith("  (unnamed)  ") for line in lines)
    assert any("% of the file" in line for line in lines)
    assert max(map(len, lines)) < 400
    data.close()


DATA = "(call EventDataset)"
KINDS = {
    f"(call Count {DATA})": "Count of all of them",
    f"(call First (call Select {DATA} 'lambda e: e.Run'))": "row 0 only",
    f"(call Aggregate (call Select {DATA} 'lambda e: e.Run') 5 'lambda a, x: a + x')": "starting from 5",
    f"(call Where {DATA} 'lambda e: e.M > 3')": "keep each $1 for which ($1.M > 3)",
    f'(call Select {DATA} "lambda e: Range(0, e.Run).Select(lambda i: i in [1, 2])")': "Range(0, $1.Run)",
    f'(call Select {DATA} "lambda e: [e.M, 1].Aggregate(0, lambda a, x: -a if x > 1 else a)")': (
        "[$1.M, 1].Aggregate(0, $2, $3: (-$2 if ($3 > 1) else $2))"
    ),
    f'(call Select {DATA} "lambda e: [e.M].First(np.float64(3))")': "or float64(3) if there is none",
}


@pytest.mark.parametrize(("query", "text"), KINDS.items())
def test_every_kind_of_step_has_words(query, text):
    assert text in explain("uproot", query).text()


def test_what_cannot_be_explained_is_refused_like_a_submission():
    data = opened(ZMUMU)
    with pytest.raises(UnknownColumn, match="did you mean"):
        explain("uproot", "(call Select (call EventDataset 'f' 'events') 'lambda e: e.Rnu')", data)
    data.close()
    with pytest.raises(BadQuery, match="codegen"):
        explain("nonsense", "x")
