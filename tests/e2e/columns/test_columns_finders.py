"""Catalogues of others, honest and hostile: what they answer becomes files, or one clear error."""

import json
import tracemalloc

import pytest

from doma.columns import finder_http, finder_opendata, finder_rucio
from doma.columns.finder import Did, chosen
from doma.columns.finder_opendata import OpenDataFinder
from doma.columns.finder_rucio import RucioFinder
from doma.columns.finder_xrootd import XrootdFinder, matching
from doma.columns.model import Grant
from doma.columns.remote import open_bytes
from doma.core import config
from doma.core.errors import BadRequest, Forbidden, LimitExceeded, NotFound, OriginFailed, StorageUnavailable
from doma.store.memory import MemoryStore
from tests.e2e.columns.rucio_server import RucioServer, replica

WHO = Grant("https://i", "ada")
DID = "user.ada:hists"


@pytest.fixture
def server():
    made = RucioServer()
    yield made
    made.close()


def section(server, **more):
    return config.Datasets(
        rucio=server.url, rucio_user="ada", rucio_password="hush", opendata=server.url, **more
    )


@pytest.fixture
async def rucio(server):
    finder = RucioFinder(section(server))
    yield finder
    await finder.close()


async def test_replicas_come_root_first_and_by_priority(server, rucio):
    server.dids[DID] = [
        replica("b", {"davs://x.org:443/b": {"priority": 1}, "root://y.org:1094//b": {"priority": 2},
                      "root://z.org:1094//b": {"priority": 1}, "root://tape.org//b": {"type": "TAPE"}}),
        replica("a", {"https://x.org/a": {}}, size=7),
    ]  # fmt: skip
    found = chosen(await rucio.find(DID, WHO), None)
    assert [(f.name, f.bytes, f.adler32) for f in found] == [
        ("user.ada:a", 7, "0a1b2c3d"),
        ("user.ada:b", 100, "0a1b2c3d"),
    ]
    assert found[1].replicas == ("root://z.org:1094//b", "root://y.org:1094//b", "https://x.org:443/b")
    assert server.bodies[0]["dids"] == [{"scope": "user.ada", "name": "hists"}]
    await rucio.find(DID, WHO)
    assert [path for _, path in server.asked].count("/auth/userpass") == 1


async def test_sites_are_preferred_as_configured(server):
    finder = RucioFinder(section(server, prefer=("https://here.org",)))
    server.dids[DID] = [replica("a", {"root://x.org//a": {}, "https://here.org/a": {}})]
    try:
        (found,) = await finder.find(DID, WHO)
    finally:
        await finder.close()
    assert found.replicas == ("https://here.org/a", "root://x.org//a")


async def test_a_file_without_a_readable_replica_is_not_lost(server, rucio):
    server.dids[DID] = [replica("a", {}), replica("b", {"root://tape.org//b": {"type": "TAPE"}})]
    found = await rucio.find(DID, WHO)
    assert len(found) == 2
    with pytest.raises(NotFound, match=r"user\.ada:a: its catalogue knows no replica"):
        open_bytes(found[0].replicas[0])


async def test_what_rucio_does_not_know_and_what_is_no_did(server, rucio):
    server.dids["user.ada:empty"] = []
    assert await rucio.find("user.ada:empty", WHO) == []
    with pytest.raises(NotFound, match="no such dataset"):
        await rucio.find("user.ada:none", WHO)
    for name in ("nocolon", "a b:c", "scope:", "x" * 40 + ":n"):
        with pytest.raises(BadRequest):
            await rucio.find(name, WHO)


async def test_a_token_that_has_run_out_is_asked_for_again(server, rucio):
    server.dids[DID] = [replica("a", {"root://x.org//a": {}})]
    await rucio.find(DID, WHO)
    server.tokens.clear()
    with pytest.raises(Forbidden):
        await rucio.find(DID, WHO)
    assert len(await rucio.find(DID, WHO)) == 1


