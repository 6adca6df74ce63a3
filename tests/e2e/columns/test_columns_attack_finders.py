"""Catalogues that lie about names, sizes and places: a clear error, never a look-up without end."""

import json
from urllib.parse import quote

import pytest

from doma.columns.finder import MAX_FILES
from doma.columns.finder_http import LARGEST, whole
from doma.columns.finder_opendata import OpenDataFinder
from doma.columns.finder_rucio import RucioFinder
from doma.columns.finder_xrootd import XrootdFinder, _file, matching
from doma.columns.model import Grant
from doma.columns.remote import open_bytes
from doma.core.errors import BadPath, DomaError, OriginFailed
from doma.core.url import origin_of
from doma.store.protocol import Stat
from tests.e2e.columns.rucio_server import RucioServer, replica
from tests.e2e.columns.test_columns_finders import EOS, Portal, section

WHO = Grant("https://i", "ada")
DID = "user.ada:hists"


@pytest.fixture
def server():
    made = RucioServer()
    yield made
    made.close()


@pytest.fixture
def portal():
    made = Portal()
    yield made
    made.close()


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a\nb", "x" * 5000], ids=["half", "nul", "line", "long"])
@pytest.mark.parametrize("pfns", [{}, {"https://b.org/f": {}}], ids=["nowhere", "somewhere"])
async def test_a_name_that_nobody_can_write_down_is_the_catalogues_fault(server, name, pfns):
    server.dids[DID] = []
    server.raw = json.dumps(replica(name, pfns)).encode() + b"\n"
    finder = RucioFinder(section(server))
    try:
        with pytest.raises(OriginFailed, match="no usable name"):
            await finder.find(DID, WHO)
    finally:
        await finder.close()


def test_sizes_of_a_largest_dataset_are_still_a_number_of_the_database():
    assert MAX_FILES * LARGEST < 1 << 63
    assert [whole(n) for n in (LARGEST, LARGEST - 1, 1 << 62, 10**4000, -1, True, "1")] == [
        0, LARGEST - 1, 0, 0, 0, 0, 0
    ]  # fmt: skip


@pytest.mark.parametrize("uri", ["http://[x/i_file_index.json", EOS + "../../../admin/i_file_index.json"])
async def test_an_index_that_is_nowhere_below_the_portal_is_not_asked_for(portal, uri):
    portal.pages["/api/records/1"] = {"metadata": {"files": [{"uri": uri}]}}
    finder = OpenDataFinder(section(portal))
    try:
        with pytest.raises(OriginFailed, match="file index"):
            await finder.find("1", WHO)
    finally:
        await finder.close()
    assert len(portal.asked) == 1


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://user:pass@b.org/f",
        "https://b.org/a b",
        "root://b.org//d/../../etc/passwd",
        "gopher://b.org/f",
        "https://[::1/f",
        "https://b.org:0/f",
        "root://127.0.0.1:1//f",
        "http://169.254.169.254/latest",
        "https://localhost/f",
    ],
)
async def test_a_replica_that_leads_astray_is_refused_when_it_is_opened(server, url):
    server.dids[DID] = [replica("f", {url: {}})]
    finder = RucioFinder(section(server))
    try:
        (found,) = await finder.find(DID, WHO)
    finally:
        await finder.close()
    for replica_ in found.replicas:
        with pytest.raises(DomaError) as refused:
            open_bytes(replica_, "secret-token")
        assert refused.value.http < 500
        assert "pass@" not in refused.value.message


async def test_what_means_something_in_a_url_is_only_a_name_in_a_listing(shared):
    names = ("a?authz=x.root", "a", "b#c.root", "d%41.root", "dA.root", "e f.root", "g&h=1.root", "ü.root")
    for name in names:
        shared.put(f"/site/astray/{quote(name)}", name.encode())
    origin = shared.run["https"].replace("https", "roots", 1)
    allow = (str(origin_of(origin)),)
    token = shared.token()

    async def mine(grant, url):
        return token

    finder = XrootdFinder(shared.run["ca_file"], allow, mine)
    found = await finder.find(f"{origin}//site/astray/*", WHO)
    assert sorted(f.name.rpartition("/")[2] for f in found) == sorted(names)
    for file in found:
        if "?" in file.name:  # never the file "a", whose name stands in front of it
            with pytest.raises(BadPath, match="choose another name"):
                open_bytes(file.replicas[0], token, shared.run["ca_file"], allow)
            continue
        data = open_bytes(file.replicas[0], token, shared.run["ca_file"], allow)
        assert data.read(0, data.size).decode() == file.name.rpartition("/")[2]
        data.close()


async def test_a_name_that_is_no_utf8_is_kept_for_its_own_file_to_fail():
    class Odd:
        async def list(self, path):
            yield Stat(path="/d/\udcff.root", size=1, modified=0.0, version="v", is_dir=False, checksums={})

    ((path, size),) = await matching(Odd(), ["d", "*.root"])
    file = _file(origin_of("root://a.org"), path, size)
    assert file.replicas == ("root://a.org//d/%FF.root",)
    assert file.name.isprintable()
