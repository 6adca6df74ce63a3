"""The Python clients of root:// against our door: pyxrootd, xrdclient, and uproot and coffea on top of them.

Each runs in an interpreter of its own, as a user's script does: the C++ client keeps threads, and two of the
packages register themselves for the same URLs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from doma.facility.sample import sample
from tests.clients.xrootd_server import authorities
from tests.conftest import System

BEFORE = """
import json, os, sys, zlib
place, token, file = sys.argv[1:4]
query = f"?authz=Bearer%20{token}" if token else ""
host = "//".join(place.split("//")[:2])
data = open(file, "rb").read() if file else b""
"""
FSSPEC = """
import fsspec
for scheme in ("root", "roots"):
    fsspec.register_implementation(scheme, "fsspec_xrootd.XRootDFileSystem", clobber=True)
import uproot
"""


@pytest.fixture(scope="module")
def nano() -> Path:
    return sample("nano_dy.root")


@dataclass
class Place:
    """A root URL, and how a program gets at it: by a token in the URL, or by TLS and a login."""

    url: str
    token: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system that speaks nothing without TLS: uproot's client asks for root:// whatever the URL says."""
    base = tmp_path_factory.mktemp("strict")
    (base / "c.toml").write_text('[listen]\nplain_http = "never"\n')
    system = System(base / "home", "--config", base / "c.toml")
    system.up()
    yield system
    system.down()


