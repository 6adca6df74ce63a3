"""Python functions from selection to result, on real inputs, in the best sandbox of this machine."""

import base64
import textwrap
import time
from contextlib import ExitStack, closing
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from doma.columns import sandbox
from doma.columns.function import PythonFunction
from doma.columns.remote import LocalFile
from doma.columns.sandbox import Sandbox, available
from doma.columns.sandbox_run import Isolation
from doma.columns.sink import open_sink
from doma.core.config import Columns
from doma.core.errors import BadQuery, StorageUnavailable
from tests.conftest import lack

REPO = Path(__file__).parents[3]
CMS = REPO / "src/doma/facility/data/cms_doublemuparked_100k.root"
ADL = REPO / "tests/data/Run2012B_SingleMu-1000.parquet"
NTUPLE = REPO / "tests/data/Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def isolation(request):
    if why := lack(request.param):
        pytest.skip(why)
    made = Isolation(request.param, memory=1 << 30, seconds=30).text()
    yield made
    sandbox.sandbox(made).close()


def selection(body):
    inner = textwrap.indent(textwrap.dedent(body), "    ")
    source = f"import awkward as ak, numpy as np, uproot\ndef run_query(f=None):\n{inner}\n"
    return base64.b64encode(source.encode()).decode()


@pytest.fixture
def deliver(isolation, tmp_path):
    def deliver(body, path=CMS, format_="parquet"):
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        query = PythonFunction(selection(body), isolation)
        with closing(LocalFile(path.as_uri(), str(path))) as data, open_sink(out, format_) as sink:
            columns = query.run(data, sink, 1 << 20, lambda _: None)
            sink.close()
        read = ak.from_parquet if format_ == "parquet" else opened
        return read(out), columns, query.log

    with ExitStack() as files:

        def opened(path):
            return files.enter_context(uproot.open(path))

        yield deliver


@pytest.mark.parametrize("format_", ["parquet", "root-file", "root-rntuple"])
def test_columns_of_a_tree_are_what_uproot_reads_here(deliver, format_):
    got, columns, _ = deliver(
        "with uproot.open({f: 'Events'}) as t:\n"
        "    return t.arrays(['nMuon', 'Muon_pt'], entry_start=70_000, entry_stop=80_000)", CMS, format_
    )  # fmt: skip
    with uproot.open({CMS: "Events"}) as tree:
        want = tree.arrays(["nMuon", "Muon_pt"], entry_start=70_000, entry_stop=80_000)
    assert set(columns) == {"nMuon", "Muon_pt"}
    got = got if format_ == "parquet" else got["servicex"].arrays(["nMuon", "Muon_pt"])
    assert got.nMuon.to_list() == want.nMuon.to_list()
    assert got.Muon_pt.to_list() == want.Muon_pt.to_list()


def test_parquet_and_ntuples_are_inputs_by_every_library(deliver):
    want = ak.from_parquet(ADL, columns=["MET_pt"]).MET_pt.to_list()
    assert deliver("return ak.from_parquet(f, columns=['MET_pt'])", ADL)[0].MET_pt.to_list() == want
    got, _, _ = deliver(
        """
        import fsspec, pyarrow.parquet as pq
        with fsspec.open(f) as file:
            return ak.from_arrow(pq.read_table(file, columns=["MET_pt"]))
        """,
        ADL,
    )
    assert got.MET_pt.to_list() == want
    with uproot.open(NTUPLE) as file:
        (name,) = file.keys(cycle=False)
    got, _, _ = deliver(f"return np.array([uproot.open(f)[{name!r}].num_entries])", NTUPLE)
    assert got.to_list() == [1000]


def test_a_dict_gives_trees_and_parquet_takes_the_first_and_says_so(deliver):
    body = "print('hello'); return {'first': ak.Array({'x': [1, 2]}), 'second': np.arange(3.0)}"
    got, _, log = deliver(body, format_="root-file")
    assert got["first"].arrays().to_list() == [{"x": 1}, {"x": 2}]
    assert got["second"]["branch"].array().to_list() == [0, 1, 2]
    assert log == "hello\n"
    got, columns, log = deliver(body)
    assert (got.to_list(), columns) == ([{"x": 1}, {"x": 2}], ("x",))
    assert "'first' is stored, second left out; ask for root-file" in log


def test_values_of_every_kind_arrive_as_they_were(deliver):
    body = """
        return ak.Array({
            "text": ["a", "", "ü"], "flag": [True, False, True], "deep": [[[1], []], [], [[2, 3]]],
            "maybe": [1.5, None, float("inf")], "small": np.array([1, 2, 255], np.uint8),
            "record": [{"a": 1, "b": [2]}, {"a": 3, "b": []}, {"a": 4, "b": [5]}],
            "pair": np.arange(6, dtype=np.float32).reshape(3, 2),
        })
    """
    got, _, _ = deliver(body)
    assert got.text.to_list() == ["a", "", "ü"]
    assert got.deep.to_list() == [[[1], []], [], [[2, 3]]]
    assert got.maybe.to_list() == [1.5, None, float("inf")]
    assert got.record.to_list() == [{"a": 1, "b": [2]}, {"a": 3, "b": []}, {"a": 4, "b": [5]}]
    assert got.pair.to_list() == [[0, 1], [2, 3], [4, 5]]
    assert str(got.small.type) == "3 * uint8"
    assert str(got.flag.type) == "3 * bool"
    assert str(got.maybe.type) == "3 * ?float64"


