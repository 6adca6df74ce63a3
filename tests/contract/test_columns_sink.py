"""Results in every format, read back by uproot, awkward and pyarrow."""

import contextlib
import itertools
import math
import os
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.columns import sink_file
from doma.columns.evaluate import Table
from doma.columns.sink import FORMATS, open_sink
from doma.core.errors import BadQuery, StorageFull

ROOT = ("root-file", "root-rntuple")
each = pytest.mark.parametrize("format_", FORMATS)
each_root = pytest.mark.parametrize("format_", ROOT)


def store(path: Path, format_: str, *steps: dict[str, Any], tree: str = "servicex") -> None:
    path.unlink(missing_ok=True)
    with open_sink(path, format_) as sink:
        for step in steps:
            sink.write(
                Table({n: a if isinstance(a, ak.Array) else ak.Array(a) for n, a in step.items()}), tree
            )
        size = sink.close()
    assert size == path.stat().st_size


def load(path: Path, format_: str, tree: str = "servicex") -> ak.Array:
    if format_ == "parquet":
        return ak.from_parquet(path)
    with uproot.open({path: None}) as file:
        return file[tree].arrays()


PLAIN: dict[str, Any] = {
    **{f"{s}int{n}": np.array([0, 1, 100], f"{s}int{n}") for s in ("", "u") for n in (8, 16, 32, 64)},
    "float32": np.array([0.5, np.nan, np.inf], np.float32),
    "float64": np.array([0.1, -0.0, 1e300]),
    "bool": np.array([True, False, True]),
    "string": ["", "é" * 200, "a\0b"],
    "list": [[1.5], [], [2.5, 3.5]],
    "ints": ak.values_astype(ak.Array([[1], [], [2, 3]]), np.int16),
    "fixed": np.arange(6, dtype=np.int32).reshape(3, 2),
}


@each
def test_every_plain_type_comes_back_with_its_width(tmp_path: Path, format_: str) -> None:
    store(tmp_path / "r", format_, PLAIN)
    back = load(tmp_path / "r", format_)
    for name, data in PLAIN.items():
        wanted = ak.Array(data)
        assert ak.array_equal(back[name], wanted, equal_nan=True), name
        if name != "fixed":  # Parquet keeps fixed-size lists, but awkward reads them through options
            assert back[name].type == wanted.type, name


@each
def test_a_result_without_rows_has_its_columns_and_types(tmp_path: Path, format_: str) -> None:
    store(tmp_path / "r", format_, {n: ak.Array(a)[:0] for n, a in PLAIN.items()})
    back = load(tmp_path / "r", format_)
    assert len(back) == 0
    assert [f for f in back.fields if f in PLAIN] == list(PLAIN)
    for name in ("int8", "float32", "bool", "string", "list", "ints"):
        assert back[name].type.content == ak.Array(PLAIN[name]).type.content, name


@each
def test_steps_follow_each_other(tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_file, "ROWS", 7)
    whole = ak.Array([[float(i)] * (i % 4) for i in range(100)])
    cuts = [0, 0, 1, 5, 30, 30, 99, 100]
    steps = [{"x": whole[a:b], "n": ak.num(whole[a:b])} for a, b in itertools.pairwise(cuts)]
    store(tmp_path / "r", format_, *steps)
    back = load(tmp_path / "r", format_)
    assert back.x.to_list() == whole.to_list()
    assert back.n.to_list() == [i % 4 for i in range(100)]


def test_a_row_group_has_a_bounded_number_of_rows(tmp_path: Path) -> None:
    store(tmp_path / "r", "parquet", *[{"x": np.arange(70_000)}] * 4)
    meta = pq.ParquetFile(tmp_path / "r").metadata
    assert meta.num_rows == 280_000
    assert all(50_000 <= meta.row_group(i).num_rows <= 140_000 for i in range(meta.num_row_groups))


def test_many_small_steps_become_few_baskets(tmp_path: Path) -> None:
    store(tmp_path / "r", "root-file", *[{"x": np.arange(10)}] * 200)
    with uproot.open(tmp_path / "r") as file:
        assert file["servicex"].num_entries == 2000
        assert file["servicex"]["x"].num_baskets == 1


