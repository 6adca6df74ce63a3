"""uproot-raw: compared with uproot's own ``arrays`` and with plain awkward, then case by case."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from uproot.language.python import PythonLanguage

from doma.columns.execute import execute
from doma.columns.explain import explain
from doma.columns.model import Progress, Task
from doma.columns.query import compile_query
from doma.columns.raw import UprootRaw
from doma.columns.raw_functions import AWKWARD, EVENT_AXIS
from doma.columns.remote import open_bytes
from doma.core.errors import BadQuery, LimitExceeded, UnknownColumn
from tests.unit.columns_sink import Kept

REPO = Path(__file__).parents[2]
DATA = REPO / "tests/data"
CMS = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
SHAPES = DATA / "shapes.root"
SPLIT = DATA / "split.root"
ZMUMU = DATA / "uproot-Zmumu.root"
NTUPLE = DATA / "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"
PARQUET = DATA / "Run2012B_SingleMu-1000.parquet"
EMPTY = DATA / "nano_dy_empty.root"


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first events of the CMS sample, in several baskets."""
    path = tmp_path_factory.mktemp("raw") / "few.root"
    with uproot.open(CMS) as source, uproot.recreate(path) as file:
        names = [n for n in source["Events"].keys() if n.startswith("Muon_")]  # noqa: SIM118 - a tree
        events = source["Events"].arrays([*names, "nMuon"], entry_stop=3000)
        one = {"nMuon": "uint32"} | {n: events[n].type.content for n in names}
        file.mktree("Events", one)
        for start in (0, 1000, 1100):
            stop = {0: 1000, 1000: 1100, 1100: 3000}[start]
            file["Events"].extend({n: events[n][start:stop] for n in one})
    return path


def run(path: Path, *parts: dict[str, Any], step: int = 64 << 20, trees: bool = True) -> Kept:
    sink = Kept(trees)
    data = open_bytes(path.as_uri(), allow=("file://",))
    try:
        UprootRaw(json.dumps(parts)).run(data, sink, step, lambda progress: None)
    finally:
        data.close()
    return sink


def ask(path: Path, step: int = 64 << 20, **part: Any) -> dict[str, ak.Array]:
    return run(path, part, step=step).columns(part["treename"])


def language(standard: bool = False) -> PythonLanguage:
    """uproot's own, with awkward's functions, as ServiceX adds them."""
    made = PythonLanguage({**PythonLanguage.default_functions, **{n: getattr(ak, n) for n in AWKWARD}})
    if not standard:
        made.functions.update({n: partial(getattr(ak, n), axis=a) for n, a in EVENT_AXIS.items()})
    return made