async def test_a_token_file_is_read_for_every_question_and_a_password_never_told(server, tmp_path):
    (tmp_path / "token").write_text("mine\n")
    server.tokens.add("mine")
    server.dids[DID] = []
    finder = RucioFinder(config.Datasets(rucio=server.url, rucio_token_file=str(tmp_path / "token")))
    wrong = RucioFinder(config.Datasets(rucio=server.url, rucio_user="ada", rucio_password="guess-me"))
    try:
        assert await finder.find(DID, WHO) == []
        with pytest.raises(Forbidden) as caught:
            await wrong.find(DID, WHO)
    finally:
        await finder.close()
        await wrong.close()
    assert "guess-me" not in caught.value.message


LINE = json.dumps(replica("a", {"root://x.org//a": {}})) + "\n"


@pytest.mark.parametrize(
    "raw",
    ["{", "[1]\n", "3\n", '{"scope": "s"}\n', '{"scope": 1, "name": 2, "pfns": 3}\n', "<html>", "null\n"],
)
async def test_answers_that_make_no_sense_are_one_clear_error(server, rucio, raw):
    server.dids[DID] = []
    server.raw = raw.encode()
    with pytest.raises(OriginFailed, match="/replicas/list: the catalogue's answer"):
        await rucio.find(DID, WHO)


async def test_a_dataset_of_too_many_files_and_an_endless_line_are_refused_in_bounded_memory(
    server, rucio, monkeypatch
):
    server.dids[DID] = []
    monkeypatch.setattr(finder_rucio, "MAX_FILES", 3000)
    server.raw = LINE.encode() * 3001
    with pytest.raises(LimitExceeded, match="at most"):
        await rucio.find(DID, WHO)
    server.raw = b"[" * (3 * finder_http.LINE)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(OriginFailed, match="too long"):
        await rucio.find(DID, WHO)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before < 12 * finder_http.LINE


async def test_a_redirect_gets_no_credentials(server, rucio):
    other = RucioServer()
    try:
        server.elsewhere = f"{other.url}/auth/userpass"
        with pytest.raises(OriginFailed):
            await rucio.find(DID, WHO)
        assert other.asked == []
    finally:
        other.close()


async def test_a_server_that_is_away_or_in_trouble_may_be_asked_again(server, rucio):
    server.dids[DID] = []
    server.status = 503
    with pytest.raises(StorageUnavailable) as caught:
        await rucio.find(DID, WHO)
    assert caught.value.retry != "no"


# --- CERN Open Data ---


class Portal(RucioServer):
    """``/api/records/N`` and files from a dict."""

    def __init__(self):
        super().__init__()
        self.pages = {}

    def get(self, h):
        self.asked.append(("GET", h.path))
        if self.elsewhere:
            return self._send(h, 302, b"", {"Location": self.elsewhere})
        page = self.pages.get(h.path)
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        return self._send(h, 200 if page is not None else 404, body)


@pytest.fixture
def portal():
    made = Portal()
    yield made
    made.close()


@pytest.fixture
async def opendata(portal):
    finder = OpenDataFinder(section(portal))
    yield finder
    await finder.close()


EOS = "root://eospublic.cern.ch//eos/opendata/cms/"


def listed(*names):
    return [{"uri": EOS + n, "size": 5, "checksum": "adler32:9719fd6a", "type": "index"} for n in names]


async def test_a_record_is_its_files_with_both_ways_to_them(portal, opendata):
    portal.pages["/api/records/1507"] = {"metadata": {"files": listed("b.root", "a.root", "readme.txt")}}
    found = chosen(await opendata.find("1507", WHO), None)
    assert [f.replicas for f in found] == [
        (EOS + n, f"{portal.url}/eos/opendata/cms/{n}") for n in ("a.root", "b.root")
    ]
    assert (found[0].bytes, found[0].adler32) == (5, "9719fd6a")


