"""Whole files: the ADL benchmark queries 1-5, every kind of input, bounded steps, broken files."""

import ast
import itertools
import shutil
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import qastle
import uproot
from func_adl import EventDataset

from doma.columns.execute import execute
from doma.columns.model import Task
from doma.core.errors import BadQuery, CorruptFile, DomaError, Forbidden, NotFound, UnknownColumn

REPO = Path(__file__).parents[2]
ADL = REPO / "tests/data/Run2012B_SingleMu-1000.parquet"
CMS = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
NTUPLE = REPO / "tests/data/Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"


class Data(EventDataset):  # type: ignore[misc]
    """func_adl's own front end; only its encoder is used."""

    def __init__(self, tree=""):
        super().__init__()
        self.query_ast.args = [ast.Constant("bogus.root"), ast.Constant(tree)] if tree else []

    async def execute_result_async(self, a, title=None):
        raise NotImplementedError


def encoded(query) -> str:
    return str(qastle.python_ast_to_text_ast(query.query_ast))


def deliver(query, path: Path, out: Path, **options):
    """The delivered columns, read back by awkward."""
    text = query if isinstance(query, str) else encoded(query)
    out.unlink(missing_ok=True)
    outcome = execute(Task(path.as_uri(), text, str(out), allow=("file://",), **options))
    result = ak.from_parquet(out)
    assert len(result) == outcome.rows
    assert out.stat().st_size == outcome.bytes
    return result


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture(scope="module")
def events():
    """The ADL sample by pyarrow alone, as Python rows."""
    wanted = ["MET_pt", "Jet_pt", "Jet_eta", *(f"Muon_{x}" for x in ("pt", "eta", "phi", "mass", "charge"))]
    return pq.read_table(ADL, columns=wanted).to_pylist()


def test_adl_1_the_missing_energy_of_all_events(events, out):
    got = deliver(Data().Select("lambda e: e.MET_pt"), ADL, out)
    assert got.to_list() == [e["MET_pt"] for e in events]


def test_adl_2_the_pt_of_all_jets(events, out):
    got = deliver(Data().SelectMany("lambda e: e.Jet_pt"), ADL, out)
    assert got.to_list() == [pt for e in events for pt in e["Jet_pt"]]


def test_adl_3_the_pt_of_central_jets(events, out):
    query = Data().SelectMany(
        "lambda e: {'pt': e.Jet_pt, 'eta': e.Jet_eta}.Zip()"
        ".Where(lambda j: abs(j.eta) < 1).Select(lambda j: j.pt)"
    )
    expected = [p for e in events for p, n in zip(e["Jet_pt"], e["Jet_eta"], strict=True) if abs(n) < 1]
    assert deliver(query, ADL, out).to_list() == expected


def test_adl_4_the_missing_energy_of_events_with_two_hard_jets(events, out):
    query = (
        Data().Where("lambda e: e.Jet_pt.Where(lambda pt: pt > 40).Count() >= 2").Select("lambda e: e.MET_pt")
    )
    expected = [e["MET_pt"] for e in events if sum(pt > 40 for pt in e["Jet_pt"]) >= 2]
    assert deliver(query, ADL, out).to_list() == expected


def _mass(a, b):
    def four(pt, eta, phi, m):
        p = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
        return np.array([np.sqrt(p @ p + m * m), *p])

    energy, *p = four(*a) + four(*b)
    return np.sqrt(energy**2 - np.dot(p, p))


def test_adl_5_the_missing_energy_of_events_with_a_z_candidate(events, out):
    muons = ", ".join(f"'{x}': e.Muon_{x}" for x in ("pt", "eta", "phi", "mass", "charge"))
    query = (
        Data()
        .Select(f"lambda e: {{'met': e.MET_pt, 'muons': {{{muons}}}.Zip()}}")
        .Where(
            "lambda e: e.muons.ToFourMomenta().Choose(2).Where(lambda p: p[0].charge != p[1].charge"
            " and 60 < (p[0] + p[1]).mass < 120).Count() > 0"
        )
        .Select("lambda e: e.met")
    )
    expected = []
    for e in events:
        rows = list(zip(*(e[f"Muon_{x}"] for x in ("pt", "eta", "phi", "mass", "charge")), strict=True))
        if any(a[4] != b[4] and 60 < _mass(a[:4], b[:4]) < 120 for a, b in itertools.combinations(rows, 2)):
            expected.append(e["MET_pt"])
    assert expected
    assert deliver(query, ADL, out).to_list() == expected