@each
def test_a_single_unnamed_array_has_the_formats_name_for_it(tmp_path: Path, format_: str) -> None:
    store(tmp_path / "r", format_, {"": [[1.0], []]})
    back = load(tmp_path / "r", format_)
    assert (back if format_ == "parquet" else back.branch).to_list() == [[1.0], []]


def test_a_tree_has_counters_and_titles_as_root_writes_them(tmp_path: Path) -> None:
    jets = ak.Array([[{"pt": 1.0, "id": 3}], [], [{"pt": 2.0, "id": 4}, {"pt": 5.0, "id": 6}]])
    store(tmp_path / "r", "root-file", {"jets": jets, "x": [[1], [2, 3], []], "y": [1.0, 2.0, 3.0]})
    with uproot.open(tmp_path / "r") as file:
        tree = file["servicex"]
        assert tree.classname == "TTree"
        titles = {b.name: b.member("fLeaves")[0].member("fTitle") for b in tree.branches}
        assert {n: b.title for n, b in tree.items()} == {
            "njets": "njets/I",
            "jets_pt": "jets_pt[njets]/D",
            "jets_id": "jets_id[njets]/L",
            "nx": "nx/I",
            "x": "x[nx]/L",
            "y": "y/D",
        }
        assert titles["jets_pt"] == "jets_pt[njets]"
        counter = tree["njets"].member("fLeaves")[0]
        assert tree["jets_pt"].member("fLeaves")[0].member("fLeafCount") is counter
        assert counter.member("fMaximum") == 2
        assert tree["jets_pt"].array().to_list() == jets.pt.to_list()
        assert tree["njets"].array().to_list() == [1, 0, 2]


def test_nested_records_become_branches_with_both_names(tmp_path: Path) -> None:
    data = ak.Array([{"v": {"pt": 1.0, "p": {"x": 1}}, "t": (1, True)}])
    store(tmp_path / "r", "root-file", {"m": data})
    back = load(tmp_path / "r", "root-file")
    assert back.to_list() == [{"m_v_pt": 1.0, "m_v_p_x": 1, "m_t_0": 1, "m_t_1": True}]


def test_a_counter_gives_way_to_a_column_of_its_name(tmp_path: Path) -> None:
    store(tmp_path / "r", "root-file", {"x": [[1.0], []], "nx": [0.5, 1.5], "nx_": [True, False]})
    back = load(tmp_path / "r", "root-file")
    assert back.nx.to_list() == [0.5, 1.5]
    assert back.nx_.to_list() == [True, False]
    assert back.x.to_list() == [[1.0], []]
    assert back["nx__"].to_list() == [1, 0]


def test_missing_values_in_a_tree_are_nan_or_make_it_fail(tmp_path: Path) -> None:
    floats = ak.Array([1.5, None])
    store(tmp_path / "r", "root-file", {"x": floats, "y": ak.Array([[1.5, None], []])})
    back = load(tmp_path / "r", "root-file")
    assert math.isnan(back.x[1])
    assert math.isnan(back.y[0, 1])
    for missing in (
        ak.Array([1, None]),
        ak.Array([True, None]),
        ak.Array(["a", None]),
        ak.Array([[1], None]),
    ):
        with pytest.raises(BadQuery, match=r"'first' has 1 missing .* Where\(… Count\(\) > 0\)"):
            store(tmp_path / "r", "root-file", {"first": missing})
        assert not (tmp_path / "r").exists()
        store(tmp_path / "r", "root-file", {"first": missing[:1]})
        assert load(tmp_path / "r", "root-file").first.to_list() == missing[:1].to_list()


@pytest.mark.parametrize("format_", ["parquet", "root-rntuple"])
def test_missing_values_stay_missing(tmp_path: Path, format_: str) -> None:
    data = {
        "i": [1, None],
        "b": [None, True],
        "s": ["a", None],
        "l": [[1, None], None],
        "f": ak.Array([1.5, None]),
        "ll": [[[1], None], []],
        "none": [[None, None], []],
        "nothing": ak.mask(ak.Array(["a", "b"]), [False, False]),
    }
    store(tmp_path / "r", format_, data, data)
    back = load(tmp_path / "r", format_)
    for name, values in data.items():
        assert back[name].to_list() == ak.to_list(values) * 2, name