@pytest.mark.parametrize("form", ["inside", "beside"])
async def test_file_indices_are_unfolded(portal, opendata, form):
    files = listed("x_file_index.json", "x_file_index.txt")
    metadata = {"files": files}
    if form == "inside":
        metadata["_file_indices"] = [{"key": "x", "files": listed("1.root")}, {"files": listed("2.root")}]
    else:
        portal.pages["/eos/opendata/cms/x_file_index.json"] = listed("1.root", "2.root")
    portal.pages["/api/records/6"] = {"metadata": metadata}
    assert [f.name for f in await opendata.find("6", WHO)] == [EOS + "1.root", EOS + "2.root"]


async def test_records_that_are_none_and_records_that_make_no_sense(portal, opendata):
    with pytest.raises(NotFound, match="no such record"):
        await opendata.find("404", WHO)
    for name in ("abc", "-1", "1/../2", "²", "1" * 13):
        with pytest.raises(BadRequest):
            await opendata.find(name, WHO)
    for page in ([], {"metadata": 3}, {}, b"{", b"\xff"):
        portal.pages["/api/records/1"] = page
        with pytest.raises(OriginFailed):
            await opendata.find("1", WHO)
    odd = {
        "files": [3, {"uri": 4}, {"uri": "root://[/x.root"}, {"uri": "x.root", "size": -1}],
        "_file_indices": [7],
    }
    portal.pages["/api/records/1"] = {"metadata": odd}
    assert [f.name for f in await opendata.find("1", WHO)] == ["x.root"]


async def test_a_record_of_too_many_files_is_refused(portal, opendata, monkeypatch):
    monkeypatch.setattr(finder_opendata, "MAX_FILES", 3000)
    portal.pages["/api/records/1"] = {"metadata": {"files": listed(*(f"{i}.root" for i in range(3001)))}}
    with pytest.raises(LimitExceeded):
        await opendata.find("1", WHO)


# --- patterns ---


@pytest.fixture
async def tree():
    store = MemoryStore()
    for path in (
        "/d/a1/x.root",
        "/d/a2/x.root",
        "/d/a2/y.root",
        "/d/b/x.root",
        "/d/a2/deep/x.root",
        "/d/f.root",
    ):
        upload = await store.create(path)
        await upload.write(b"12345")
        await upload.commit()
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d/a*/x.root", ["/d/a1/x.root", "/d/a2/x.root"]),
        ("d/*/[xy].root", ["/d/a1/x.root", "/d/a2/x.root", "/d/a2/y.root", "/d/b/x.root"]),
        ("d/a?/*", ["/d/a1/x.root", "/d/a2/x.root", "/d/a2/y.root"]),
        ("*/f.root", ["/d/f.root"]),
        ("d/*.root", ["/d/f.root"]),
        ("d/f.root", ["/d/f.root"]),
    ],
)
async def test_wildcards_match_within_a_component(tree, pattern, found):
    assert sorted(p for p, _ in await matching(tree, pattern.split("/"))) == found


async def test_a_pattern_that_matches_nothing_does_not_exist(tree):
    for pattern in ("d/*.txt", "nowhere/*", "d/a1", "d/f.root/*"):
        with pytest.raises(NotFound):
            await matching(tree, pattern.split("/"))


async def test_private_servers_are_not_listed():
    async def token(grant, url):
        return ""

    finder = XrootdFinder("", (), token)
    with pytest.raises(Forbidden):
        await finder.find("root://127.0.0.1:1//d/*.root", WHO)
    for name in ("https://a/b", "root://h", "x", "root:///d/*"):
        with pytest.raises(BadRequest):
            await finder.find(name, WHO)


def test_dids_are_taken_apart_where_wildcards_stand_too():
    assert Did.parse("xrootd://root://a//d/?.root?files=2", "rucio").files == 2
    assert Did.parse("scope:name", "rucio").word == "rucio"
