"""Filters run by a scan service beside the data: the same answers, from fewer bytes."""

import asyncio
import itertools
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from doma.app.inputs import Minter
from doma.auth.gate import Gate
from doma.auth.model import Capability, Identity, Verb
from doma.auth.verifier import Verifier
from doma.columns import pushdown
from doma.columns.execute import execute
from doma.columns.model import Grant, Task
from doma.columns.plan import compile_text
from doma.columns.pushdown import Beside
from doma.columns.remote import open_input
from doma.columns.remote_places import Buckets
from doma.core.config import Issuer, Scan
from doma.core.errors import InvalidToken, OriginFailed
from doma.scan.flight import FlightDoor
from doma.scan.opener import StoreOpener
from doma.scan.service import ScanService
from doma.store.file import FileStore

REPO = Path(__file__).parents[3]
ISSUER = "https://issuer.example"
FILES = ("cms_doublemuparked_100k.root", "nano_dy.root")


class Known:
    """A verifier that knows one token."""

    async def verify(self, token):
        if token != "alice":
            raise InvalidToken("token: not known here")
        return Identity(ISSUER, "alice", 2e9, capabilities=(Capability(Verb.READ, "/"),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("site")
    for name in FILES:
        shutil.copy(REPO / "src/doma/facility/data" / name, made)
    return made


@pytest.fixture(scope="module")
def door(folder):
    with serving(folder, Known()) as address:
        yield address


@contextmanager
def serving(folder, verifier, gate=None):
    """Address of a flight door over the folder, its loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make():
        return FileStore(folder, read_only=True)

    store = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    gate = gate or Gate({ISSUER: ["/"]})
    service = ScanService({"site": StoreOpener(store, loop)}, verifier, {"site": gate}, Scan(), time.time)
    flight = FlightDoor(service, "127.0.0.1", 0, b"", b"", loop=loop)
    yield flight.start()
    flight.stop()
    asyncio.run_coroutine_threadsafe(store.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def always(monkeypatch):
    """Filters are sent however many events stay: what is compared then is what they mean."""
    monkeypatch.setattr(pushdown, "WORTH", 1.0)


def question(where: str, columns: str) -> str:
    events = "(call EventDataset 'f' 'Events')"
    return f"(call Select (call Where {events} (lambda (list e) {where})) (lambda (list e) {columns}))"


def field(name: str) -> str:
    return f"(attr e '{name}')"


def members(operator: str, name: str, sign: str, value: object) -> str:
    return f"(call {operator} {field(name)} (lambda (list m) ({sign} m {value})))"


def answers(folder, out, name, query, door, token="alice"):
    """The table read directly, the one with the door's help, and the bytes that each took."""
    tables, taken = [], []
    for flight in ("", f"{door}/site/{name}"):
        out.unlink(missing_ok=True)
        url = (folder / name).as_uri()
        done = execute(Task(url, query, str(out), token, allow=("file://",), flight=flight, step=4 << 20))
        tables.append(pq.read_table(out))
        taken.append(done.read)
        assert done.rows == tables[-1].num_rows
    return tables, taken


SIGNS = ("<", "<=", ">", ">=", "==", "!=")
FLAT = [f"({s} {field(n)} {v})" for s, (n, v) in itertools.product(
    SIGNS, (("nMuon", 2), ("nMuon", 2.5), ("nMuon", -1)))]  # fmt: skip
OTHER = [
    members("Any", "Muon_pt", ">", 0.1),
    members("Any", "Muon_pt", ">", 40),
    members("Any", "Muon_charge", "==", -1),
    members("All", "Muon_pt", ">", 10),
    f"(>= (call Count {field('Muon_pt')}) 3)",
    f"(< (call Count {field('Muon_pt')}) 2)",
    f"(== (call Count {members('Where', 'Muon_pt', '>', 25)}) 2)",
    f"(!= (call Count {members('Where', 'Muon_pt', '>', 25)}) 2)",
    f"(and (> {field('nMuon')} 2) {members('Any', 'Muon_eta', '<', -2.1)})",
    f"(or (> {field('nMuon')} 4) {members('Any', 'Muon_eta', '<', -2.1)})",
    f"(not (> {field('nMuon')} 2))",
    f"(> (call Sum {field('Muon_pt')}) 100)",
    f"(> 3 {field('nMuon')})",
    f"(> {field('nMuon')} 1000)",
]


@pytest.mark.parametrize("where", FLAT[::3] + OTHER)
def test_a_pushed_filter_gives_what_direct_reading_gives(where, folder, door, tmp_path, always):
    columns = f"(dict (list 'n' 'pt' 'q') (list {field('nMuon')} {field('Muon_pt')} {field('Muon_charge')}))"
    (direct, pushed), _ = answers(folder, tmp_path / "o", FILES[0], question(where, columns), door)
    assert direct.schema == pushed.schema
    assert direct.equals(pushed)


@pytest.mark.parametrize("value", ["0.1", "29.958515167236328", "3", "1e39"])
def test_float_columns_are_compared_as_numpy_does(value, folder, door, tmp_path, always):
    for sign in SIGNS:
        query = question(
            f"({sign} {field('MET_pt')} {value})", f"(dict (list 'met') (list {field('MET_pt')}))"
        )
        (direct, pushed), _ = answers(folder, tmp_path / "o", FILES[1], query, door)
        assert direct.equals(pushed)


def test_a_rare_selection_moves_fewer_bytes(folder, door, tmp_path):
    columns = f"(dict (list 'pt' 'eta') (list {field('Muon_pt')} {field('Muon_eta')}))"
    query = question(f"(> {field('nMuon')} 4)", columns)
    (direct, pushed), (whole, few) = answers(folder, tmp_path / "o", FILES[0], query, door)
    assert direct.equals(pushed)
    assert 0 < few < whole / 10  # directly each byte of the file is read, once


@pytest.mark.parametrize(("least", "sent"), [(2, True), (1, False)])
def test_a_filter_is_run_beside_the_data_if_less_than_half_of_the_events_stay(
    least, sent, folder, door, tmp_path
):
    """Of 100,000 events 34,367 have more than two muons, 83,343 more than one."""
    query = question(f"(> {field('nMuon')} {least})", f"(dict (list 'pt') (list {field('Muon_pt')}))")
    (direct, other), (whole, taken) = answers(folder, tmp_path / "o", FILES[0], query, door)
    assert direct.equals(other)
    assert (taken < whole) is sent
    url = (folder / FILES[0]).as_uri()
    task = Task(url, query, "", "alice", allow=("file://",), flight=f"{door}/site/{FILES[0]}")
    data = Beside(open_input(task), task)
    data.push(compile_text(query))
    assert data.pushed is sent
    data.close()


def test_a_file_replaced_before_its_scan_gives_no_result(folder, door, tmp_path):
    """The result would be known by the version that was opened, and be of another."""
    shutil.copy(folder / FILES[0], place := tmp_path / "changing.root")
    query = question(f"(> {field('nMuon')} 4)", f"(dict (list 'n') (list {field('nMuon')}))")
    task = Task(place.as_uri(), query, str(tmp_path / "o"), "alice", allow=("file://",),
                flight=f"{door}/site/{FILES[0]}")  # fmt: skip

    def replaced(data):
        shutil.copy(folder / FILES[1], place.with_suffix(".new"))
        place.with_suffix(".new").replace(place)

    with pytest.raises(OriginFailed, match="has changed") as told:
        execute(task, opened=replaced)
    assert told.value.retry != "no"
    assert not (tmp_path / "o").exists()
    assert execute(replace(task, url=(folder / FILES[0]).as_uri())).rows == 4620


@pytest.mark.parametrize(("flight", "token"), [("grpc://127.0.0.1:9", "alice"), ("", "mallory")])
def test_a_door_that_refuses_or_is_not_there_changes_nothing(flight, token, folder, door, tmp_path):
    query = question(f"(> {field('nMuon')} 2)", f"(dict (list 'n') (list {field('nMuon')}))")
    (direct, other), (whole, again) = answers(
        folder, tmp_path / "o", FILES[0], query, flight or door, token=token
    )
    assert direct.equals(other)
    assert whole == again


def test_a_file_replaced_during_a_scan_is_not_taken_for_the_one_that_was_opened(folder, door, tmp_path):
    name = tmp_path / "changing.root"
    shutil.copy(folder / FILES[0], name)
    url = f"{door}/site/{FILES[0]}"
    data = Beside(open_input(task := Task(name.as_uri(), "", "", allow=("file://",), flight=url)), task)
    data.unchanged()
    shutil.copy(folder / FILES[1], name)
    with pytest.raises(OriginFailed, match="has changed"):
        data.unchanged()
    data.close()


async def test_the_door_of_another_site_is_asked_with_a_token_for_it_and_for_one_path(
    issuer, folder, tmp_path
):
    there, base = "https://there.example", "https://results.test"
    minter = Minter(issuer, base, Buckets(), (), {there: "grpc+tls://there.example:9"})
    alice = Grant(issuer.url, "alice", ("storage.read:/",))
    token = await minter.token(alice, f"{there}/site/{FILES[0]}")
    other = await minter.token(alice, f"{there}/site/{FILES[1]}")
    here = Verifier([Issuer(issuer=issuer.url)], [base], local={issuer.url: issuer.keys.jwks()})
    with pytest.raises(InvalidToken):
        await here.verify(token)
    assert await minter.token(alice, f"https://elsewhere.example/site/{FILES[0]}") == ""
    assert await minter.token(replace(alice, issuer="https://other"), f"{there}/site/x") == ""
    assert await minter.token(replace(alice, scopes=("storage.read:/home",)), f"{there}/site/x") == ""

    query = question(f"(> {field('nMuon')} 4)", f"(dict (list 'n') (list {field('nMuon')}))")
    trusts = Verifier([Issuer(issuer=issuer.url)], [there], local={issuer.url: issuer.keys.jwks()})
    with serving(folder, trusts, gate=Gate({issuer.url: ["/"]})) as door:
        read = [
            (await asyncio.to_thread(answers, folder, tmp_path / "o", FILES[0], query, door, shown))[1]
            for shown in (token, other, "")
        ]
    (whole, few), *refused = read
    assert few < whole / 20
    assert refused == [[whole, whole]] * 2


def test_the_running_system_filters_its_own_files_beside_the_data_and_says_so(shared, command):
    shared.put("/site/pushed/z.root", (REPO / "tests/data/uproot-Zmumu.root").read_bytes())
    mass = "(call Where (call EventDataset 'f' 'events') (lambda (list e) (> (attr e 'M') 150)))"
    query = f"(call Select {mass} (lambda (list e) (dict (list 'm') (list (attr e 'M')))))"
    me = shared.admin()
    ask = lambda how, path, **more: shared.ask(how, f"/servicex/transformation{path}", me, **more)  # noqa: E731
    body = {"selection": query, "file-list": [f"{shared.run['https']}/site/pushed/z.root"],
           "codegen": "uproot", "result-format": "parquet"}  # fmt: skip
    id_ = ask("POST", "", json=body).json()["request_id"]
    while not (found := ask("GET", f"/{id_}/results").json()["results"]):
        ask("GET", f"/{id_}")  # waits at the server
    assert found[0]["total-events"] > 0
    assert 0 < found[0]["input-bytes"] < 10_000
    status = ask("GET", f"/{id_}/status?details=1").json()
    assert status["stats"]["files-filtered-beside-data"] == 1
    assert status["details"][0]["pushed"] is True
    assert "filtered beside the data" in shared.ask("GET", f"/requests/{id_}", me).text
    home = ("--home", shared.home.path)
    assert "filtered beside the data" in command("columns", "show", id_, *home).out
    assert "beside the data" in command("columns", "logs", id_, *home).out
    # A question that keeps more than a half is answered by reading.
    body["selection"] = query.replace("150", "10")
    id_ = ask("POST", "", json=body).json()["request_id"]
    while (status := ask("GET", f"/{id_}/status").json())["finish-time"] == "None":
        pass  # waits at the server
    assert status["stats"]["files-filtered-beside-data"] == 0
    assert "beside the data" not in shared.ask("GET", f"/requests/{id_}", me).text