def test_a_missing_record_in_an_ntuple_has_missing_members(tmp_path: Path) -> None:
    store(tmp_path / "r", "root-rntuple", {"m": ak.Array([{"pt": 1.0, "n": 2}, None])})
    assert load(tmp_path / "r", "root-rntuple").m.to_list() == [{"pt": 1.0, "n": 2}, {"pt": None, "n": None}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([[[1.0]], []], "lists of lists"),
        ([["a"], []], "lists of strings"),
        (ak.to_regular(ak.Array([[[1, 2]], []]), axis=2), "lists of lists"),
        ([b"a", b"b"], "bytes"),
        (np.array([1j, 2]), "complex128"),
        (np.array(["2020", "2021"], "M8[s]"), "datetime64"),
        ([1, "a"], "mixes types"),
        (ak.Array([[[{"a": 1}]], []]), "lists of lists"),
        (np.zeros((2, 0)), "no type for"),
    ],
)
def test_what_a_tree_cannot_hold_is_refused_with_the_columns_name(
    tmp_path: Path, data: Any, words: str
) -> None:
    with pytest.raises(BadQuery, match=f"'bad' .*{words}"):
        store(tmp_path / "r", "root-file", {"good": [1, 2], "bad": data})
    assert list(tmp_path.iterdir()) == []


@each
def test_names_of_all_kinds_survive(tmp_path: Path, format_: str) -> None:
    names = ["é", "名", "a b", "jet_pt/1000", "Muon_pt[:,0]", "sqrt(px**2)", "a.b", "x;1", "*", "q'\"", "a:b"]
    data = {n: ak.Array([float(i), 0.5]) for i, n in enumerate(names)}
    store(tmp_path / "r", format_, data)
    back = load(tmp_path / "r", format_)
    assert sorted(back.fields) == sorted(names)
    assert all(back[n].to_list() == data[n].to_list() for n in names)


@each_root
@pytest.mark.parametrize("name", ["a\0b", "a\nb", "x" * 2000, "\ud800"])
def test_names_that_root_cannot_hold_are_refused(tmp_path: Path, format_: str, name: str) -> None:
    with pytest.raises(BadQuery, match="has a name"):
        store(tmp_path / "r", format_, {name: [1]})
    with pytest.raises(BadQuery, match="has a name"):
        store(tmp_path / "r", format_, {"x": [1]}, tree=name)


@each_root
@pytest.mark.parametrize("tree", ["", "/a", "a/", "a//b", "a/../b", "a;1", "."])
def test_trees_need_a_name(tmp_path: Path, format_: str, tree: str) -> None:
    with pytest.raises(BadQuery, match="no name for"):
        store(tmp_path / "r", format_, {"x": [1]}, tree=tree)


def test_branches_that_would_be_called_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadQuery, match="'a_b' would give a second branch 'a_b'"):
        store(tmp_path / "r", "root-file", {"a": ak.Array([{"b": 1}]), "a_b": [1]})
    with pytest.raises(BadQuery, match="branch"):
        store(tmp_path / "r", "root-rntuple", {"": [1], "branch": [1]})


@each
def test_numbers_are_promoted_where_nothing_is_lost(tmp_path: Path, format_: str) -> None:
    first, later = ak.Array(np.array([1.5])), ak.Array(np.array([2], np.int32))
    store(tmp_path / "r", format_, {"x": first}, {"x": later})
    assert load(tmp_path / "r", format_).x.to_list() == [1.5, 2.0]
    with pytest.raises(BadQuery, match="'x' changes its type"):
        store(tmp_path / "r", format_, {"x": later}, {"x": first})
    with pytest.raises(BadQuery, match="'x' changes its type"):
        store(tmp_path / "r", format_, {"x": later}, {"x": ak.Array(["a"])})
    with pytest.raises(BadQuery, match=r"'x'.*missing"):
        store(tmp_path / "r", format_, {"x": later}, {"x": ak.Array([1, None])})
    with pytest.raises(BadQuery, match="'y' is new; 'x' is missing"):
        store(tmp_path / "r", format_, {"x": later}, {"y": later})