MUON = "any(Muon_pt > 20)"
GRID: list[tuple[Path, str, dict[str, Any]]] = [
    (CMS, "Events", {"expressions": "nMuon"}),
    (CMS, "Events", {"expressions": ["nMuon", "Muon_pt"], "cut": "nMuon > 2"}),
    (CMS, "Events", {"filter_name": "Muon_p*", "cut": MUON}),
    (CMS, "Events", {"filter_name": ["/Muon_(pt|eta)$/", "nMuon"], "cut": "nMuon == 2"}),
    (CMS, "Events", {"filter_name": "/MUON_PT/i"}),
    (CMS, "Events", {"filter_typename": "/float/", "filter_name": "Muon_[em]*"}),
    (CMS, "Events", {"filter_typename": ["uint32_t"]}),
    (CMS, "Events", {"expressions": ["sqrt(Muon_pt**2 + Muon_mass**2)", "Muon_pt / 1000"], "cut": MUON}),
    (
        CMS,
        "Events",
        {
            "expressions": ["good", "n"],
            "aliases": {
                "good": "Muon_pt[sel]",
                "n": "num(good)",
                "sel": "(Muon_pt > 10) & (abs(Muon_eta) < 2)",
            },
            "cut": "n >= 2",
        },
    ),
    (CMS, "Events", {"expressions": ["sum(Muon_pt)", "max(Muon_pt)", "count(Muon_pt)", "argmax(Muon_pt)"]}),
    (
        CMS,
        "Events",
        {"expressions": ["mean(Muon_pt)", "std(Muon_pt)", "var(Muon_eta, ddof=1)", "moment(Muon_pt, 2)"]},
    ),
    (CMS, "Events", {"expressions": ["any(Muon_pt > 30)", "all(Muon_pt > 3)", "prod(Muon_charge)"]}),
    (
        CMS,
        "Events",
        {
            "expressions": [
                "firsts(Muon_pt)",
                "fill_none(firsts(Muon_pt), -1)",
                "is_none(firsts(Muon_pt))",
                "fill_none(pad_none(Muon_pt, 2), 0)[:, 1]",
            ]
        },
    ),
    (
        CMS,
        "Events",
        {"expressions": ["sort(Muon_pt, ascending=False)", "argsort(Muon_pt)", "softmax(Muon_eta)"]},
    ),
    (CMS, "Events", {"expressions": ["concatenate([Muon_pt, Muon_eta])", "where(Muon_pt > 10, Muon_pt, 0)"]}),
    (
        CMS,
        "Events",
        {"expressions": ["num(combinations(Muon_pt, 2))", "num(cartesian([Muon_pt, Muon_eta]))"]},
    ),
    (
        CMS,
        "Events",
        {"expressions": ["Muon_pt[:, :1]", "Muon_pt[:, -1:]", "Muon_pt[:, ::-1]"], "cut": "nMuon > 0"},
    ),
    (
        CMS,
        "Events",
        {
            "expressions": [
                'flatten(broadcast_arrays(cartesian([Muon_pt, Muon_eta], nested=True)["0"], 1)[0])'
            ]
        },
    ),
    (CMS, "Events", {"expressions": ["nMuon"], "cut": "sum(Muon_pt, axis=-1) > 50"}),
    (CMS, "Events", {"expressions": ["any(Muon_pt > 20, axis=1)", "sum(Muon_pt, axis=1, keepdims=True)"]}),
    (
        CMS,
        "Events",
        {"expressions": ["drop_none(mask(Muon_pt, Muon_pt > 10))", "nansum(Muon_pt)", "nanmax(Muon_pt)"]},
    ),
    (CMS, "Events", {"expressions": ["isclose(Muon_pt, Muon_pt + 1e-12)", "singletons(firsts(Muon_pt))"]}),
    (CMS, "Events", {"expressions": ["-nMuon % 3", "nMuon // 2", "nMuon << 1", "~(nMuon > 1)", "nMuon ^ 1"]}),
    (
        CMS,
        "Events",
        {"expressions": ["atan2(Muon_eta, Muon_phi)", "erf(Muon_eta)", "hypot(Muon_pt, 2)", "rint(Muon_pt)"]},
    ),
    (CMS, "Events", {"expressions": ["get('nMuon') + 1", "nMuon"], "cut": "get('nMuon') == 1"}),
    (ZMUMU, "events", {"expressions": ["px1 + px2", "M"], "cut": "(pt1 > 30) & (pt2 > 30)"}),
    (ZMUMU, "events", {"filter_name": "p?1"}),
    (ZMUMU, "events", {"filter_typename": "int*_t"}),
    (ZMUMU, "events", {"filter_typename": ["/d.*e/"], "filter_name": "*1"}),
    (SHAPES, "tree", {}),
    (SHAPES, "tree", {"filter_name": ["a", "p", "q"], "cut": "b"}),
    (SHAPES, "tree", {"expressions": ["num(a)", "i + l", "f / d", "p * 2", "a[a > 0]"], "cut": "i > -100"}),
    (EMPTY, "Events", {"filter_name": "Muon_pt*"}),
    (EMPTY, "Events", {"expressions": ["any(Muon_pt > 20)", "Jet_pt * 2", "fill_none(max(Jet_pt), 0)"]}),
]


@pytest.mark.parametrize(("path", "tree", "part"), GRID, ids=[json.dumps(g[2])[:60] for g in GRID])
def test_answers_are_those_of_uproot(few: Path, path: Path, tree: str, part: dict[str, Any]) -> None:
    path = few if path is CMS else path
    with uproot.open(path) as file, np.errstate(all="ignore"):
        wanted = file[tree].arrays(**part, language=language())
    for step in (64 << 20, 20_000) if len(wanted) else (64 << 20,):
        got = ask(path, step, treename=tree, **part)
        assert list(got) == wanted.fields
        for name, column in got.items():
            assert ak.array_equal(column, wanted[name], equal_nan=True, check_parameters=False), name


@pytest.mark.parametrize("name", sorted(EVENT_AXIS))
def test_functions_act_within_the_event_unless_the_axis_is_given(name: str) -> None:
    function = getattr(ak, name)
    with uproot.open(SHAPES) as file:
        p = file["tree"]["p"].array()
    text = {"moment": "moment(p, 2{})", "concatenate": "concatenate([p, p]{})"}.get(name, f"{name}(p{{}})")
    arguments = {"moment": (p, 2), "concatenate": ([p, p],)}.get(name, (p,))
    if name == "flatten":
        with pytest.raises(BadQuery, match="axis=2"):
            ask(SHAPES, treename="tree", expressions="flatten(p)")
        return
    wanted = function(*arguments, axis=1)
    for axis in ("", ", axis=1", ", axis=-1" if name != "concatenate" else ""):
        (got,) = ask(SHAPES, treename="tree", expressions=text.format(axis)).values()
        assert ak.array_equal(got, wanted, equal_nan=True)
    if name != "softmax":
        with pytest.raises(BadQuery, match=r"it gives|axis"):
            ask(SHAPES, treename="tree", expressions=text.format(""), use_standard_awkward_axis=True)


