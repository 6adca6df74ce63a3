"""Scans over a real Flight server on loopback, with the tools people use."""

import asyncio
import itertools
import pickle
import shutil
import threading
import time
from pathlib import Path
from typing import ClassVar

import awkward as ak
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
import uproot

from doma.auth.gate import Gate
from doma.auth.model import Capability, Identity, Verb
from doma.core.config import Scan
from doma.core.errors import (
    BadQuery,
    BadRequest,
    CorruptFile,
    DomaError,
    Forbidden,
    InvalidToken,
    LimitExceeded,
    NotFound,
    PreconditionFailed,
    TooManyRequests,
    Unauthenticated,
    UnknownColumn,
    Unsupported,
)
from doma.scan.client import RemoteFragment, scan
from doma.scan.flight import FlightDoor
from doma.scan.opener import StoreOpener
from doma.scan.service import ScanService
from doma.store.file import FileStore

ROOT = Path(__file__).parents[2]
REAL = ROOT / "src/doma/facility/data"
SAMPLES = ROOT / "tests/data"
ISSUER = "https://issuer.example"
MUONS = "/site/cms_doublemuparked_100k.root"


def who(subject, path="/"):
    return Identity(ISSUER, subject, 2e9, capabilities=(Capability(Verb.READ, path),))


class Known:
    """A verifier that knows its tokens by heart."""

    tokens: ClassVar = {"alice": who("alice"), "bob": who("bob"), "narrow": who("carol", "/sub")}

    async def verify(self, token):
        if token not in self.tokens:
            raise InvalidToken("token: not known here")
        return self.tokens[token]


