"""func_adl queries on files: rows and totals across steps, trees of output, and inputs of every kind."""

import itertools
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot

from doma.columns.funcadl import FuncAdl
from doma.columns.remote import open_bytes
from doma.core.errors import BadQuery, UnknownColumn
from tests.unit.columns_sink import Kept

REPO = Path(__file__).parents[2]
SHAPES = REPO / "tests/data/shapes.root"
ADL = REPO / "tests/data/Run2012B_SingleMu-1000.parquet"
COLUMN = "(call Select (call EventDataset) 'lambda e: e.i')"


def delivered(text: str, path: Path = SHAPES, step: int = 1 << 26) -> Kept:
    sink, data = Kept(), open_bytes(path.as_uri(), "", "", ("file://",))
    try:
        FuncAdl(text).run(data, sink, step, lambda _: None)
    finally:
        data.close()
    return sink


def column(text: str, path: Path = SHAPES, step: int = 1 << 26) -> ak.Array:
    (only,) = delivered(text, path, step).columns().values()
    return only


ONE_ROW = {
    f"(call First {COLUMN})": -5,
    f"(call Last {COLUMN})": 6,
    f"(call ElementAt {COLUMN} 7)": 2,
    f"(call ElementAt {COLUMN} 99)": None,
    f"(call First (call Where {COLUMN} 'lambda i: i > 3'))": 4,
    f"(call Last (call Where {COLUMN} 'lambda i: i > 99'))": None,
    f"(call Contains {COLUMN} 3)": True,
    f"(call Contains {COLUMN} 99)": False,
    "(call Any (call EventDataset) 'lambda e: e.i > 5')": True,
    "(call All (call EventDataset) 'lambda e: e.i > -5')": False,
    "(call Count (call Select (call EventDataset) 'lambda e: e.a'))": 12,
    f"(call Aggregate {COLUMN} 100 'lambda acc, i: acc + i * 2')": 112,
    f"(call Aggregate {COLUMN} 0 'lambda acc, i: acc + 1')": 12,
    f"(call Aggregate {COLUMN} 0 'lambda acc, v: acc if acc > v else v')": 6,
    f"(call Aggregate {COLUMN} 0 'lambda acc, v: acc if acc < v else v')": -5,
    "(call Sum (call SelectMany (call EventDataset) 'lambda e: e.a'))": -16,
}


@pytest.mark.parametrize(("text", "value"), ONE_ROW.items(), ids=range(len(ONE_ROW)))
def test_one_row_is_the_same_whatever_the_steps(text, value):
    found = [column(text, step=step) for step in (1 << 26, 100)]
    assert [f.to_list() for f in found] == [[value], [value]]
    assert str(found[0].type) == str(found[1].type)


def test_sums_keep_the_type_that_one_step_gives_them():
    for name in ("i", "u", "f", "b"):
        text = f"(call Sum (call Select (call EventDataset) 'lambda e: e.{name}'))"
        assert str(column(text).type) == str(column(text, step=50).type)


def test_the_first_row_of_whole_events_is_a_row_of_all_columns():
    got = delivered("(call First (call Where (call EventDataset) 'lambda e: e.i > 3'))", step=60).columns()
    with uproot.open({SHAPES: "tree"}) as tree:
        row = {name: tree[name].array()[9:10].to_list() for name in tree.keys()}  # noqa: SIM118
    assert {n: c.to_list() for n, c in got.items()} == row


def test_a_wrapper_names_the_tree_of_the_output():
    assert list(delivered(COLUMN).tables) == ["servicex"]
    assert list(delivered(f"(call ResultTTree {COLUMN} (list 'x') 'nominal' 'f.root')").tables) == ["nominal"]


def test_constant_columns_alone_and_beside_others():
    assert column("(call Select (call EventDataset) 'lambda e: 7')").to_list() == [7] * 12
    assert column("(call Select (call EventDataset) \"lambda e: 'mc'\")", step=60).to_list() == ["mc"] * 12
    got = delivered(
        "(call Select (call EventDataset) \"lambda e: {'i': e.i, 'w': 0.5, 't': 'mc'}\")"
    ).columns()
    assert (got["w"].to_list(), got["t"].to_list()) == ([0.5] * 12, ["mc"] * 12)


def test_every_kind_of_input_gives_the_same_answer():
    query = (
        "(call Select (call Where (call EventDataset 'f' 'Events') 'lambda e: e.nJet > 1') 'lambda e: {}')"
    )
    text = query.format("e.Jet_pt.Where(lambda p: p > 30).Sum()")
    files = (
        "src/doma/facility/data/nano_dy.root",
        "tests/data/nano_dy_rntuple.root",
        "tests/data/nano_dy.parquet",
    )
    tree, ntuple, parquet = (column(text, REPO / f) for f in files)
    assert len(tree) > 5
    assert tree.to_list() == ntuple.to_list() == parquet.to_list()