@each
def test_other_layouts_of_a_type_are_the_same_type(tmp_path: Path, format_: str) -> None:
    whole = ak.Array([[1, 2], [], [3], [4, 5, 6]])
    steps = [
        {"x": whole},
        {"x": whole[[3, 0]]},
        {"x": whole[1:]},
        {"x": whole[whole > 2]},
        {"x": whole[::-1]},
    ]
    store(tmp_path / "r", format_, *steps)
    wanted = [row for s in steps for row in s["x"].to_list()]
    assert load(tmp_path / "r", format_).x.to_list() == wanted


@each
def test_columns_may_come_in_another_order(tmp_path: Path, format_: str) -> None:
    store(tmp_path / "r", format_, {"a": [1], "b": [2.5]}, {"b": [3.5], "a": [4]})
    assert load(tmp_path / "r", format_).to_list()[1]["a"] == 4


@each
def test_nothing_written_is_still_a_valid_file(tmp_path: Path, format_: str) -> None:
    store(tmp_path / "r", format_)
    if format_ == "parquet":
        assert pq.read_table(tmp_path / "r").num_rows == 0
        assert len(ak.from_parquet(tmp_path / "r")) == 0
    else:
        with uproot.open(tmp_path / "r") as file:
            assert file.keys() == []


@each_root
def test_several_trees_and_folders_in_one_file(tmp_path: Path, format_: str) -> None:
    path = tmp_path / "r"
    with open_sink(path, format_) as sink:
        assert sink.trees
        for tree in ("a", "d/b", "d/c", "a"):
            sink.write(Table({"x": ak.Array([1, 2])}), tree)
        assert sink.rows == 8
        sink.close()
    with uproot.open(path) as file:
        assert {n: file[n].num_entries for n in ("a", "d/b", "d/c")} == {"a": 4, "d/b": 2, "d/c": 2}
        assert sorted(file.keys(cycle=True)) == ["a;1", "d/b;1", "d/c;1", "d;1"]
    with open_sink(tmp_path / "s", format_) as sink:
        sink.write(Table({"x": ak.Array([1])}), "a")
        with pytest.raises(BadQuery, match="twice"):
            sink.write(Table({"x": ak.Array([1])}), "a/b")
        with pytest.raises(BadQuery, match="needs one"):
            sink.write(Table({}), "b")


@pytest.fixture
def histograms(tmp_path: Path) -> Path:
    hist = pytest.importorskip("hist")
    path = tmp_path / "in.root"
    with uproot.recreate(path) as file:
        one = hist.Hist.new.Reg(4, 0, 1).Weight()
        one.fill([0.1, 0.2, 0.9], weight=[1, 2, 3])
        file["d/one"] = one
        file["three"] = np.histogramdd(np.random.default_rng(1).random((50, 3)), bins=(2, 3, 4))
        file["prof"] = hist.Hist.new.Reg(4, 0, 1).Mean().fill([0.1, 0.5], sample=[1.0, 2.0])
        file["text"] = "some words"
        file.mktree("tree", {"x": "int32"})
    return path


@each_root
def test_histograms_are_copied_byte_for_byte(tmp_path: Path, histograms: Path, format_: str) -> None:
    out = tmp_path / "out"
    names = ("d/one", "three", "prof", "text")
    with uproot.open(histograms) as source:
        with open_sink(out, format_) as sink:
            sink.write(Table({"x": ak.Array([1])}), "d/t")
            for name in names:
                sink.copy(name, source)
            with pytest.raises(BadQuery, match="'tree' cannot be copied"):
                sink.copy("tree", source)
            with pytest.raises(BadQuery, match="twice"):
                sink.copy("three", source)
            sink.write(Table({"x": ak.Array([2])}), "d/t")
            sink.close()
        with uproot.open(out) as copied:
            assert copied["d/t"]["x"].array().to_list() == [1, 2]
            for name in names:
                old, new = source.key(name), copied.key(name)
                assert new.fClassName == old.fClassName
                chunks = [k.get_uncompressed_chunk_cursor()[0].raw_data.tobytes() for k in (old, new)]
                assert chunks[0] == chunks[1]
            assert copied["three"].values().tolist() == source["three"].values().tolist()
            assert copied["d/one"].variances().tolist() == source["d/one"].variances().tolist()


