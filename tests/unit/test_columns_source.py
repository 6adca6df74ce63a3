"""Reading columns: our own reader of plain trees against uproot, windows of any kind against the whole."""

import struct
import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.columns import fetch, plain
from doma.columns.baskets import decoded
from doma.columns.cursor import Odd
from doma.columns.execute import execute
from doma.columns.model import Task
from doma.columns.remote import open_bytes
from doma.columns.sink_parquet import to_arrow
from doma.columns.source import cuts, open_source
from doma.columns.source_ntuple import NtupleSource
from doma.columns.source_root import PlainSource
from doma.columns.ttree import VECTOR, Branch, PlainTree
from doma.core.errors import CorruptFile

REPO = Path(__file__).parents[2]
DATA = REPO / "tests/data"
TREES = {
    "nano_dy": REPO / "src/doma/facility/data/nano_dy.root",
    "zmumu": DATA / "uproot-Zmumu.root",
    "no entries": DATA / "nano_dy_empty.root",
    "empty": DATA / "uproot-empty.root",
}


def listed(file, name):
    key = file.key(name)
    chunk, _ = key.get_uncompressed_chunk_cursor()
    return PlainTree(bytes(chunk.raw_data), key.fKeylen)


@pytest.mark.parametrize("name", TREES)
def test_plain_branches_are_read_as_uproot_reads_them(name):
    path = TREES[name]
    stored = path.read_bytes()
    with uproot.open(path) as file:
        trees = [k for k, c in file.classnames(cycle=False).items() if c == "TTree"]
        assert trees
        for key in trees:
            tree, whole = listed(file, key), file[key]
            assert list(tree.names) == whole.keys(full_paths=False)
            assert tree.entries == whole.num_entries
            for number, branch_name in enumerate(tree.names):
                if number % 25 and len(tree.names) > 100:
                    continue
                try:
                    branch = tree.branch(branch_name)
                except Odd:
                    continue
                parts = [stored[a : a + n] for a, n in zip(branch.seeks, branch.sizes, strict=True)]
                third = tree.entries // 3
                for start, stop in ((0, tree.entries), (third, 2 * third)):
                    got = decoded(branch, 0, parts, start, stop)
                    expected = whole[branch_name].array(entry_start=start, entry_stop=stop)
                    assert got.type == ak.without_parameters(expected).type
                    assert ak.array_equal(got, ak.without_parameters(expected), equal_nan=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """1,000 events in baskets of 100, of every width; the same as RNTuple and Parquet."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    counts = rng.poisson(2, 1000)
    kinds = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
    flat = {f"x_{k}".replace("?", "b"): rng.integers(0, 2, 1000).astype(k) for k in kinds}
    jagged = {
        f"y_{k}".replace("?", "b"): ak.unflatten(rng.integers(0, 2, counts.sum()).astype(k), counts)
        for k in kinds
    }
    columns = {**flat, "event": np.arange(1000), **jagged}
    with uproot.recreate(folder / "tree.root", compression=uproot.ZLIB(1)) as made:
        kind = {n: a.dtype if n in flat or n == "event" else a.type.content for n, a in columns.items()}
        tree = made.mktree(
            "T", {n: k if isinstance(k, np.dtype) else f"var * {k.content}" for n, k in kind.items()}
        )
        for start in range(0, 1000, 100):
            tree.extend({n: a[start : start + 100] for n, a in columns.items()})
    with uproot.recreate(folder / "ntuple.root") as made:
        ntuple = made.mkrntuple("T", ak.zip({n: a[:100] for n, a in columns.items()}, depth_limit=1))
        for start in range(100, 1000, 100):
            ntuple.extend(ak.zip({n: a[start : start + 100] for n, a in columns.items()}, depth_limit=1))
    whole = ak.zip(columns, depth_limit=1)
    ak.to_parquet(whole, folder / "table.parquet", row_group_size=100)
    return folder, columns


@pytest.mark.parametrize("name", ["tree.root", "ntuple.root", "table.parquet"])
def test_any_entries_of_any_columns_are_those_of_the_whole(name, file):
    folder, columns = file
    data = open_bytes((folder / name).as_uri(), allow=("file://",))
    source = open_source(data, "T")
    names = ("event", *(n for n in columns if n[0] in "xy"))
    rng = np.random.default_rng(4)
    for start, stop in ((0, 1000), (0, 0), (99, 101), (250, 777), (999, 1000)):
        keep = np.sort(rng.choice(np.arange(start, stop), (stop - start) // 50, replace=False))
        for wanted in (None, keep):
            found = source.read(names, start, stop, wanted)
            for column in names:
                whole = (
                    ak.Array(columns[column])[start:stop]
                    if wanted is None
                    else ak.Array(columns[column])[wanted]
                )
                assert ak.to_list(found[column]) == ak.to_list(whole), (column, start, stop)
    data.close()


@pytest.mark.parametrize(
    "name", ["Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root", "nano_dy_rntuple.root"]
)
def test_plain_fields_of_ntuples_are_read_as_uproot_reads_them(name):
    data = open_bytes((DATA / name).as_uri(), allow=("file://",))
    source = open_source(data, "Events")
    assert isinstance(source, NtupleSource)
    whole = source._open()
    assert (source.names, source.entries) == (whole.names, whole.entries)
    chosen = source.names if len(source.names) < 100 else source.names[::37]
    plain_ones = [n for n in chosen if source._field(n) is not None]
    assert len(plain_ones) > len(chosen) / 2
    size = source.entries
    for column in plain_ones:
        for start, stop, keep in ((0, size, None), (3, size - 5, None), (0, size, np.array([1, size - 1]))):
            (got,) = source.read((column,), start, stop, keep).values()
            (expected,) = whole.read((column,), start, stop, keep).values()
            assert got.type == expected.type
            assert ak.array_equal(got, expected, equal_nan=True), column
    packed, unpacked = source.sizes(tuple(plain_ones))
    assert 0 < packed < unpacked
    data.close()


def test_a_damaged_page_is_named_with_its_field(file, tmp_path):
    folder, _ = file
    stored = bytearray((folder / "ntuple.root").read_bytes())
    data = open_bytes((folder / "ntuple.root").as_uri(), allow=("file://",))
    source = open_source(data, "T")
    page = source._ntuple.pages(source._field("y_f8").values, 3)[0]
    data.close()
    stored[(page.start + page.stop) // 2] ^= 0xFF
    (tmp_path / "bad.root").write_bytes(stored)
    data = open_bytes((tmp_path / "bad.root").as_uri(), allow=("file://",))
    source = open_source(data, "T")
    assert len(source.read(("y_f8",), 0, 300)["y_f8"]) == 300
    with pytest.raises(CorruptFile, match=r"bad\.root, tree 'T', field 'y_f8' from entry 300: "):
        source.read(("y_f8",), 300, 400)
    data.close()


def test_branches_with_slashes_in_their_names_are_read(tmp_path):
    values = {"jet_pt/1000": np.arange(5.0), "a/b/c": np.arange(5), "plain": np.arange(5) * 2}
    with uproot.recreate(tmp_path / "t.root") as made:
        made.mktree("t", {n: a.dtype for n, a in values.items()}).extend(values)
    data = open_bytes((tmp_path / "t.root").as_uri(), allow=("file://",))
    source = open_source(data, "t")
    assert set(source.names) == set(values)
    for column, expected in values.items():
        assert source.read((column,), 1, 4)[column].to_list() == expected[1:4].tolist()
    data.close()


@pytest.mark.parametrize("name", ["tree.root", "ntuple.root", "table.parquet"])
def test_what_holds_no_wanted_entry_is_not_fetched(name, file, monkeypatch):
    monkeypatch.setattr(fetch, "GAP", 0)
    folder, _ = file
    taken = []
    for keep in (None, np.array([5, 950])):
        data = open_bytes((folder / name).as_uri(), allow=("file://",))
        source = open_source(data, "T")
        begun = data.taken
        source.read(("y_f8",), 0, 1000, keep)
        taken.append(data.taken - begun)
        data.close()
    assert taken[1] < taken[0] / 3


def test_a_tree_of_plain_branches_is_read_without_uproots_tree(file):
    folder, _ = file
    data = open_bytes((folder / "tree.root").as_uri(), allow=("file://",))
    source = open_source(data, "T")
    assert isinstance(source, PlainSource)
    source.read(source.names, 0, 1000)
    assert source._whole is None
    assert source.sizes(("event",))[1] >= 8000
    data.close()


def test_a_tree_of_split_objects_and_vectors_is_read_as_uproot_reads_it():
    data = open_bytes((DATA / "edm4hep.root").as_uri(), allow=("file://",))
    source = open_source(data, "events")
    assert isinstance(source, PlainSource)
    ours = [n for n in source.names if source._branch(n) is not None]
    vectors = [n for n in ours if source._branch(n).header]
    got = source.read(tuple(ours), 0, source.entries)
    assert source._whole is None
    assert len(ours) > 0.7 * len(source.names)
    assert len(vectors) > 10
    whole = source._uproot()
    assert source.names == whole.names
    assert [source.path(n) for n in source.names] == [whole.path(n) for n in whole.names]
    for name in {*ours[::9], *vectors[::2]}:
        expected = whole.read((name,), 0, source.entries)[name]
        assert got[name].type == expected.type, name
        assert ak.array_equal(got[name], expected, equal_nan=True), name
    odd = next(n for n in source.names if n not in ours and n in source.readable)
    assert source.read((ours[0], odd), 1, 2).keys() == {ours[0], odd}
    assert source.path(f"/{source.path(ours[0])}") == source.path(ours[0])
    assert source.path("nothing/of/this") is None
    data.close()


def test_baskets_that_lie_in_the_tree_are_read_once_with_it():
    path = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
    data = open_bytes(path.as_uri(), allow=("file://",))
    source = open_source(data, "Events")
    assert isinstance(source, PlainSource)
    got = source.read(source.names, 0, 100_000)
    part = source.read(source.names, 33, 99_999)
    assert source._whole is None
    assert data.taken <= 1.01 * path.stat().st_size
    assert min(source.sizes((n,))[1] for n in source.names) >= 400_000
    whole = source._uproot().read(source.names, 0, 100_000)
    for name, expected in whole.items():
        assert got[name].type == expected.type
        assert ak.array_equal(got[name], expected)
        assert ak.array_equal(part[name], expected[33:99_999])
    data.close()


def basket(kind, entries, head=None):
    """A basket of vectors as ROOT stores it, not compressed."""
    values, ends, header = b"", [], 60
    for entry in entries:
        ends.append(header + len(values))
        members = np.array(entry, kind).tobytes()
        size = len(entry) if head is None else head
        values += struct.pack(">IHI", 0x4000_0000 | len(members) + 6, 9, size) + members
    border = header + len(values)
    values += struct.pack(f">i{len(ends)}ii", len(ends) + 1, *ends, 0)
    key = struct.pack(">ihiIhh", header + len(values), 4, len(values), 0, header, 1)
    tail = struct.pack(">Hiiiib", 3, 32000, 1000, len(entries), border, 0)
    return key + bytes(header - len(key) - len(tail)) + tail + values


vectors = st.lists(st.lists(st.lists(st.integers(0, 100), max_size=4), max_size=5), min_size=1, max_size=4)


@given(vectors, st.sampled_from(["?", "u1", ">i2", ">f4", ">f8"]), st.data())
def test_vectors_are_read_from_any_entry_of_any_basket(baskets, kind, data):
    borders = np.cumsum([0, *map(len, baskets)])
    branch = Branch("v", np.dtype(kind), True, borders, borders[1:], borders[1:], 0, VECTOR)
    start = data.draw(st.integers(0, int(borders[-1])))
    stop = data.draw(st.integers(start, int(borders[-1])))
    got = decoded(branch, 0, [basket(kind, b) for b in baskets], start, stop)
    expected = [np.array(e, kind).tolist() for b in baskets for e in b][start:stop]
    assert ak.to_list(got) == expected


def test_vectors_of_another_form_are_left_to_uproot():
    borders = np.array([0, 2])
    branch = Branch("v", np.dtype(">f4"), True, borders, borders[1:], borders[1:], 0, VECTOR)
    for stored in (basket(">f4", [[1, 2], [3]], head=7), basket(">f8", [[1], [2, 3]])):
        with pytest.raises(Odd):
            decoded(branch, 0, [stored], 0, 2)


@pytest.mark.parametrize("place", [2, 100, -5])
def test_a_damaged_basket_is_named_with_its_branch(place, file, tmp_path):
    folder, _ = file
    stored = bytearray((folder / "tree.root").read_bytes())
    with uproot.open(folder / "tree.root") as whole:
        branch = listed(whole, "T").branch("y_f8")
    stored[int(branch.seeks[3]) + (place if place > 0 else int(branch.sizes[3]) + place)] ^= 0xFF
    (tmp_path / "bad.root").write_bytes(stored)
    data = open_bytes((tmp_path / "bad.root").as_uri(), allow=("file://",))
    source = open_source(data, "T")
    assert len(source.read(("y_f8",), 0, 300)["y_f8"]) == 300
    with pytest.raises(CorruptFile, match=r"bad\.root, tree 'T', branch 'y_f8' from entry 300"):
        source.read(("y_f8",), 300, 400)
    data.close()


@given(st.integers(1, 500), st.integers(1, 600), st.lists(st.integers(0, 500), max_size=20))
def test_cuts_cover_all_entries_in_pieces_of_bounded_size(entries, size, borders):
    marks = np.array(sorted({0, entries, *(b for b in borders if b < entries)}))
    pieces = list(cuts(entries, size, marks))
    assert [a for a, _ in pieces] == [0, *(b for _, b in pieces[:-1])]
    assert pieces[-1][1] == entries
    assert all(0 < b - a <= size for a, b in pieces)


lists = st.lists(st.lists(st.integers(-5, 5), max_size=5), min_size=1, max_size=12)


@settings(max_examples=60)
@given(lists, st.data())
def test_short_ways_give_what_awkward_gives(values, data):
    whole = ak.values_astype(ak.Array([*values, [1]])[:-1], np.float32)
    where = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)), dtype=np.int64)
    counts, flat = plain.members(whole)
    assert ak.to_list(counts) == ak.to_list(ak.num(whole))
    assert ak.to_list(flat) == ak.to_list(ak.flatten(whole))
    assert ak.to_list(plain.taken(whole, where)) == ak.to_list(whole[where])
    doubled = plain.ufunc(np.add, [whole, whole])
    assert ak.to_list(doubled) == ak.to_list(whole + whole)
    assert doubled.type == (whole + whole).type
    assert ak.to_list(plain.ufunc(np.greater, [whole, 0.5])) == ak.to_list(whole > 0.5)
    n = data.draw(st.integers(2, 3))
    sizes, places = plain.chosen(counts, n)
    starts = np.cumsum(counts) - counts
    expected = ak.combinations(ak.local_index(whole) + starts, n)
    assert ak.to_list(sizes) == ak.to_list(ak.num(expected))
    assert [tuple(p) for p in places.tolist()] == [tuple(r) for r in ak.to_list(ak.flatten(expected))]


def test_what_is_not_plain_has_no_short_way():
    maybe = ak.Array([1.0, None, 2.0])
    assert plain.numbers(maybe) is None
    assert plain.members(ak.Array([[1], None])) is None
    assert plain.members(ak.Array(["text"])) is None
    assert plain.ufunc(np.add, [maybe, 1]) is None
    uneven = [ak.Array([[1], [2, 3]]), ak.Array([[1, 2], [3]])]
    assert plain.ufunc(np.add, uneven) is None


MISSING = pa.table(
    {
        "a": [1, 2, None, 4],
        "s": pa.array(["x", "y", "x", None]).dictionary_encode(),
        "l": [[1.0, None], [], None, [2.0]],
        "ls": pa.array([["a", "b"], [], None, ["c"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "b": [1.5, 2.5, 3.5, 4.5],
    }
)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_what_is_missing_in_a_later_part_of_a_parquet_file_stays_missing(tmp_path, group):
    path, out = tmp_path / "n.parquet", tmp_path / "out"
    pq.write_table(MISSING, path, row_group_size=group)
    execute(Task(path.as_uri(), "(call EventDataset 'f' 'T')", str(out), allow=("file://",), step=1))
    assert pq.read_table(out).to_pylist() == MISSING.to_pylist()


def test_a_filter_on_words_of_a_dictionary_compares_the_words(tmp_path):
    path, out = tmp_path / "n.parquet", tmp_path / "out"
    pq.write_table(MISSING, path, row_group_size=2)
    query = (
        "(call Select (call Where (call EventDataset 'f' 'T') (lambda (list e) (== (attr e 's') 'x')))"
        " (lambda (list e) (attr e 'b')))"
    )
    execute(Task(path.as_uri(), query, str(out), allow=("file://",)))
    assert pq.read_table(out).column(0).to_pylist() == [1.5, 3.5]


def test_columns_of_parquet_have_their_own_sizes_and_types_whatever_their_names(tmp_path):
    """A dot in a name is no member of a record; lists, records and maps take several columns of the file."""
    path = tmp_path / "n.parquet"
    columns = {
        "El.pt": pa.array([1.5, None]), "El": pa.array([{"eta": 1, "of": [1, 2]}, None]),
        "m": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), "n": pa.array([1, 2]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), path, row_group_size=1)
    groups = [pq.ParquetFile(path).metadata.row_group(i) for i in (0, 1)]
    leaves = {"El.pt": [0], "El": [1, 2], "m": [3, 4], "n": [5]}
    data = open_bytes(path.as_uri(), allow=("file://",))
    source = open_source(data, None)
    for name, places in leaves.items():
        packed = sum(group.column(j).total_compressed_size for group in groups for j in places)
        assert source.sizes((name,))[0] == packed, name
    parts = [source.read(("El.pt",), i, i + 1)["El.pt"] for i in (0, 1)]
    assert parts[0].type.content == parts[1].type.content
    assert [part.to_list() for part in parts] == [[1.5], [None]]
    data.close()


@pytest.mark.parametrize("kind", ["?", "i1", "u2", "i4", "i8", "f2", "f4", "f8"])
def test_numbers_and_lists_of_them_become_arrow_as_awkward_makes_them(kind):
    flat = np.arange(8).astype(kind)
    rows = ak.unflatten(flat, [0, 2, 1, 5])
    inner = ak.contents.ListOffsetArray(ak.index.Index32([1, 3, 3, 7]), ak.contents.NumpyArray(flat))
    for values in (flat, flat[::2], flat[:0], rows, rows[1:3], rows[2:2], inner):
        data = ak.Array(values)
        expected = ak.to_arrow(ak.to_packed(data), extensionarray=False, list_to32=True)
        found = to_arrow({"x": data})["x"].combine_chunks()
        found.validate(full=True)
        assert found.type.equals(expected.type, check_metadata=True)
        assert found.equals(expected)


def test_a_result_is_written_without_pandas(tmp_path):
    code = """
import sys
from doma.columns.execute import execute
from doma.columns.model import Task
query = "(call Select (call EventDataset 'f' 'Events') (lambda (list e) (dict (list 'p' 'n') (list %s %s))))"
fields = "(attr e 'Muon_pt')", "(attr e 'nMuon')"
execute(Task(sys.argv[1], query % fields, sys.argv[2], allow=("file://",)))
print([m for m in ("pandas", "uproot", "vector") if m in sys.modules])
"""
    file = (REPO / "src/doma/facility/data/nano_dy.root").as_uri()
    command = [sys.executable, "-c", code, file, str(tmp_path / "out.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