def test_a_query_without_a_tree_names_those_of_the_file():
    two = REPO / "src/doma/facility/data/nano_dy.root"
    with pytest.raises(BadQuery, match=r"Events.*Runs"):
        column("(call Select (call EventDataset) 'lambda e: e.run')", two)
    with pytest.raises(BadQuery, match=r"Events.*Runs"):
        column("(call Select (call EventDataset 'f' 'None') 'lambda e: e.run')", two)
    assert len(column("(call Select (call EventDataset 'f' 'None') 'lambda e: e.i')")) == 12
    with pytest.raises(UnknownColumn, match="did you mean Events"):
        column("(call Select (call EventDataset 'f' 'Event') 'lambda e: e.run')", two)


def four(pt, eta, phi, m):
    p = np.array([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], dtype=np.float64)
    return np.array([np.sqrt(p @ p + np.float64(m) ** 2), *p])


def mass(*parts):
    energy, *p = sum(four(*x) for x in parts)
    return np.sqrt(max(energy**2 - np.dot(p, p), 0))


def momenta(kind: str, more: str = "") -> str:
    parts = ", ".join(f"'{x}': np.float64(e.{kind}_{x})" for x in ("pt", "eta", "phi", "mass"))
    return f"{{'p4': {{{parts}}}.Zip().ToFourMomenta(){more}}}.Zip()"


def test_adl_6_the_trijet_nearest_to_the_top():
    best = (
        momenta("Jet", ", 'b': e.Jet_btag")
        + ".Choose(3)"
        + ".Select(lambda t: {'p4': t[0].p4 + t[1].p4 + t[2].p4, 'b': t.Select(lambda j: j.b).Max()})"
        + ".OrderBy(lambda t: abs(t.p4.mass - 172.5)).First()"
    )
    text = (
        '(call Select (call Select (call Where (call EventDataset) "lambda e: e.nJet >= 3")'
        f' "lambda e: {best}") "lambda t: (t.p4.pt, t.b)")'
    )
    got = delivered(text, ADL, step=20_000).columns()
    names = ["nJet", "Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass", "Jet_btag"]
    expected = []
    for e in pq.read_table(ADL, columns=names).to_pylist():
        if e["nJet"] >= 3:
            jets = list(zip(*(e[n] for n in names[1:]), strict=True))
            three = min(itertools.combinations(jets, 3), key=lambda t: abs(mass(*(j[:4] for j in t)) - 172.5))
            total = sum(four(*j[:4]) for j in three)
            expected.append((np.hypot(total[1], total[2]), max(j[4] for j in three)))
    assert len(expected) > 20
    assert np.allclose(got["0"], [e[0] for e in expected])
    assert got["1"].to_list() == [e[1] for e in expected]


def test_adl_8_the_transverse_mass_of_missing_energy_and_the_other_lepton():
    """A record of missing energy has two coordinates: enough for an angle."""
    electrons = momenta("Electron", ", 'q': e.Electron_charge")
    muons = momenta("Muon", ", 'q': e.Muon_charge")
    met = "{'pt': e.MET_pt, 'phi': e.MET_phi}.ToFourMomentum()"
    text = f"lambda e: {{'e': {electrons}, 'm': {muons}, 'met': {met}}}"
    pairs = "r.{0}.Choose(2).Where(lambda p: p[0].q != p[1].q)"
    steps = [
        ("Select", text),
        ("Select", f"lambda r: {{'l': r.e.Concat(r.m), 'p': {pairs.format('e')}.Concat({pairs.format('m')}), "
                   "'met': r.met}"),
        ("Where", "lambda r: r.l.Count() >= 3 and r.p.Count() > 0"),
        ("Select", "lambda r: {'l': r.l, 'met': r.met, "
                   "'z': r.p.OrderBy(lambda p: abs((p[0].p4 + p[1].p4).mass - 91.2)).First()}"),
        ("Select", "lambda r: {'met': r.met, 'o': r.l.Where(lambda l: l.p4.pt != r.z[0].p4.pt and l.p4.pt != "
                   "r.z[1].p4.pt).OrderBy(lambda l: l.p4.pt).Last().p4}"),
        ("Select", "lambda r: (2 * r.o.pt * r.met.pt * (1 - np.cos(r.o.deltaphi(r.met)))) ** 0.5"),
    ]  # fmt: skip
    query = "(call EventDataset)"
    for name, python in steps:
        query = f'(call {name} {query} "{python}")'
    kinds = ("pt", "eta", "phi", "mass", "charge")
    names = [f"{k}_{x}" for k in ("Electron", "Muon") for x in kinds]
    expected = []
    for e in pq.read_table(ADL, columns=[*names, "MET_pt", "MET_phi"]).to_pylist():
        groups = [list(zip(*(e[f"{k}_{x}"] for x in kinds), strict=True)) for k in ("Electron", "Muon")]
        made = [p for g in groups for p in itertools.combinations(g, 2) if p[0][4] != p[1][4]]
        leptons = [lepton for g in groups for lepton in g]
        if len(leptons) >= 3 and made:
            z = min(made, key=lambda p: abs(mass(p[0][:4], p[1][:4]) - 91.2))
            other = max((x for x in leptons if x[0] not in (z[0][0], z[1][0])), key=lambda x: x[0])
            angle = 1 - np.cos(other[2] - e["MET_phi"])
            expected.append(np.sqrt(2 * other[0] * e["MET_pt"] * angle))
    assert expected
    assert np.allclose(column(query, ADL), expected, rtol=1e-5)