def test_parquet_says_that_it_holds_no_histogram(tmp_path: Path, histograms: Path) -> None:
    with (
        uproot.open(histograms) as source,
        pytest.raises(BadQuery, match="cannot be stored in Parquet"),
        open_sink(tmp_path / "r", "parquet") as sink,
    ):
        sink.copy("three", source)
    assert not (tmp_path / "r").exists()


@each
def test_an_error_leaves_no_file(tmp_path: Path, format_: str) -> None:
    with contextlib.suppress(RuntimeError), open_sink(tmp_path / "r", format_) as sink:
        sink.write(Table({"x": ak.Array([1])}))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@each
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened(Path("/dev/full"), "r+b"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: None)
    with pytest.raises(StorageFull, match="no space left"):
        store(tmp_path / "r", format_, {"x": np.random.default_rng(2).random(200_000)})


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadQuery, match="there is parquet, root-file, root-rntuple"):
        open_sink(tmp_path / "r", "arrow")


numbers = st.sampled_from(["bool", "int8", "uint16", "int64", "uint64", "float32"]).map(ak.types.NumpyType)
CHAR = ak.types.NumpyType("uint8", parameters={"__array__": "char"})
TEXT = ak.types.ListType(CHAR, parameters={"__array__": "string"})
PAIR = ak.types.RecordType([ak.types.NumpyType(t) for t in ("int32", "bool")], None)
kinds = st.recursive(
    st.one_of(numbers, st.sampled_from([TEXT, PAIR])),
    lambda inner: st.one_of(
        inner.map(ak.types.ListType),
        inner.map(lambda t: ak.types.RegularType(t, 2)),
        inner.map(lambda t: t if isinstance(t, ak.types.OptionType) else ak.types.OptionType(t)),
        st.dictionaries(st.sampled_from(["a", "b", "n", "é"]), inner, min_size=1, max_size=3).map(
            lambda d: ak.types.RecordType(list(d.values()), list(d))
        ),
    ),
    max_leaves=4,
)


def made(kind: Any, data: st.DataObject) -> Any:
    """A random value of a type."""
    match kind:
        case ak.types.OptionType():
            return None if data.draw(st.booleans()) else made(kind.content, data)
        case ak.types.ListType() if kind.parameter("__array__") == "string":
            return data.draw(st.text(max_size=3).filter(lambda s: s.isprintable()))
        case ak.types.ListType():
            return [made(kind.content, data) for _ in range(data.draw(st.integers(0, 3)))]
        case ak.types.RegularType():
            return [made(kind.content, data) for _ in range(kind.size)]
        case ak.types.RecordType():
            values = [made(c, data) for c in kind.contents]
            return tuple(values) if kind.is_tuple else dict(zip(kind.fields, values, strict=True))
        case _:
            number = data.draw(st.integers(0, 100))
            return bool(number % 2) if kind.primitive == "bool" else number


def built(kind: Any, rows: list[Any]) -> Any:
    """Values as a layout of exactly that type."""
    match kind:
        case ak.types.OptionType():
            index = np.cumsum([r is not None for r in rows], dtype=np.int64) - 1
            index[[r is None for r in rows]] = -1
            inner = built(kind.content, [r for r in rows if r is not None])
            return ak.contents.IndexedOptionArray(ak.index.Index64(index), inner)
        case ak.types.ListType() if kind == TEXT:
            return ak.from_iter(["", *rows], highlevel=False)[1:]
        case ak.types.ListType():
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            inner = built(kind.content, [e for r in rows for e in r])
            return ak.contents.ListOffsetArray(ak.index.Index64(offsets), inner)
        case ak.types.RegularType():
            inner = built(kind.content, [e for r in rows for e in r])
            return ak.contents.RegularArray(inner, kind.size, zeros_length=len(rows))
        case ak.types.RecordType():
            keys = range(len(kind.contents)) if kind.is_tuple else kind.fields
            inner = [built(c, [r[k] for r in rows]) for k, c in zip(keys, kind.contents, strict=True)]
            return ak.contents.RecordArray(inner, None if kind.is_tuple else kind.fields, length=len(rows))
        case _:
            return ak.contents.NumpyArray(np.array(rows, kind.primitive))