def test_the_axis_may_be_given_by_place() -> None:
    (got,) = ask(SHAPES, treename="tree", expressions="sum(p, 1)").values()
    (wanted,) = ask(SHAPES, treename="tree", expressions="sum(p)").values()
    assert got.to_list() == wanted.to_list()


def test_awkwards_own_axis_sees_all_events_before_the_cut() -> None:
    with uproot.open(SHAPES) as file:
        i = file["tree"]["i"].array()
    for part in ({"use_standard_awkward_axis": True}, {}):
        axis = "" if part else ", axis=None"
        got = ask(
            SHAPES, treename="tree", expressions=[f"i / max(i{axis})"], cut="i < max(i, axis=None)", **part
        )
        (column,) = got.values()
        assert column.to_list() == (i / ak.max(i))[i < ak.max(i)].to_list()


@pytest.mark.parametrize("path", [NTUPLE, PARQUET])
def test_ntuples_and_parquet_are_inputs_like_trees(path: Path) -> None:
    tree = "Events"
    if path is PARQUET:
        rows = ak.from_parquet(path, columns=["nMuon", "Muon_pt", "Muon_eta"])
    else:
        with uproot.open(path) as file:
            rows = file[tree].arrays(["nMuon", "Muon_pt", "Muon_eta"])
    got = ask(path, treename=tree, filter_name=["nMuon", "Muon_pt"], cut="any(Muon_eta > 1)")
    kept = rows[ak.any(rows.Muon_eta > 1, axis=1)]
    assert set(got) == {"nMuon", "Muon_pt"}
    assert got["Muon_pt"].to_list() == kept.Muon_pt.to_list()
    assert len(ask(path, treename=tree, filter_typename="/.*float.*/", filter_name="Muon*")) >= 3


def test_only_needed_branches_are_read_and_the_rest_only_where_events_survive(tmp_path: Path) -> None:
    path = tmp_path / "wide.root"
    random = np.random.default_rng(3)
    with uproot.recreate(path) as file:
        file.mktree("t", {"n": "int32", "heavy": "float64", "other": "float64"})
        for block in range(10):
            heavy = random.random(20_000)
            file["t"].extend({"n": np.full(20_000, block), "heavy": heavy, "other": heavy[::-1]})
    data = open_bytes(path.as_uri(), allow=("file://",))
    part = {"treename": "t", "expressions": ["heavy * 2"], "cut": "n == 4"}
    kept = Kept()
    UprootRaw(json.dumps([part])).run(data, kept, 1 << 20, lambda progress: None)
    assert kept.rows == 20_000
    assert data.taken < path.stat().st_size / 8
    data.close()


def test_a_member_of_each_list_can_be_taken_after_the_cut_that_makes_it_sure(few: Path) -> None:
    part: dict[str, Any] = {
        "expressions": ["Muon_pt[:, 0]", "Muon_pt[:, 1] / max(Muon_pt)"],
        "cut": "nMuon >= 2",
    }
    first, second = ask(few, treename="Events", **part).values()
    with uproot.open(few) as file:
        pt = file["Events"]["Muon_pt"].array()
    pt = pt[ak.num(pt) >= 2]
    assert first.to_list() == pt[:, 0].to_list()
    assert second.to_list() == (pt[:, 1] / ak.max(pt, axis=1)).to_list()


def test_progress_counts_entries_of_all_trees(few: Path) -> None:
    told: list[Progress] = []
    data = open_bytes(few.as_uri(), allow=("file://",))
    parts = [{"treename": {"Events": f"t{i}"}, "expressions": "nMuon", "cut": "nMuon > 3"} for i in range(2)]
    UprootRaw(json.dumps(parts)).run(data, Kept(), 4_000, told.append)
    assert told[-1].events == told[-1].of == 6000
    assert len(told) > 4
    data.close()


def test_trees_are_renamed_repeated_and_extended() -> None:
    kept = run(
        SHAPES,
        {"treename": {"tree": "a"}, "expressions": ["i"], "cut": "i > 0"},
        {"treename": {"tree": "b"}, "expressions": ["f"]},
        {"treename": ["tree", "missing"], "expressions": ["i"]},
        {"treename": {"tree": "a"}, "expressions": ["i"], "cut": "i <= 0"},
    )
    assert list(kept.tables) == ["a", "b", "tree"]
    assert sorted(kept.columns("a")["i"]) == sorted(kept.columns("tree")["i"])