@pytest.fixture(scope="module")
def stored(
    shared: Any, strict: System, nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A file of the samples on both systems, and what trusts the certificate of the strict one."""
    for system in (shared, strict):
        system.put("/site/clients/nano_dy.root", nano.read_bytes())
    return authorities(tmp_path_factory.mktemp("cas"), Path(strict.run["ca_file"]))


@pytest.fixture(params=["site", "cache", "site by TLS", "cache by TLS"])
def place(request: Any, shared: Any, strict: System, stored: dict[str, str]) -> Place:
    """The file, stored and cached, over root:// and roots://."""
    name, _, secure = request.param.partition(" by ")
    system = strict if secure else shared
    url = f"{system.run['endpoints'][name]['root']}/clients/nano_dy.root"
    return reached(system, url, stored if secure else None)


def reached(system: Any, url: str, trust: dict[str, str] | None = None) -> Place:
    """A URL with the usual token: in the URL, or with ``trust`` over TLS."""
    if trust is None:
        return Place(url, system.token(), {})
    environment = {**trust, "BEARER_TOKEN": system.token(), "XRD_LOGLEVEL": "Error"}
    return Place(url.replace("root://", "roots://"), "", environment)


def need(module: str, package: str) -> None:
    """Skip where a package is missing; it is not loaded here: its threads would outlive the test."""
    if find_spec(module) is None:
        pytest.skip(f"needs the package {package}")


def run(code: str, place: Place, file: Path | None = None) -> Any:
    """What a program prints as JSON."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("BEARER", "X509", "XRD"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEFORE + code, place.url, place.token, str(file or "")],
        capture_output=True, text=True, timeout=90, check=False, env=kept | place.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pyxrootd_reads_and_describes(shared: Any, place: Place, nano: Path) -> None:
    need("XRootD", "xrootd")
    code = """
from XRootD import client
from XRootD.client.flags import DirListFlags, OpenFlags
file = client.File()
status, _ = file.open(place + query, OpenFlags.READ)
assert status.ok, status
status, stat = file.stat()
assert stat.size == len(data)
status, got = file.read(100, 70_000)
assert status.ok and got == data[100:70_100], status
wanted = [(0, 10), (len(data) - 100, 100), (5, 4096)]
status, vector = file.vector_read(wanted)
assert [c.buffer for c in vector.chunks] == [data[a:a + n] for a, n in wanted], status
status, got = file.read(len(data) - 5, 100)
assert got == data[-5:]
status, got = file.read(len(data) + 5, 100)
assert status.ok and not got
file.close()
system = client.FileSystem(host)
path = "/" + place.split("//")[2] + query
status, stat = system.stat(path)
assert stat.size == len(data)
folder = path.split("?")[0].rpartition("/")[0]
status, found = system.dirlist(folder + query, DirListFlags.STAT)
assert status.ok, status
print(json.dumps({entry.name: entry.statinfo.size for entry in found}))
"""
    assert run(code, place, nano)["nano_dy.root"] == nano.stat().st_size


def test_pyxrootd_writes_and_changes_names(shared: Any) -> None:
    need("XRootD", "xrootd")
    place = reached(shared, f"{shared.run['endpoints']['site']['root']}/clients/written")
    code = """
from XRootD import client
from XRootD.client.flags import MkDirFlags, OpenFlags
system = client.FileSystem(host)
path = "/" + place.split("//")[2]
def must(answer):
    assert answer[0].ok, answer[0]
    return answer[1]
must(system.mkdir(path + "/deep" + query, MkDirFlags.MAKEPATH))
file = client.File()
must(file.open(place + "/deep/a" + query, OpenFlags.NEW))
must(file.write(b"0123456789" * 1000, 0))
must(file.write(b"end", 10_000))
must(file.sync())
must(file.close())
again = client.File()
status, _ = again.open(place + "/deep/a" + query, OpenFlags.NEW)
assert not status.ok and status.errno == 3018, status
must(system.mv(path + "/deep/a" + query, path + "/deep/b" + query))
size = must(system.stat(path + "/deep/b" + query)).size
must(system.rm(path + "/deep/b" + query))
must(system.rmdir(path + "/deep" + query))
status, _ = system.stat(path + "/deep" + query)
print(json.dumps([size, status.errno]))
"""
    assert run(code, place) == [10_003, 3011]


def test_a_cache_refuses_a_write_and_names_its_origin(shared: Any) -> None:
    need("XRootD", "xrootd")
    place = reached(shared, f"{shared.run['endpoints']['cache']['root']}/clients/no")
    code = """
from XRootD import client
from XRootD.client.flags import OpenFlags
status, _ = client.File().open(place + query, OpenFlags.NEW)
print(json.dumps([status.errno, status.message]))
"""
    number, text = run(code, place)
    assert number == 3025, text
    assert "read-only" in text


def test_uproot_reads_columns_over_fsspec_xrootd(shared: Any, place: Place) -> None:
    need("fsspec_xrootd", "fsspec-xrootd")
    code = """
with uproot.open({place + query: "Events"}) as tree:
    print(json.dumps([tree.num_entries, sum(tree["nMuon"].array().tolist())]))
"""
    import uproot

    with uproot.open({str(sample("nano_dy.root")): "Events"}) as tree:
        expected = [tree.num_entries, sum(tree["nMuon"].array().tolist())]
    assert run(FSSPEC + code, place) == expected


def test_coffea_makes_events_of_a_root_url(shared: Any, place: Place) -> None:
    need("fsspec_xrootd", "fsspec-xrootd")
    code = """
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
events = NanoEventsFactory.from_root({place + query: "Events"}, schemaclass=NanoAODSchema).events()
print(json.dumps([len(events), float(sum(sum(pt) for pt in events.Muon.pt.tolist()))]))
"""
    number, total = run(FSSPEC + code, place)
    assert number == 40
    assert total > 0


def test_xrdclient_reads_pages_and_vectors(shared: Any, place: Place, nano: Path) -> None:
    need("xrdclient", "xrdclient")
    code = """
import xrdclient
got = xrdclient.read_bytes(place + query)
assert got == data
assert xrdclient.stat(place + query).size == len(data)
value = xrdclient.checksum(place + query, "adler32")
print(json.dumps(str(value)))
"""
    import zlib

    assert f"{zlib.adler32(nano.read_bytes()):08x}" in run(code, place, nano)


def test_xrdclient_writes(shared: Any) -> None:
    need("xrdclient", "xrdclient")
    place = reached(shared, f"{shared.run['endpoints']['site']['root']}/clients/second")
    code = """
import xrdclient
xrdclient.write_bytes(place + query, b"second client" * 1000)
got = xrdclient.read_bytes(place + query)
xrdclient.remove(place + query)
print(json.dumps([len(got), xrdclient.exists(place + query)]))
"""
    assert run(code, place) == [13_000, False]