def test_steps_of_any_size_give_the_same_columns(out):
    query = (
        Data("Events")
        .Where("lambda e: e.nMuon > 3")
        .Select("lambda e: {'pt': e.Muon_pt, 'lead': e.Muon_pt.First(), 'n': e.Muon_pt.Count()}")
    )
    whole = deliver(query, CMS, out)
    with uproot.open({CMS: "Events"}) as source:
        tree = source.arrays(["nMuon", "Muon_pt"])
    kept = tree[tree.nMuon > 3].Muon_pt
    assert whole.pt.to_list() == kept.to_list()
    assert whole.lead.to_list() == kept[:, 0].to_list()
    for step in (150_000, 1_000_000):
        assert deliver(query, CMS, out, step=step).to_list() == whole.to_list()
    assert deliver(Data().Select("lambda e: e.Jet_pt"), ADL, out, step=2_000).to_list() == (
        pq.read_table(ADL, columns=["Jet_pt"])["Jet_pt"].to_pylist()
    )


def test_totals_of_a_file_are_one_row_whatever_the_steps(out):
    filtered = "(call Where (call EventDataset) 'lambda e: e.nMuon > 2')"
    peaks = f"(call Select {filtered} 'lambda e: e.Muon_pt.Max()')"
    with uproot.open({CMS: "Events"}) as source:
        tree = source.arrays(["nMuon", "Muon_pt"])
    kept = tree[tree.nMuon > 2].Muon_pt
    for step in (1 << 26, 200_000):
        assert deliver(f"(call Count {filtered})", CMS, out, step=step).to_list() == [len(kept)]
        assert deliver(f"(call Max {peaks})", CMS, out, step=step).to_list() == [ak.max(kept)]
    nobody = "(call Where (call EventDataset) 'lambda e: e.nMuon > 9999')"
    assert deliver(f"(call Max (call Select {nobody} 'lambda e: e.nMuon'))", CMS, out).to_list() == [None]
    assert deliver(f"(call Sum (call Select {nobody} 'lambda e: e.nMuon'))", CMS, out).to_list() == [0]


def test_an_rntuple_answers_like_a_tree(out):
    got = deliver(Data("Events").Select("lambda e: {'pt': e.Muon_pt, 'n': e.nMuon}"), NTUPLE, out)
    with uproot.open({NTUPLE: "Events"}) as source:
        fields = source.arrays(filter_name=["Muon_pt", "nMuon"])
    assert got.pt.to_list() == fields.Muon_pt.to_list()
    assert got.n.to_list() == fields.nMuon.to_list()


def test_an_empty_tree_gives_typed_columns_without_rows(out):
    got = deliver(
        Data("tree").Select("lambda e: {'x': e.x, 'n': 1}"), REPO / "tests/data/uproot-empty.root", out
    )
    assert len(got) == 0
    assert set(got.fields) == {"x", "n"}
    empty = deliver(Data("Events").Select("lambda e: e.Muon_pt"), REPO / "tests/data/nano_dy_empty.root", out)
    assert str(empty.type) == "0 * var * float32"


def test_the_clients_none_tree_means_the_only_one(out):
    assert len(deliver(Data("None").Select("lambda e: e.nMuon"), CMS, out)) == 100_000


BROKEN = {
    "no-such.root": (NotFound, "no such file"),
    "empty": (CorruptFile, "0 bytes"),
    "text": (CorruptFile, "neither a ROOT nor a Parquet"),
    "bad_delphes.root": (DomaError, "tree"),
    "nano_dy_malformed.parquet": (CorruptFile, "Parquet"),
}


@pytest.mark.parametrize(("name", "kind", "text"), [(k, *v) for k, v in BROKEN.items()])
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, out, name, kind, text):
    path = tmp_path / name
    if (REPO / "tests/data" / name).exists():
        shutil.copy(REPO / "tests/data" / name, path)
    elif name in {"empty", "text"}:
        path.write_bytes(b"" if name == "empty" else b"<html></html>")
    with pytest.raises(kind, match=text) as caught:
        deliver(Data("Delphes").Select("lambda e: e.x"), path, out)
    assert name in caught.value.message
    assert not out.exists()


def test_unknown_names_come_with_the_nearest_and_leave_no_file(out):
    with pytest.raises(UnknownColumn, match="did you mean Muon_pt"):
        deliver(Data("Events").Select("lambda e: e.Muon_Pt"), CMS, out)
    with pytest.raises(UnknownColumn, match="did you mean Events"):
        deliver(Data("events").Select("lambda e: e.Muon_pt"), CMS, out)
    with pytest.raises(BadQuery, match="needs a sequence"):
        deliver(Data("Events").Select("lambda e: e.nMuon.Count()"), CMS, out)
    assert not out.exists()


def test_local_files_are_read_only_where_that_is_configured(out):
    with pytest.raises(Forbidden, match="local files"):
        execute(Task(CMS.as_uri(), encoded(Data().Select("lambda e: e.nMuon")), str(out)))


def test_a_known_version_is_not_computed_again(out):
    text = encoded(Data().Select("lambda e: e.nMuon"))
    first = execute(Task(CMS.as_uri(), text, str(out), allow=("file://",)))
    out.unlink()
    again = execute(Task(CMS.as_uri(), text, str(out), allow=("file://",), known=("x", first.version)))
    assert again.cached
    assert not out.exists()