def test_missing_trees_are_skipped_or_fail_as_asked() -> None:
    assert run(SHAPES, {"treename": "nope"}).tables == {}
    with pytest.raises(UnknownColumn, match=r"sub-query 2: .*no tree 'nope'"):
        run(SHAPES, {"treename": "nope"}, {"treename": "nope", "fail_on_missing_trees": True})


def test_without_surviving_rows_there_are_columns_and_types() -> None:
    for path, tree, cut in ((SHAPES, "tree", "i > 10000000"), (EMPTY, "Events", "nMuon > 1")):
        got = ask(path, treename=tree, cut=cut, filter_name=["i", "f", "a", "nMuon", "Muon_pt"])
        with uproot.open(path) as file:
            wanted = file[tree].arrays(list(got))[:0]
        assert all(len(a) == 0 for a in got.values())
        assert [str(a.type) for a in got.values()] == [str(wanted[n].type) for n in got]


def test_a_constant_is_a_column() -> None:
    got = ask(SHAPES, treename="tree", expressions=["1", "2.5 * 2", "i"], cut="i > 0")
    assert set(got["1"]) == {1}
    assert set(got["2.5 * 2"]) == {5.0}
    assert len(got["1"]) == len(got["i"])


def test_branches_with_any_name_can_be_asked_for(tmp_path: Path) -> None:
    names = ["a.b", "a b", "x-y", "2nd", "lambda", "sum", "é", "q[0]", "is it?", "get"]
    with uproot.recreate(tmp_path / "odd.root") as file:
        file.mktree("t", dict.fromkeys(names, "float64") | {"a": "float64", "x": "int32", "y": "int32"})
        file["t"].extend({n: [float(i)] for i, n in enumerate(names)} | {"a": [9.0], "x": [5], "y": [3]})
    for i, name in enumerate(names):
        assert (
            ask(tmp_path / "odd.root", treename="t", expressions=name) == {name: ak.Array([float(i)])} or True
        )
        (got,) = ask(tmp_path / "odd.root", treename="t", expressions=name).values()
        assert got.to_list() == [i]
        (got,) = ask(tmp_path / "odd.root", treename="t", expressions=f"get({name!r}) + 1").values()
        assert got.to_list() == [i + 1]
    (got,) = ask(tmp_path / "odd.root", treename="t", expressions="a.b + a").values()
    assert got.to_list() == [9.0]
    (got,) = ask(tmp_path / "odd.root", treename="t", expressions="x - y").values()
    assert got.to_list() == [2]


def test_a_branch_goes_before_an_alias_of_its_name() -> None:
    got = ask(SHAPES, treename="tree", expressions=["i", "j"], aliases={"i": "i * 0", "j": "i"})
    assert got["i"].to_list() == got["j"].to_list()
    assert any(got["i"])


def test_and_or_not_and_chains_act_on_each_event() -> None:
    got = ask(SHAPES, treename="tree", expressions=["i > 0 and not b or f > 2", "-5 < i <= 3"])
    with uproot.open(SHAPES) as file:
        t = file["tree"].arrays(["i", "b", "f"])
    assert got["i > 0 and not b or f > 2"].to_list() == (((t.i > 0) & ~t.b) | (t.f > 2)).to_list()
    assert got["-5 < i <= 3"].to_list() == ((t.i > -5) & (t.i <= 3)).to_list()


def test_rows_say_their_tree_where_the_format_knows_no_trees() -> None:
    kept = run(
        SHAPES,
        {"treename": {"tree": "a"}, "expressions": "i"},
        {"treename": {"tree": "b"}, "expressions": "i"},
        trees=False,
    )
    assert set(kept.columns("a")["treename"]) == {"a"}
    assert set(kept.columns("b")["treename"]) == {"b"}
    with pytest.raises(BadQuery, match="sub-query 1: a column 'treename'"):
        run(
            SHAPES, {"treename": "tree", "expressions": "treename", "aliases": {"treename": "i"}}, trees=False
        )


def deliver(path: Path, out: Path, format_: str, *parts: dict[str, Any]) -> Any:
    out.unlink(missing_ok=True)
    task = Task(
        path.as_uri(), json.dumps(parts), str(out), codegen="uproot-raw", format=format_, allow=("file://",)
    )
    return execute(task)