class Site:
    """A flight door over a folder, its loop in a thread."""

    def __init__(self, folder, config=None, clock=time.time, cert=b"", key=b""):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

        async def make():
            return FileStore(folder, read_only=True)

        self.store = self.run(make())
        opener = StoreOpener(self.store, self.loop)
        gate = Gate({ISSUER: ["/"]})
        self.service = ScanService({"site": opener}, Known(), {"site": gate}, config or Scan(), clock)
        self.door = FlightDoor(self.service, "127.0.0.1", 0, cert, key, loop=self.loop)
        self.url = self.door.start()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def open(self, dataset=MUONS, token="alice", **options):
        return scan(self.url, dataset, token, **options)

    def stop(self):
        self.door.stop()
        self.run(self.store.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for name in ("cms_doublemuparked_100k.root", "nano_dy.root"):
        shutil.copy(REAL / name, folder)
    for name in ("nano_dy_rntuple.root", "nano_dy.parquet", "nano_dy_malformed.parquet", "bad_delphes.root"):
        shutil.copy(SAMPLES / name, folder)
    for name in ("empty.parquet", "empty.root"):
        (folder / name).touch()
    (folder / "notes.txt").write_text("hello")
    whole = (folder / "cms_doublemuparked_100k.root").read_bytes()
    (folder / "cut.root").write_bytes(whole[: len(whole) // 2])
    good = (folder / "nano_dy.parquet").read_bytes()
    (folder / "flipped.parquet").write_bytes(good[:2000] + bytes(2000) + good[4000:])
    with uproot.open(folder / "cms_doublemuparked_100k.root") as file:
        arrays = file["Events"].arrays(library="ak")
    table = pa.table(
        {name: ak.to_arrow(arrays[name], extensionarray=False, list_to32=True) for name in arrays.fields}
    )
    for rows in (1000, 33_333, 100_000):
        pq.write_table(table, folder / f"muons_{rows}.parquet", row_group_size=rows)
    (folder / "sub").mkdir()
    for n in range(3):
        part = {
            "run": pa.array([n] * 4, pa.int32()),
            "x": pa.array(range(4), [pa.int32(), pa.int64(), pa.int32()][n]),
        }
        part |= {"late": pa.array([1.0, 2.0, 3.0, 4.0])} if n else {}
        pq.write_table(pa.table(part), folder / "sub" / f"part{n}.parquet")
    return folder


@pytest.fixture(scope="module")
def site(folder):
    site = Site(folder)
    yield site
    site.stop()


@pytest.fixture(scope="module")
def truth(folder):
    return pq.read_table(folder / "muons_100000.parquet")


@pytest.mark.parametrize(
    "name", ["cms_doublemuparked_100k.root", "muons_1000.parquet", "muons_33333.parquet"]
)
def test_the_same_cut_gives_the_same_rows_for_every_format_and_row_group(site, truth, name):
    events = site.open(f"/site/{name}")
    hard = ak.to_numpy(ak.any(ak.from_arrow(truth["Muon_pt"]) > 20, axis=1))
    columns = ["nMuon", "Muon_pt", "Muon_charge"]
    found = events.to_table(columns=columns, filter="any(Muon.pt > 20) and nMuon >= 2")
    expected = truth.filter(pa.array(hard & (truth["nMuon"].to_numpy() >= 2))).select(columns)
    assert found.num_rows > 30_000
    assert found.cast(expected.schema).equals(expected)


def test_all_rows_and_columns_come_back_as_they_are(site, truth):
    found = site.open().to_table()
    assert found.schema.field("nMuon").type == pa.uint32()
    assert found.cast(truth.schema).equals(truth)


def test_one_query_over_many_files_sees_missing_and_wider_columns(site):
    parts = site.open("/site/sub/part*.parquet")
    assert parts.schema.field("x").type == pa.int64()
    assert parts.to_table().column("run").to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert parts.count_rows(filter=pc.field("late").is_null()) == 4
    assert [f.to_table().num_rows for f in parts.get_fragments()] == [4, 4, 4]
    assert parts.head(5).num_rows == 5
    assert [f.head(3).num_rows for f in parts.get_fragments()] == [3, 3, 3]
    assert all(isinstance(f, RemoteFragment) for f in parts.get_fragments())


def test_counting_moves_no_columns(site):
    events = site.open()
    assert events.count_rows(filter="nMuon == 2") == 48976
    assert events.stats()["bytes_sent"] < 2000
    assert events.to_table(columns=[]).num_rows == 100_000


def test_statistics_spare_row_groups_and_explain_says_so(site, folder):
    pq.write_table(pa.table({"run": list(range(1000))}), folder / "sorted.parquet", row_group_size=100)
    runs = site.open("/site/sorted.parquet")
    assert runs.to_table(filter=pc.field("run") > 949).column("run").to_pylist() == list(range(950, 1000))
    assert runs.stats()["groups_skipped"] == 9
    assert runs.explain(filter="run > 949")["files"][0]["groups_skipped"] == 9
    assert runs.explain(filter="run + 1 > 950")["files"][0]["groups_skipped"] == 0


def test_computed_columns_and_cut_collections_come_from_the_service(site, truth):
    events = site.open()
    best = events.to_table(columns={"n": pc.field("nMuon"), "lead": "max(Muon.pt)"}, filter="nMuon > 0")
    pts = ak.from_arrow(truth["Muon_pt"])
    assert np.array_equal(best["lead"].to_numpy(), ak.to_numpy(ak.max(pts[ak.num(pts) > 0], axis=1)))
    keep = {"keep": [{"each": "Muon"}, {">": [{"var": "Muon.pt"}, {"lit": 20}]}]}
    cut = events.to_table(columns=[keep])
    assert cut.column_names == ["Muon_pt", "Muon_eta", "Muon_phi", "Muon_mass", "Muon_charge"]
    assert ak.to_list(ak.from_arrow(cut["Muon_pt"])[:500]) == ak.to_list(pts[pts > 20][:500])


@pytest.mark.parametrize(
    "expression",
    [
        pc.field("nMuon") >= 2, (pc.field("nMuon") > 1) & ~pc.field("nMuon").isin([2, 3]), pc.field("nMuon") - 1 > 2,  # noqa: E501 - a table row
        pc.list_value_length(pc.field("Muon_pt")) == 3, pc.field("nMuon").cast(pa.float64()) / 2.0 < 1.5,
        pc.is_null(pc.field("Muon_pt")) | (pc.field("nMuon") == 0), pc.field("nMuon") > 2.5,
        pc.if_else(pc.field("nMuon") > 2, pc.field("nMuon") < 5, pc.scalar(False)),
    ],
)  # fmt: skip
def test_pyarrow_expressions_mean_what_pyarrow_means(site, truth, expression):
    assert site.open().count_rows(filter=expression) == ds.dataset(truth).count_rows(filter=expression)


def test_what_cannot_be_pushed_down_is_refused_with_the_remedy(site):
    with pytest.raises(Unsupported, match=r"utf8_reverse.*apply it to the result"):
        site.open().to_table(filter=pc.utf8_reverse(pc.field("nMuon")) == "x")


def test_duckdb_and_polars_take_it_for_a_dataset(site):
    events = site.open()
    assert duckdb.sql("select count(*), max(nMuon) from events where nMuon >= 4").fetchall()[0][0] == 12641
    lazy = pl.scan_pyarrow_dataset(events).filter(pl.col("nMuon").is_in([4, 5])).select("nMuon", "Muon_pt")
    assert lazy.collect().shape == (10773, 2)


def test_pandas_and_awkward_read_its_tables(site):
    table = site.open().to_table(columns=["nMuon", "Muon_pt"], filter="nMuon >= 6")
    assert len(table.to_pandas()) == len(ak.from_arrow(table)) == table.num_rows


def test_a_pickled_dataset_works_elsewhere(site):
    events = pickle.loads(pickle.dumps(site.open().filter("nMuon == 2")))
    assert events.count_rows() == 48976
    assert pickle.loads(pickle.dumps(next(events.get_fragments()))).count_rows() == 48976


@pytest.mark.parametrize(
    ("base", "ours"),
    [(ds.Dataset, "RemoteDataset"), (ds.Scanner, "RemoteScanner"), (ds.Fragment, "RemoteFragment")],
)
def test_every_public_attribute_of_pyarrow_is_our_own(base, ours):
    import doma.scan.client as client

    held = vars(getattr(client, ours))
    public = [name for name in dir(base) if not name.startswith("__") or name in ("__reduce__", "__repr__")]
    missing = [
        name for name in public if name not in held and not (name == "__repr__" and base is ds.Scanner)
    ]
    assert missing == []


def test_rows_are_taken_sorted_and_joined(site):
    events = site.open("/site/sub/part*.parquet")
    assert events.take([11, 0, 5]).column("run").to_pylist() == [2, 0, 1]
    assert events.sort_by([("run", "descending")]).head(1).column("run").to_pylist() == [2]
    right = ds.dataset(pa.table({"run": pa.array([1], pa.int32()), "tag": ["b"]}))
    assert events.join(right, "run", join_type="inner").to_table().num_rows == 4
    with pytest.raises(BadQuery, match="outside"):
        events.take([12])
    with pytest.raises(ValueError, match="UnionDataset"):
        ds.dataset([events, events])


def test_batches_stay_below_the_agreed_size(site):
    batches = list(site.open().to_batches())
    assert sum(b.num_rows for b in batches) == 100_000
    assert all(b.num_rows <= 65_536 and b.nbytes <= 17 << 20 for b in batches)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_the_answer_may_be_compressed(site, truth, compression):
    events = site.open(compression=compression)
    assert (
        events.to_table(filter="nMuon > 3")["nMuon"].to_pylist()
        == truth.filter(pc.field("nMuon") > 3)["nMuon"].to_pylist()
    )
    assert events.stats()["bytes_sent"] > 1000


def test_a_query_that_may_hold_little_gives_the_same_answer(folder, truth):
    site = Site(folder, Scan(memory=1 << 20))
    try:
        for name in ("cms_doublemuparked_100k.root", "muons_100000.parquet"):
            found = site.open(f"/site/{name}").to_table(filter="any(Muon.pt > 40)", columns=["nMuon"])
            pts = ak.from_arrow(truth["Muon_pt"])
            assert found["nMuon"].to_pylist() == ak.to_list(ak.num(pts)[ak.any(pts > 40, axis=1)])
    finally:
        site.stop()


def test_a_tree_is_chosen_by_name_and_a_missing_one_names_the_near_ones(site):
    with pytest.raises(BadQuery, match="several trees have entries: Events, Runs"):
        site.open("/site/nano_dy.root").to_table()
    events = site.open("/site/nano_dy.root", tree="Events")
    assert events.to_table(columns=["event"], filter="nMuon > 0").schema.field("event").type == pa.uint64()
    with pytest.raises(UnknownColumn, match="Events"):
        site.open("/site/nano_dy.root", tree="Event").to_table()


def test_rntuple_and_parquet_of_the_same_events_agree(site):
    cut, columns = "any(Muon.pt > 5) or nJet > 6", ["event", "nMuon", "Jet_pt"]
    tables = [
        site.open(f"/site/nano_dy{suffix}", tree=tree).to_table(columns=columns, filter=cut)
        for suffix, tree in ((".root", "Events"), ("_rntuple.root", None), (".parquet", None))
    ]
    assert tables[0].num_rows > 5
    assert tables[0].to_pylist() == tables[1].to_pylist() == tables[2].to_pylist()


def test_the_list_of_flights_respects_rights(site):
    client = fl.FlightClient(site.url)
    narrow = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer narrow")])
    assert list(client.list_flights(options=narrow)) == []
    alice = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer alice")])
    names = {info.descriptor.path[0].decode() for info in client.list_flights(options=alice)}
    assert MUONS in names
    assert "/site/flipped.parquet" in names
    assert "/site/cut.root" not in names


CASES = [
    ("/site/empty.parquet", CorruptFile, "0 bytes"), ("/site/empty.root", CorruptFile, "empty.root"),
    ("/site/notes.txt", CorruptFile, "neither a Parquet nor a ROOT"), ("/site/gone.root", NotFound, "gone.root"),  # noqa: E501 - a table row
    ("/site/nano_dy_malformed.parquet", CorruptFile, "malformed"), ("/site/cut.root", CorruptFile, "cut.root"),  # noqa: E501 - a table row
    ("/site/bad_delphes.root", BadQuery, "no tree"), ("/nowhere/x", NotFound, "endpoints: site"),
    ("/site/../etc/passwd", BadRequest, "not allowed"), ("nano+score@12", NotFound, "no dataset"),
    ("/site/*.nothing", NotFound, "no file matches"), ("/site/sub", DomaError, "directory"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "error", "text"), CASES)
def test_a_bad_dataset_gets_one_clear_error(site, name, error, text):
    with pytest.raises(error, match=text) as caught:
        site.open(name).to_table()
    assert "Traceback" not in str(caught.value)
    assert caught.value.http < 500


def test_damage_inside_a_file_names_that_file_and_row_group(site):
    with pytest.raises(CorruptFile, match=r"/site/flipped.parquet, row group 0"):
        site.open("/site/flipped.parquet").to_table()


def test_rights_are_checked_by_path(site):
    assert site.open("/site/sub/part0.parquet", token="narrow").count_rows() == 4
    with pytest.raises(Forbidden, match=r"storage\.read"):
        site.open(token="narrow").to_table()
    with pytest.raises(Forbidden):
        site.open("/site/*.root", token="narrow").to_table()
    with pytest.raises(Unauthenticated):
        site.open(token=None).to_table()
    with pytest.raises(InvalidToken):
        site.open(token="stolen").to_table()


def ticket_of(site, token="alice"):
    return site.open(token=token).remote.info({"v": 1, "from": MUONS}).endpoints[0].ticket.ticket


def fetch(site, ticket, token="alice"):
    from doma.scan.flighterror import from_flight

    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())])
    try:
        return fl.FlightClient(site.url).do_get(fl.Ticket(ticket), options).read_all().num_rows
    except (fl.FlightError, pa.ArrowException) as e:
        raise from_flight(e) from e