def pushed(value: Any, kind: Any) -> Any:
    """A missing record as a record of missing members."""
    match kind:
        case ak.types.OptionType(content=ak.types.OptionType() as inner):
            return pushed(value, inner)
        case ak.types.OptionType(content=ak.types.RecordType() as inner):
            members = [ak.types.OptionType(c) for c in inner.contents]
            if value is None:
                nothing = [pushed(None, m) for m in members]
                return tuple(nothing) if inner.is_tuple else dict(zip(inner.fields, nothing, strict=True))
            return pushed(value, ak.types.RecordType(members, None if inner.is_tuple else inner.fields))
        case ak.types.OptionType():
            return None if value is None else pushed(value, kind.content)
        case ak.types.RecordType(is_tuple=True):
            return tuple(pushed(v, c) for v, c in zip(value, kind.contents, strict=True))
        case ak.types.RecordType():
            return {f: pushed(value[f], c) for f, c in zip(kind.fields, kind.contents, strict=True)}
        case ak.types.ListType() | ak.types.RegularType() if isinstance(value, list):
            return [pushed(v, kind.content) for v in value]
        case _:
            return value


def plucked(value: Any, key: Any) -> Any:
    """A member of records, however deep they lie in lists."""
    if isinstance(value, list):
        return [plucked(v, key) for v in value]
    return None if value is None else value[key]


def flat(name: str, kind: Any, rows: list[Any]) -> dict[str, list[Any]]:
    """Branches of a column, by plain loops."""
    wraps, inner = [], kind
    while not isinstance(inner, ak.types.RecordType | ak.types.NumpyType) and inner != TEXT:
        wraps.append(inner)
        inner = inner.content
    if not isinstance(inner, ak.types.RecordType):
        return {name: rows}
    found: dict[str, list[Any]] = {}
    for i, member in enumerate(inner.contents):
        field = str(i) if inner.is_tuple else inner.fields[i]
        for wrap in reversed(wraps):
            member = ak.types.RegularType(member, wrap.size) if hasattr(wrap, "size") else type(wrap)(member)
        found |= flat(f"{name}_{field}", member, plucked(rows, i if inner.is_tuple else field))
    return found


def numbered(value: Any) -> Any:
    """Tuples as records with numbers for names."""
    if isinstance(value, dict):
        return {k: numbered(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return {str(i): numbered(v) for i, v in enumerate(value)}
    return [numbered(v) for v in value] if isinstance(value, list) else value


def without_none(value: Any) -> Any:
    if isinstance(value, list):
        return [without_none(v) for v in value]
    return "nan" if value is None or value != value else value


@each
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_type_comes_back_or_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, format_: str, data: st.DataObject
) -> None:
    kind = data.draw(kinds)
    rows = [made(kind, data) for _ in range(data.draw(st.integers(0, 5)))]
    array = ak.Array(built(kind, rows))
    assert array.to_list() == rows
    path = tmp_path_factory.getbasetemp() / f"any-{format_}"
    cut = data.draw(st.integers(0, len(rows)))
    try:
        store(path, format_, {"c": array[:cut]}, {"c": array[cut:]})
    except BadQuery as e:
        refusal = str(e)
    else:
        refusal = ""
    if refusal:
        assert format_ == "root-file" or "missing values, and no RNTuple" in refusal, refusal
        assert "the column 'c'" in refusal
        return
    back = load(path, format_)
    if format_ == "parquet":
        assert back.c.to_list() == [numbered(r) for r in array.to_list()]
    elif format_ == "root-rntuple":
        assert back.c.to_list() == [pushed(r, kind) for r in array.to_list()]
    else:
        for branch, values in flat("c", kind, array.to_list()).items():
            assert without_none(back[branch].to_list()) == without_none(values)


@each
def test_nothing_but_missing_pairs_of_what_may_be_missing_is_stored(tmp_path: Path, format_: str) -> None:
    """Options in options without one value between them."""
    kind = ak.types.OptionType(ak.types.RegularType(ak.types.OptionType(TEXT), 2))
    array = ak.Array(built(kind, [None, None]))
    if format_ == "root-file":
        with pytest.raises(BadQuery, match="the column 'c'"):
            store(tmp_path / "r", format_, {"c": array})
        return
    store(tmp_path / "r", format_, {"c": array[:0]}, {"c": array})
    assert load(tmp_path / "r", format_).c.to_list() == [None, None]