@pytest.fixture
def booked(tmp_path: Path) -> Path:
    path = tmp_path / "booked.root"
    with uproot.recreate(path) as file:
        file["cutflow/all"] = np.histogram([1.0, 2.0, 2.5], bins=4)
        file["cutflow/some"] = np.histogram([1.0], bins=2)
        file["CutBookkeeper_1"] = np.histogram2d([1.0, 2.0], [1.0, 2.0], bins=(2, 3))
        for name in ("nominal", "JET_up"):
            file.mktree(name, {"met": "float32", "jet_pt": "var * float32"})
            file[name].extend(
                {
                    "met": np.array([10, 60, 80], np.float32),
                    "jet_pt": ak.values_astype(ak.Array([[1.0], [], [2.0, 3]]), "float32"),
                }
            )
    return path


@pytest.mark.parametrize("format_", ["root-file", "root-rntuple"])
def test_root_output_has_trees_and_histograms_by_name(tmp_path: Path, booked: Path, format_: str) -> None:
    outcome = deliver(
        booked,
        tmp_path / "out",
        format_,
        {"treename": ["nominal", "JET_up"], "filter_name": "/.*/", "cut": "met > 50"},
        {"treename": {"nominal": "low"}, "expressions": ["met"], "cut": "met < 50"},
        {"copy_histograms": ["CutBookkeeper*", "/cutflow.*/"]},
    )
    assert outcome.rows == 5
    with uproot.open(tmp_path / "out") as file, uproot.open(booked) as source:
        assert {"nominal", "JET_up", "low", "CutBookkeeper_1", "cutflow/all", "cutflow/some"} <= set(
            file.keys(cycle=False)
        )
        assert file["nominal"].arrays().met.to_list() == [60, 80]
        assert file["nominal"].arrays().jet_pt.to_list() == [[], [2, 3]]
        assert file["low"].arrays().met.to_list() == [10]
        assert file["cutflow/all"].values().tolist() == source["cutflow/all"].values().tolist()
        assert file["CutBookkeeper_1"].values().tolist() == source["CutBookkeeper_1"].values().tolist()


def test_parquet_output_is_one_table(tmp_path: Path, booked: Path) -> None:
    out = tmp_path / "out"
    deliver(booked, out, "parquet", {"treename": ["nominal", "JET_up"]})
    assert ak.from_parquet(out).treename.to_list() == ["nominal"] * 3 + ["JET_up"] * 3
    with pytest.raises(BadQuery, match=r"'met' is new|'jet_pt' is missing"):
        deliver(booked, out, "parquet", {"treename": "nominal"}, {"treename": "JET_up", "expressions": "met"})
    with pytest.raises(BadQuery, match="cannot be stored in parquet"):
        deliver(booked, out, "parquet", {"copy_histograms": "*"})
    deliver(booked, out, "parquet", {"treename": "nope"})
    assert len(ak.from_parquet(out)) == 0


def test_a_tree_is_not_copied_as_a_histogram(tmp_path: Path, booked: Path) -> None:
    with pytest.raises(BadQuery, match="'nominal' cannot be copied"):
        deliver(booked, tmp_path / "out", "root-file", {"copy_histograms": "nominal"})
    deliver(booked, tmp_path / "out", "root-file", {"copy_histograms": "*"})
    with uproot.open(tmp_path / "out") as file:
        assert "nominal" not in file.keys(cycle=False)
        assert "cutflow/all" in file.keys(cycle=False)
    with pytest.raises(BadQuery, match="no ROOT file"):
        deliver(PARQUET, tmp_path / "out", "root-file", {"copy_histograms": "*"})


def test_names_can_be_checked_without_running() -> None:
    data = open_bytes(SHAPES.as_uri(), allow=("file://",))
    part = {"treename": "tree", "expressions": ["i", "num(a)"]}
    assert compile_query("uproot-raw", json.dumps([part])).check(data) == ("i", "num(a)")
    with pytest.raises(UnknownColumn, match=r"sub-query 1: .*no branch 'ii'.*did you mean i\?"):
        UprootRaw(json.dumps([{**part, "cut": "ii > 0"}])).check(data)
    data.close()


def test_a_selection_is_explained_with_and_without_a_file(few: Path) -> None:
    part = {
        "treename": {"Events": "two"},
        "expressions": ["Muon_pt", "high"],
        "aliases": {"high": "max(Muon_pt)"},
        "cut": "nMuon == 2",
    }
    text = json.dumps([part, {"copy_histograms": "h*"}])
    plain = explain("uproot-raw", text)
    assert (plain.tree, plain.tree_out) == ("Events", "two")
    assert "where nMuon == 2" in plain.text()
    data = open_bytes(few.as_uri(), allow=("file://",))
    full = explain("uproot-raw", text, data)
    data.close()
    assert full.branches == ("nMuon", "Muon_pt")
    assert full.filters == ("nMuon",)
    assert {c.name: c.type for c in full.columns} == {"Muon_pt": "var * float32", "high": "?float32"}
    assert full.file is not None
    assert full.file.entries == 3000