def test_a_ticket_works_for_its_owner_alone_and_only_unchanged(site):
    ticket = ticket_of(site)
    assert fetch(site, ticket) == 100_000
    with pytest.raises(Forbidden, match="somebody else"):
        fetch(site, ticket, "bob")
    for bad in (b"", b"x", ticket[:-1], ticket[:50] + b"!" + ticket[51:], bytes(100_000)):
        with pytest.raises(BadRequest, match="not signed here"):
            fetch(site, bad)


def test_an_expired_ticket_says_so(folder):
    now = [1000.0]
    site = Site(folder, clock=lambda: now[0])
    try:
        ticket = ticket_of(site)
        now[0] += 3601
        with pytest.raises(PreconditionFailed, match="expired"):
            fetch(site, ticket)
    finally:
        site.stop()


def test_a_file_replaced_after_planning_is_not_mixed(site, folder):
    path = folder / "changing.parquet"
    pq.write_table(pa.table({"x": [1, 2]}), path)
    info = site.open().remote.info({"v": 1, "from": "/site/changing.parquet"})
    path.unlink()
    pq.write_table(pa.table({"x": [3, 4, 5]}), path)
    with pytest.raises(PreconditionFailed, match="replaced"):
        fetch(site, info.endpoints[0].ticket.ticket)
    assert site.open("/site/changing.parquet").to_table()["x"].to_pylist() == [3, 4, 5]


