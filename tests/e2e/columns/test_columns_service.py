"""The column service from the outside: the demo's question, the cache of results, errors in clear text."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import uproot
from fastapi import FastAPI, Request

from doma.columns import repo
from doma.columns import service as columns_service
from doma.columns.client import ColumnClient
from doma.columns.model import Grant, State, Submission
from doma.columns.routes import router
from doma.columns.service import ColumnService
from doma.columns.worker import WorkerPool
from doma.core.config import Columns
from doma.core.errors import BadQuery, BadRequest, CorruptFile, NotFound, UnknownColumn
from doma.db.engine import Database
from doma.net import problem
from doma.store.memory import MemoryStore

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def inputs(shared_inputs):
    return shared_inputs


@pytest.fixture
def house(shared_house):
    return shared_house


@pytest_asyncio.fixture(loop_scope="module")
async def client(shared_house):
    async with shared_house.http() as http:
        yield ColumnClient(http)


COUNT = "(call Count (call Where (call EventDataset 'x' 'Events') (lambda (list e) (> (attr e 'nMuon') 2))))"
PAIRS = (
    "(call Select (call Where (call EventDataset 'x' 'Events') (lambda (list e) (and (== (attr e 'nMuon') 2)"
    " (!= (subscript (attr e 'Muon_charge') 0) (subscript (attr e 'Muon_charge') 1)))))"
    " (lambda (list e) (dict (list 'pt' 'mass') (list (attr e 'Muon_pt') {mass}))))"
)


def _double(name: str, i: int) -> str:
    return f"(call (attr np 'float64') (subscript (attr e 'Muon_{name}') {i}))"


MASS = (
    f"(call (attr np 'sqrt') (* (* (* 2 {_double('pt', 0)}) {_double('pt', 1)})"
    f" (- (call (attr np 'cosh') (- {_double('eta', 0)} {_double('eta', 1)}))"
    f" (call (attr np 'cos') (- {_double('phi', 0)} {_double('phi', 1)})))))"
)


def _muon_masses(path: Any) -> Any:
    """The same by uproot and plain NumPy: (pairs,) float64."""
    with uproot.open({path: "Events"}) as tree:
        n = tree["nMuon"].array(library="np")
        pt, eta, phi, charge = (tree[f"Muon_{x}"].array(library="np") for x in ("pt", "eta", "phi", "charge"))
    masses = []
    for i in np.flatnonzero(n == 2):
        if charge[i][0] != charge[i][1]:
            p, a, f = (np.asarray(x[i], dtype=np.float64) for x in (pt, eta, phi))
            masses.append(np.sqrt(2 * p[0] * p[1] * (np.cosh(a[0] - a[1]) - np.cos(f[0] - f[1]))))
    return np.array(masses)


async def test_the_dimuon_masses_equal_plain_numpys_and_the_same_question_runs_nothing(house, inputs, client):
    query = PAIRS.format(mass=MASS)
    start = len(house.pool.outcomes)
    table = await client.columns(query, [inputs.url("muons.root")])
    mass = table["mass"].to_numpy()
    expected = _muon_masses(inputs.folder / "muons.root")
    assert len(mass) == 37183
    edges = np.linspace(60, 120, 121)
    assert np.array_equal(np.histogram(mass, edges)[0], np.histogram(expected, edges)[0])
    again = await client.columns(query, [inputs.url("muons.root")])
    assert again.equals(table)
    assert [o.cached for o in house.pool.outcomes[start:]] == [False, True]
    first, second = (o.read for o in house.pool.outcomes[start:])
    assert client.read_bytes == first + second < 1.1 * first
    # A new version of the input is a new question.
    sample = (inputs.folder / "muons.root").read_bytes()
    (inputs.folder / "muons.root").unlink()
    (inputs.folder / "muons.root").write_bytes(sample)
    assert (await client.columns(query, [inputs.url("muons.root")])).equals(table)
    assert [o.cached for o in house.pool.outcomes[start:]] == [False, True, False]


async def test_some_files_fail_with_their_reasons_and_the_others_are_delivered(house, inputs, client):
    names = ["muons.root", "missing.root", "empty.root", "text.root", "torn.root"]
    id_ = await client.submit(COUNT, [inputs.url(n) for n in names])
    found = await client.wait(id_)
    assert (found["status"], found["files-completed"], found["files-failed"]) == ("Complete", 1, 4)
    async with house.http() as http:
        rows = (await http.get(f"/servicex/transformation/{id_}/results")).json()["results"]
    reasons = {r["file-path"].rpartition("/")[2]: r["reason"] for r in rows}
    assert "404" in reasons["missing.root"]
    assert "0 bytes" in reasons["empty.root"]
    assert "neither a ROOT nor a Parquet file" in reasons["text.root"]
    assert reasons["torn.root"]
    assert reasons["muons.root"] is None
    times = [r["created_at"] for r in rows]
    assert times == sorted(set(times))
    (result,) = await client.urls(id_)
    assert (await client.read(result)).column(0).to_pylist() == [34367]


def _select(tree: str, body: str) -> str:
    return f"(call Select (call EventDataset 'x' '{tree}') (lambda (list e) {body}))"


WRONG = [
    (_select("Events", "(attr e 'Muon_ptt')"), UnknownColumn, "Muon_pt"),
    (_select("events2", "(attr e 'Muon_pt')"), UnknownColumn, "Events"),
    (_select("Events", "(call open 'x')"), BadQuery, "open"),
    (_select("Events", "(call Sum (attr e 'nMuon'))"), BadQuery, "sequence"),
    ("(((", BadQuery, "node type"),
]


async def test_a_wrong_question_is_refused_at_submission_by_name(inputs, client):
    for selection, kind, text in WRONG:
        with pytest.raises(kind, match=text):
            await client.submit(selection, [inputs.url("muons.root")])


async def test_everybody_sees_only_their_own_requests(house, inputs, client):
    id_ = await client.submit(COUNT, [inputs.url("adl.parquet").replace("adl.parquet", "muons.root")])
    await client.wait(id_)
    async with house.http("mallory") as other:
        for call in ("", "/status", "/results"):
            assert (await other.get(f"/servicex/transformation/{id_}{call}")).status_code == 404
        assert (await other.post(f"/servicex/transformation/{id_}/cancel")).status_code == 404
        assert (await other.delete(f"/servicex/transformation/{id_}")).status_code == 404
        asked = {"request_id": id_, "file_list": ["x"]}
        assert (await other.post("/servicex/transformation/file-urls", json=asked)).status_code == 404
        assert (await other.get("/servicex/transformation")).json() == {"requests": []}
        del other.headers["Authorization"]
        for path in ("/servicex", "/servicex/transformation", f"/servicex/transformation/{id_}"):
            assert (await other.get(path)).status_code == 401


async def test_a_finished_request_can_be_deleted_with_its_objects(house, inputs, client):
    id_ = await client.submit(COUNT, [inputs.url("muons.root")])
    await client.wait(id_)
    (result,) = await client.urls(id_)
    with pytest.raises(BadRequest):
        await client.cancel(id_)
    await client.delete(id_)
    with pytest.raises(NotFound):
        await client.status(id_)
    with pytest.raises(NotFound):
        await house.store.stat(f"/{id_}/{result.name}")
    # Nothing is left in the cache that points to the deleted object.
    table = await client.columns(COUNT, [inputs.url("muons.root")])
    assert table.column(0).to_pylist() == [34367]


async def test_a_running_request_can_be_cancelled_and_its_worker_is_free_again(house, inputs, client):
    inputs.open.clear()
    # The first file answers, so that submission has nothing to wait for.
    id_ = await client.submit(COUNT, [inputs.url("adl.parquet"), inputs.url("muons.root")])
    assert await asyncio.to_thread(inputs.held.wait, 20)
    await client.cancel(id_)
    inputs.open.set()
    assert (await client.status(id_))["status"] == "Canceled"
    table = await client.columns(COUNT, [inputs.url("muons.root")])
    assert table.column(0).to_pylist() == [34367]


BODY = {"selection": COUNT, "file-list": ["https://127.0.0.1:1/a.root"], "codegen": "uproot"}


BAD = [
    ({"did": "rucio://x:y"}, "either did or file-list"),
    ({"file-list": None, "did": "rucio://x:y"}, "rucio"),
    ({"file-list": None}, "either did or file-list"),
    ({"codegen": "python"}, "codegen"),
    ({"codegen": "fortran"}, "codegen"),
    ({"result-format": "arrow"}, "result-format"),
    ({"file-list": ["gopher://h/a"]}, "https://"),
    ({"file-list": ["https://h/a:b", "https://h/a/b"]}, "one name"),
    ({"file-list": ["file:///etc/passwd"]}, "https://"),
    ({"file-list": ["https://u:p@h/a"]}, "user name"),
    ({"file-list": "x"}, "file-list"),
    ({"selection": 3}, "selection"),
]


async def test_a_bad_submission_says_what_is_wrong(house):
    async with house.http() as http:
        for change, text in BAD:
            answer = await http.post("/servicex/transformation", json=BODY | change)
            assert answer.status_code == 400, change
            assert text in answer.json()["message"]


async def test_what_is_no_json_is_a_bad_request(house):
    async with house.http() as http:
        for body in (b"", b"{", b"[" * 100_000, b"\xff"):
            answer = await http.post("/servicex/transformation", content=body)
            assert answer.status_code == 400, body[:10]


async def test_a_private_address_that_is_not_allowed_is_not_contacted(house, client):
    id_ = await client.submit(COUNT, ["http://127.0.0.1:9/a.root", "https://169.254.169.254/latest"])
    with pytest.raises(CorruptFile, match="private network"):
        await client.wait(id_)


async def test_the_info_names_what_runs_here(house):
    async with house.http() as http:
        info = (await http.get("/servicex")).json()
    assert set(info["code-gen-image"]) == {"uproot", "uproot-raw"}  # this house has no sandbox
    assert {"generate_file_urls", "post_cancel_transform"} <= set(info["capabilities"])


async def test_a_request_without_files_is_complete_at_once(house, client):
    found = await client.wait(await client.submit(COUNT, []))
    assert (found["status"], found["files"]) == ("Complete", 0)
    assert isinstance(found["log-url"], str)


async def test_a_user_whose_right_has_ended_gets_the_servers_refusal_as_reason(house, inputs):
    async with house.http("bob") as http:
        client = ColumnClient(http)
        id_ = await client.submit(COUNT, [inputs.url("muons.root")])
        with pytest.raises(CorruptFile, match="401"):
            await client.wait(id_)


async def test_results_are_asked_for_strictly_later_than_an_instant():
    from doma.columns.wire import instant as _instant

    assert _instant("0001-01-01T00:00:00+00:00") == -1
    assert _instant("2026-01-01T00:00:00.000001+00:00") == 1767225600000001
    assert _instant("2026-01-01T00:00:00.000001 00:00") == 1767225600000001


async def test_whoever_comes_while_nothing_can_be_answered_is_told_when_to_come_again(tmp_path):
    db, store = Database(f"sqlite:///{tmp_path}/none.db"), MemoryStore()
    service = ColumnService(
        db, store, "https://r.test/r", WorkerPool(1), None, lambda *a: "", Columns(), work_dir=tmp_path
    )
    db.close()

    async def alice(request: Request) -> Grant:
        return Grant("https://issuer", "alice")

    app = FastAPI()
    problem.install(app)
    app.include_router(
        router(service, None, log_url="https://r.test", results_url="https://r.test", caller=alice)
    )
    one = "/servicex/transformation/some"
    calls = [("GET", one), ("GET", f"{one}/status"), ("GET", f"{one}/results"), ("GET", f"{one}/cancel"),
             ("POST", f"{one}/cancel"), ("DELETE", one), ("GET", "/servicex/transformation"),
             ("POST", "/servicex/transformation/cancel-all")]  # fmt: skip
    body = {"selection": COUNT, "file-list": ["https://a.org/f.root"], "request_id": "x", "file_list": []}
    posts = ["/servicex/transformation", "/servicex/transformation/file-urls"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://r.test") as http:
        answers = [await http.request(method, path) for method, path in calls]
        answers += [await http.post(path, json=body) for path in posts]
    assert {a.status_code for a in answers} == {503}
    assert all(int(a.headers["Retry-After"]) > 0 for a in answers)


async def test_all_that_runs_is_stopped_however_many_requests_there_are(house, monkeypatch):
    """Also what is older than the youngest that a list shows."""
    monkeypatch.setattr(columns_service, "LISTED", 1)
    grant = Grant("https://issuer", "carol")
    ask = Submission(COUNT, ("https://127.0.0.1:1/none.root",))
    for name in ("c-one", "c-two"):
        house.db.run_sync(lambda tx, n=name: repo.add(tx, n, grant, ask, "d", 1.0, state=State.LOOKUP))
    assert set(await house.service.cancel_all(grant.owner)) == {"c-one", "c-two"}
    assert {r.state for r in await house.service.list(grant.owner)} == {State.CANCELED}