def test_spellings_of_a_question_have_one_digest() -> None:
    def digest(**part: Any) -> str:
        return UprootRaw(json.dumps([{"treename": "t", **part}])).digest

    assert digest(cut="a>1", expressions=["x"]) == digest(
        cut="( a > 1 )", expressions="x", aliases=None, ignored=3
    )
    distinct = [
        digest(),
        digest(cut="a"),
        digest(cut="b"),
        digest(expressions="a"),
        digest(filter_name="a"),
        digest(filter_typename="a"),
        digest(aliases={"a": "b"}),
        digest(treename="u"),
        digest(treename={"t": "u"}),
        digest(fail_on_missing_trees=True),
        digest(use_standard_awkward_axis=True),
        digest(copy_histograms="a"),
        digest(expressions=["a", "b"]),
        digest(expressions=["a*2"]),
        digest(expressions=["a * 2"]),
    ]
    assert len(set(distinct)) == len(distinct)


REFUSED: list[tuple[Any, str]] = [
    ("", "takes a JSON list"),
    ("{", "takes a JSON list"),
    ("null", "JSON list of one or more"),
    ("[]", "one or more"),
    ('"abc"', "JSON list"),
    ([3], "sub-query 1: it must be an object"),
    ([{}], "sub-query 1: it needs a treename or copy_histograms"),
    ([{"treename": "t"}, {"treename": None}], "sub-query 2: it needs"),
    ([{"treename": 3}], "sub-query 1, treename: it must be a string"),
    ([{"treename": ["a", 1]}], "treename"),
    ([{"treename": {"a": 1}}], "treename: it must map"),
    ([{"treename": "a\0b"}], "treename: it holds what is no text"),
    ([{"treename": "t", "expressions": {"a": 1}}], "expressions: it must be a string or a list"),
    ([{"treename": "t", "expressions": [""]}], "expressions: it holds an empty"),
    ([{"treename": "t", "cut": 1}], "cut: it must be a string"),
    ([{"treename": "t", "aliases": ["a"]}], "aliases: it must map"),
    ([{"treename": "t", "aliases": {"a": 1}}], "aliases: it must map"),
    ([{"treename": "t", "fail_on_missing_trees": "yes"}], "fail_on_missing_trees: it must be true or false"),
    ([{"treename": "t", "filter_name": "/(/"}], "filter_name: '/\\(/' is no regular expression"),
    ([{"treename": "t", "filter_name": "/(?=a)b/"}], "look-around"),
    ([{"treename": "t", "filter_name": "/a/x"}], "flags x"),
    ([{"copy_histograms": "/(a/"}], "copy_histograms: "),
]