HOSTILE = [
    b"", b"{", b"[]", b"null", b'{"v": 2, "from": "/site/a"}', b'{"v": 1}', b'{"v": 1, "from": 3}', b"\xff\xfe",  # noqa: E501 - a table row
    b'{"v": 1, "from": "/site/nano_dy.parquet", "more": 1}', b"[" * 100_000, b'{"a":' * 20_000,
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": {"import": "os"}}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": {"col": "event", "lit": 1}}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "limit": -1}', b'{"v": 1, "v": 1, "from": "/site/a"}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": {"lit": 1e999}}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": {"regex": [{"lit": "a"}, "(((("]}}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "options": {"compression": "rot13"}}',
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": ' + b'{"not": ' * 3000 + b"1" + b"}" * 3000 + b"}",
    b'{"v": 1, "from": "/site/nano_dy.parquet", "where": {"and": [' + b'{"lit": true},' * 60_000 + b'{"lit": true}]}}',  # noqa: E501 - a table row
]  # fmt: skip


@pytest.mark.parametrize("command", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_query_gets_one_clear_error_and_the_service_lives_on(site, command):
    from doma.scan.flighterror import from_flight

    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer alice")])
    try:
        fl.FlightClient(site.url).get_flight_info(fl.FlightDescriptor.for_command(command), options)
    except (fl.FlightError, pa.ArrowException) as e:
        error = from_flight(e)
        assert isinstance(error, BadRequest | BadQuery | LimitExceeded)
    else:
        pytest.fail("accepted")
    assert site.open("/site/sub/part0.parquet").count_rows() == 4


def test_an_answer_above_its_own_limit_is_refused(site):
    events = site.open()
    events.query["options"]["max_bytes"] = 1000
    with pytest.raises(LimitExceeded, match="max_bytes"):
        events.to_table()


def slow_stream(site):
    """A stream that has begun and is not read on; the file is large enough to fill every buffer between."""
    stream = site.open("/site/big.parquet").to_batches()
    next(stream)
    return stream


@pytest.fixture
def big(folder):
    values = np.random.default_rng(1).random(4_000_000)
    pq.write_table(
        pa.table({f"x{n}": values for n in range(3)}),
        folder / "big.parquet",
        row_group_size=100_000,
        compression="none",
    )
    yield
    (folder / "big.parquet").unlink()


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_abandoned_stream_stops_and_gives_back_its_place(folder, big):
    site = Site(folder, Scan(concurrency=1))
    try:
        stream = slow_stream(site)
        assert site.service.running == 1
        with pytest.raises(TooManyRequests, match="limit is 1") as caught:
            site.open("/site/sub/part0.parquet").to_table()
        assert caught.value.retry_after == 1.0
        stream.close()
        eventually(lambda: site.service.running == 0)
        assert site.open("/site/sub/part0.parquet").count_rows() == 4
    finally:
        site.stop()


def test_a_cancelled_scan_ends_with_that_error(site, big):
    events = site.open("/site/big.parquet")
    stream = events.to_batches()
    next(stream)
    events.cancel()
    with pytest.raises(DomaError) as caught:
        for _ in itertools.islice(stream, 1000):
            pass
    assert caught.value.code == "cancelled"
    eventually(lambda: site.service.running == 0)


def test_scans_of_others_cannot_be_seen_or_stopped(site):
    mine = site.open()
    mine.count_rows()
    theirs = site.open(token="bob")
    theirs.remote.last = mine.remote.last
    with pytest.raises(NotFound):
        theirs.stats()
    with pytest.raises(NotFound):
        theirs.cancel()


def test_over_tls_the_certificate_authority_is_needed(folder, tmp_path):
    cert, key = certificate()
    site = Site(folder, cert=cert, key=key)
    try:
        assert site.url.startswith("grpc+tls://")
        assert site.open("/site/sub/part0.parquet", ca=cert).count_rows() == 4
        file = tmp_path / "ca.pem"
        file.write_bytes(cert)
        assert site.open("/site/sub/part0.parquet", ca=str(file)).count_rows() == 4
    finally:
        site.stop()


def test_without_a_certificate_the_door_stays_on_loopback(site):
    with pytest.raises(BadRequest, match="certificate"):
        FlightDoor(site.service, "0.0.0.0", loop=site.loop).start()


def certificate():
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return cert.public_bytes(pem), key.private_bytes(pem, *plain)


def test_without_a_token_given_the_client_finds_the_users_own(site, monkeypatch):
    monkeypatch.setenv("BEARER_TOKEN", "alice")
    found = scan(site.url, "/site/cms_doublemuparked_100k.root")
    assert found.count_rows() == 100_000
    monkeypatch.delenv("BEARER_TOKEN")
    monkeypatch.setenv("BEARER_TOKEN_FILE", "/nowhere/token")
    with pytest.raises(DomaError, match="/nowhere/token"):
        found.count_rows()


def test_an_unknown_column_is_told_with_the_file_the_place_in_the_query_and_the_near_ones(site):
    events = site.open("/site/cms_doublemuparked_100k.root")
    with pytest.raises(
        UnknownColumn, match=r"^/site/cms_\S+root: query/columns/0: no column 'Muon_ptt'.*Muon_pt"
    ):
        events.to_table(columns=["Muon_ptt"])