def test_arrays_without_rows_keep_their_types(deliver):
    got, _, _ = deliver("return uproot.open(f)['Events'].arrays(['nMuon', 'Muon_pt'], entry_stop=5)[:0]")
    with uproot.open({CMS: "Events"}) as tree:
        kind = tree["nMuon"].array(entry_stop=1).type.content
    assert str(got.nMuon.type) == f"0 * {kind}"
    assert str(got.Muon_pt.type) == "0 * var * float32"


def test_a_large_result_arrives_in_batches(deliver):
    got, _, _ = deliver("return ak.Array({'x': np.arange(1_000_000), 'y': np.zeros((1_000_000, 3))})")
    assert np.array_equal(got.x.to_numpy(), np.arange(1_000_000))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "returned NoneType"),
        ("[1, 2]", "returned list"),
        ("{}", "returned an empty dict"),
        ("{5: np.zeros(1)}", "the key 5"),
        ("{'a': uproot}", "returned module for the tree 'a'"),
        ("ak.Record({'x': 1})", "returned awkward.highlevel.Record"),
        ("ak.Array([1, 'two'])", "mixes types"),
        ("np.array([object()])", "TypeError"),
        ("undefined", "NameError: name 'undefined' is not defined"),
    ],
)
def test_what_cannot_be_delivered_is_named(deliver, value, said):
    with pytest.raises(BadQuery, match=said):
        deliver(f"return {value}")


def test_an_input_that_breaks_is_the_reason_even_if_the_function_goes_on(isolation, tmp_path):
    class Broken(LocalFile):
        def read(self, start, stop):
            if start > 0 or stop == self.size:
                raise StorageUnavailable("the disk is on fire")
            return super().read(start, stop)

    text = selection("""
        try:
            with uproot.open(f) as file:
                file["Events"].arrays()
        except Exception:
            pass
        return np.zeros(1)
    """)
    query, out = PythonFunction(text, isolation), tmp_path / "o"
    with (
        closing(Broken(CMS.as_uri(), str(CMS))) as data,
        pytest.raises(StorageUnavailable, match="on fire"),
        open_sink(out, "parquet") as sink,
    ):
        query.run(data, sink, 1, lambda _: None)
    assert not list(tmp_path.iterdir())


def test_the_self_test_passes_here_or_says_why_not(tmp_path, caplog):
    caplog.set_level("INFO")
    found = available(Columns(), tmp_path)
    if found is None:
        assert "no python functions by bubblewrap" in caplog.text
    else:
        assert found == Isolation.of(found.text())
    assert available(Columns(python="off"), tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_by_configuration_a_single_user_runs_functions_without_isolation(tmp_path):
    found = available(Columns(python="unsafe-single-user"), tmp_path)
    assert found is not None
    box, seen = Sandbox(found), []
    data = LocalFile(ADL.as_uri(), str(ADL))
    source = "import numpy\ndef run_query(f): return numpy.array([len(open(f, 'rb').read())])"
    box.run(
        source, data, "a.parquet", lambda _, table: seen.extend(table.columns[""].to_list()), lambda: None
    )
    box.close()
    data.close()
    assert seen == [ADL.stat().st_size]


def test_the_running_system_offers_runs_and_explains_functions(shared):
    offered = shared.ask("GET", "/servicex").json()["code-gen-image"]
    if "python" not in offered:
        pytest.skip("no isolation here")
    shared.put("/site/functions/muons.root", CMS.read_bytes())
    url = f"{shared.run['https']}/site/functions/muons.root"

    def submit(body):
        ask = {"title": "f", "file-list": [url], "selection": selection(body), "codegen": "python",
               "result-destination": "object-store", "result-format": "parquet"}  # fmt: skip
        return shared.ask("POST", "/servicex/transformation", json=ask)

    def ended(body):
        place = f"/servicex/transformation/{submit(body).json()['request_id']}"
        deadline = time.monotonic() + 50
        while (found := shared.ask("GET", place).json())["status"] in {"Submitted", "Running"}:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found

    assert ended("return uproot.open(f)['Events'].arrays(['nMuon'])")["status"] == "Complete"
    home = str(shared.home.path)
    found = ended(f"import os; print('so far'); os.listdir({home!r})")
    assert found["status"] == "Fatal"
    assert "Error" in found["failure-info"]
    refused = submit("return 1 +")
    assert refused.status_code == 400
    assert "line 3: invalid syntax" in refused.json()["message"]