@pytest.mark.parametrize(("query", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_key_is_named_with_its_sub_query(query: Any, words: str) -> None:
    with pytest.raises(BadQuery, match=words):
        UprootRaw(query if isinstance(query, str) else json.dumps(query))


HOSTILE = [
    "__import__('os').system('id')",
    "().__class__.__bases__[0].__subclasses__()",
    "a.__class__",
    "__builtins__",
    "open('/etc/passwd')",
    "eval('1')",
    "exec('1')",
    "getattr(a, 'x')",
    "(lambda: 1)()",
    "[x for x in a]",
    "{x: 1 for x in a}",
    "(x for x in a)",
    "f'{a}'",
    "a if b else c",
    "(a := 1)",
    "await a",
    "a.b.c()",
    "a()()",
    "sum(*a)",
    "sum(**a)",
    "sum(a, highlevel=False)",
    "sum(a, behavior=b)",
    "a @ b",
    "a in b",
    "a is b",
    "a not in b",
    "'a' * 10",
    "'a'",
    "b'a'",
    "1j",
    "...",
    "None",
    "{1, 2}",
    "[1, 2]",
    "(1, 2)",
    "get(a)",
    "get('a', 'b')",
    "get()",
    "1" * 30,
    "a = 1",
    "a\nb > 1",
    "print(a)",
    "numpy.sum(a)",
    "np.load('x')",
    "(" * 500 + "a" + ")" * 500,
    "~" * 3000 + "a",
    "a" + "[0]" * 500,
    "a" + "+a" * 5000,
    "sum(" * 100 + "a" + ")" * 100,
    "from_parquet('/etc/passwd')",
    "fromfile('/etc/passwd')",
    "to_list(a)",
    "cartesian({a: b})",
    "a > ",
]


@pytest.mark.parametrize("text", ["1" * 5000, "a; b", "import os", "-" * 3000, "i j"], ids=range(5))
def test_what_might_be_a_branchs_name_is_refused_when_there_is_none(text: str) -> None:
    with pytest.raises(UnknownColumn, match=r"sub-query 1: .*there is no branch"):
        ask(SHAPES, treename="tree", expressions=text)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("key", ["expressions", "cut", "aliases"])
def test_what_is_not_in_the_language_is_refused_at_submit(text: str, key: str) -> None:
    part = {"treename": "t", key: {"x": text} if key == "aliases" else text}
    with pytest.raises((BadQuery, LimitExceeded), match=f"sub-query 1, {key}"):
        UprootRaw(json.dumps([part]))


@pytest.mark.parametrize(
    "text",
    [
        "2**2**2**2**2**9",
        "1 << 10000",
        "9**999999999",
        "-5 % 0",
        "10**1000 * i",
        "(-8)**0.5",
        "1 << 70",
        "2**999 * 2**999",
        "i.real",
        "a.tolist",
        "a['x']",
        "i['x']",
        "a[:, 99]",
        "num(i)",
        "combinations(a, 11)",
        "combinations(a, 2, axis=0)",
        "cartesian([a, a], axis=0)",
        "pad_none(a, 10**9)",
        "sum(a, axis='x')",
        "sum(a, axis=a)",
        "sum()",
        "sqrt(a, a, a)",
        "where(a)",
        "broadcast_arrays(a, a)",
        "concatenate(a, 3, 4)",
        "sum(p, axis=None)",
        "i[0]",
        "i[:3]",
        "sqrt",
        "almost_equal(a, a)",
        "nope",
        "a.b",
        "get('nope')",
        "x",
        "y",
        "softmax(i, axis=7)",
        "mask(a, 1)",
        "abs('x')",
        "round(a, decimals=2)",
        "moment(a)",
        "sum([a])",
        "a[[0, 1]]",
        "a['i']",
    ],
)
def test_what_does_not_fit_the_data_says_so(text: str) -> None:
    with pytest.raises((BadQuery, LimitExceeded)):
        ask(SHAPES, treename="tree", expressions=text, aliases={"x": "y", "y": "x"})


def test_combinations_without_bound_are_refused(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "big.root") as file:
        file.mktree("t", {"x": "var * float32"})
        file["t"].extend({"x": ak.from_regular(np.zeros((20, 30_000), np.float32))})
    for text in (
        "combinations(x, 2)",
        "cartesian([x, x])",
        "num(combinations(x, 3))",
        "cartesian({'a': x, 'b': x})",
    ):
        with pytest.raises(LimitExceeded, match="members"):
            ask(tmp_path / "big.root", treename="t", expressions=text)


def test_large_requests_are_refused() -> None:
    for text in (
        "[" * 100_000 + "]" * 100_000,
        json.dumps([{"treename": "t"}] * 10_000),
        json.dumps([{"treename": ["t"] * 100_000}]),
        json.dumps([{"treename": "t", "expressions": "a" * 20_000}]),
        " " * (5 << 20),
        json.dumps([{"treename": "t", "filter_name": "*" * 5000}]),
    ):
        with pytest.raises((BadQuery, LimitExceeded)):
            UprootRaw(text)


def test_patterns_that_make_python_think_for_ever_are_quick() -> None:
    patterns = ["/(a+)+$/", "/(a|a)*b/", "/(.*)*x/", "*a" * 200 + "*b"]
    query = UprootRaw(json.dumps([{"treename": "t", "filter_name": patterns}]))
    test = query.parts[0].names
    assert test is not None
    assert not test("a" * 5000 + "!")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    [
        "treename",
        "expressions",
        "cut",
        "filter_name",
        "filter_typename",
        "aliases",
        "fail_on_missing_trees",
        "use_standard_awkward_axis",
        "copy_histograms",
    ]
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(keys, json_values, max_size=5) | json_values, max_size=3))
def test_any_json_gives_a_query_or_one_clear_error(parts: Any) -> None:
    with contextlib.suppress(BadQuery, LimitExceeded):
        assert len(UprootRaw(json.dumps(parts)).digest) == 64


WORDS = """
i a p f b nope sum num any where combinations get sqrt ( ) [ ] , : . + - * / ** % < > == & | ~ not and or
axis = 0 1 -1 2.5 1e400 'i' None True lambda if else for in
"""


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join))
def test_any_text_gives_a_column_or_one_clear_error(text: str) -> None:
    with contextlib.suppress(BadQuery, LimitExceeded):
        (got,) = ask(SHAPES, treename="tree", expressions=text or "i", cut="b").values()
        assert len(got) == len(ask(SHAPES, treename="tree", expressions="i", cut="b")["i"])


def test_what_the_client_writes_is_understood() -> None:
    text = (  # of servicex 3.3.1: every key of the kind, unset ones as null
        '[{"treename": {"tree": "out"}, "expressions": ["i", "n"], "cut": "b", "filter_name": null, '
        '"filter_typename": null, "aliases": {"n": "num(a)"}, "fail_on_missing_trees": null, '
        '"use_standard_awkward_axis": null}, {"copy_histograms": ["h*"]}]'
    )
    trees, histograms = UprootRaw(text).parts
    assert trees.trees == (("tree", "out"),)
    assert not trees.must_exist
    assert histograms.histograms is not None
    assert histograms.histograms("h1")


def test_sub_queries_of_one_tree_open_it_once() -> None:
    """Each reads its columns, none the tree again."""

    def read(*columns: str) -> int:
        data = open_bytes(ZMUMU.as_uri(), allow=("file://",))
        with contextlib.closing(data):
            parts = [{"treename": "events", "expressions": [name]} for name in columns]
            UprootRaw(json.dumps(parts)).run(data, Kept(True), 64 << 20, lambda progress: None)
            return data.taken

    assert read("E1", "E1") < 2 * read("E1")


def test_branches_of_branches_are_named_by_their_paths_as_in_uproot() -> None:
    with uproot.open(SPLIT) as file:
        for name in ["x", "y", "a/x", "b/x", "/b/x", "/x", "b/v", "in.k", "in/in.z", "b/in/in.k", "a/in.k"]:
            wanted = file["tree"][name].array()
            assert ask(SPLIT, treename="tree", expressions=name)[name].to_list() == wanted.to_list(), name
            (got,) = ask(SPLIT, treename="tree", expressions="w", aliases={"w": f"get({name!r})"}).values()
            assert got.to_list() == wanted.to_list(), name
        cut = ask(SPLIT, treename="tree", expressions=["a/x", "b/v"], cut="get('b/x') > 10", step=1)
        assert cut["a/x"].to_list() == [2, 3, 4]
        assert cut["b/v"].to_list() == file["tree/b/v"].array()[2:].to_list()
    with pytest.raises(UnknownColumn, match="no branch 'b/w'"):
        ask(SPLIT, treename="tree", expressions="get('b/w')")
    with pytest.raises(BadQuery, match="a / y"):  # not a path: there is no branch a/k
        ask(SPLIT, treename="tree", expressions="a / y")


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("b/x", ["b/x"]), (r"/a\/[xy]/", ["a/x", "y"]), ("x", ["a/x", "b/x", "x"]),
        ("*x", ["a/x", "b/x", "x"]),
        ("/b/*", ["b/x", "b/y", "b/v", "b/in/in.k", "b/in/in.z"]),
        ("in.?", ["in.k", "in.z", "b/in/in.k", "b/in/in.z"]),
    ],
)  # fmt: skip
def test_filters_take_branches_of_branches_by_name_and_by_path_and_give_their_own_values(
    asked: str, names: list[str]
) -> None:
    got = ask(SPLIT, treename="tree", filter_name=asked)
    with uproot.open(SPLIT) as file:
        # uproot finds the same branches, but gives those of one name the values of the first one.
        assert file["tree"].keys(filter_name=asked, filter_branch=lambda b: not b.branches) == [
            n if "/" in n or n == "x" else f"a/{'in/' if '.' in n else ''}{n}" for n in names
        ]
        assert list(got) == names
        assert {n: a.to_list() for n, a in got.items()} == {
            n: file["tree"][n].array().to_list() for n in names
        }


def test_a_branch_that_is_only_its_branches_is_a_record_of_them() -> None:
    got = ask(SPLIT, treename="tree", expressions=["a", "n"], aliases={"n": "b.x + a['in']['in.k']"})
    with uproot.open(SPLIT) as file:
        for name in ("x", "y", "v"):
            assert got["a"][name].to_list() == file["tree/a"][name].array().to_list()
        assert got["n"].to_list() == (file["tree/b/x"].array() + file["tree/a/in.k"].array()).to_list()


@pytest.mark.parametrize("text", ["a[:, ::0]", "a[:, :: 1 - 1]", "a[:, i:]", "a[:, :1.5]", "a[::0]"])
def test_a_slice_takes_whole_numbers_and_a_step(text: str) -> None:
    with pytest.raises(BadQuery, match="a slice takes whole numbers, and its step is not 0"):
        ask(SHAPES, treename="tree", expressions=text)
    got = ask(SHAPES, treename="tree", expressions="a[:, ::-1]")["a[:, ::-1]"]
    assert got.to_list() == ask(SHAPES, treename="tree", expressions="a")["a"][:, ::-1].to_list()
