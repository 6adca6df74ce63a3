"""Everybody's programs through a cache whose origin is a real XRootD: by root:// and https, cold and warm."""

import json
import os
import random
import re
import shutil
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from doma.facility.sample import sample
from tests.clients.conftest import DEBIAN_PYTHON, Grid, Said, need
from tests.clients.xrootd_server import XRootD, authorities, missing
from tests.conftest import System

pytestmark = pytest.mark.client

DATA = random.Random(5).randbytes((9 << 20) + 4097)
ADLER = f"{zlib.adler32(DATA):08x}"


@pytest.fixture(scope="module")
def origin(grid: Grid) -> Iterator[XRootD]:
    """An XRootD that serves everybody, over root:// and https on one port."""
    if missing():
        pytest.skip(f"XRootD is not installed (Debian: {missing()})")
    authority = grid.system.home.path / "tls"
    with XRootD({}, authority / "ca.pem", authority / "ca.key") as server:
        server.put("d/nano.root", sample("nano_dy.root").read_bytes())
        yield server


@dataclass
class Cache:
    """A system with caches of that origin: ``/cache`` for who has a token, ``/web`` for all."""

    system: System
    origin: XRootD
    scratch: Path
    environment: dict[str, str]

    @property
    def host(self) -> str:
        return str(self.system.run["https"]).removeprefix("https://")

    @property
    def far(self) -> str:
        return f"127.0.0.1:{self.origin.port}"

    def put(self, name: str, data: bytes = DATA) -> str:
        self.origin.put(f"d/{name}", data)
        return name

    def fetched(self, place: str) -> int:
        """Bytes that came from the origin until now to one of the caches."""
        answer = self.system.ask("GET", "/metrics", token=self.system.admin())
        (line,) = re.findall(
            rf'^doma_cache_origin_bytes_total{{[^}}]*"{place}"}} (.*)$', answer.text, re.MULTILINE
        )
        return int(float(line))

    def run(self, *words: object, token: bool = False, **more: str) -> Said:
        """Run a program; ``token``: one lies where programs look for it."""
        environment = self.environment | more
        if token:
            environment["BEARER_TOKEN_FILE"] = str(self.scratch / "token")
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, errors="replace", timeout=60,
            env=environment, cwd=self.scratch, check=False,
        )  # fmt: skip
        return Said(done.returncode, done.stdout, done.stderr)

    def python(self, code: str, *arguments: object) -> Any:
        """What a program prints as JSON in an interpreter of its own."""
        said = self.run(sys.executable, "-W", "ignore", "-c", code, *arguments)
        assert said.code == 0, said.err[-3000:]
        return json.loads(said.out.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(grid: Grid, origin: XRootD, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cache]:
    base = tmp_path_factory.mktemp("cache")
    far = f"127.0.0.1:{origin.port}"
    (base / "doma.toml").write_text(
        f'[cache]\nallow = ["https://{far}", "root://{far}"]\n'
        f'[endpoints.cache]\nstore = "cache+root://{far}//vo"\n'
        f'[endpoints.web]\nstore = "cache+https://{far}/vo"\npublic = true\n'
    )
    # one authority for both: what a server trusts is the system's authorities and its own
    (base / "home" / "tls").mkdir(parents=True)
    for file in ("ca.pem", "ca.key"):
        shutil.copy(grid.system.home.path / "tls" / file, base / "home" / "tls" / file)
    roles = [word for role in ("issuer", "storage", "cache", "web") for word in ("--role", role)]
    system = System(base / "home", "--config", base / "doma.toml", *roles)
    system.up()
    (base / "scratch").mkdir()
    token = base / "scratch" / "token"
    token.touch(0o600)
    token.write_text(system.token(lifetime=3600))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BEARER", "X509", "XRD"))}
    trust = authorities(base / "cas", Path(grid.ca))
    # no token of the person who runs the tests is found in the usual places
    environment = kept | trust | {"XDG_RUNTIME_DIR": str(base), "GFAL_PYTHONBIN": DEBIAN_PYTHON}
    yield Cache(system, origin, base / "scratch", environment)
    assert system.down() == 0, system.log


def twice(cache: Cache, place: str, name: str, copy: Callable[[Path], Said]) -> Said:
    """A program copies a file cold, then warm: the same bytes, which the origin gives once."""
    before, size = cache.fetched(place), len(DATA)
    for number, cost in ((1, size), (2, 0)):
        target = cache.scratch / f"{name}-{number}"
        said = copy(target)
        assert said.code == 0, said.why
        assert target.read_bytes() == DATA
        assert cache.fetched(place) == before + cost
        before += cost
    return said


XRDCP = {
    "plain": ("root", []),
    "streams": ("root", ["-S", "4"]),
    "checksum": ("root", ["--cksum", f"adler32:{ADLER}"]),
    "checksum of the source": ("root", ["--cksum", "adler32:source"]),
    "token and tls": ("roots", []),
    "token, tls, streams": ("roots", ["-S", "4"]),
}


@pytest.mark.parametrize("how", XRDCP)
def test_xrdcp_copies_over_root(cache: Cache, how: str) -> None:
    need("xrdcp", package="xrootd-client")
    scheme, options = XRDCP[how]
    name = cache.put(f"xrdcp {how}".replace(" ", "-").replace(",", ""))
    place = "cache" if scheme == "roots" else "web"
    url = f"{scheme}://{cache.host}//{place}/d/{name}"
    said = twice(
        cache,
        place,
        name,
        lambda target: cache.run("xrdcp", "-f", "--nopbar", *options, url, target, token=scheme == "roots"),
    )
    if "source" in how:
        assert ADLER in said.all


def test_xrdcp_copies_over_https(cache: Cache) -> None:
    need("xrdcp", package="xrootd-client")
    if not [*Path("/usr").glob("lib*/**/libXrdClHttp-5.so")]:
        pytest.skip("xrdcp has no http plug-in (Debian: xrootd-client-http-plugins)")
    name = cache.put("xrdcp-https")
    url = f"https://{cache.host}/web/d/{name}"
    twice(
        cache,
        "web",
        name,
        lambda target: cache.run("xrdcp", "--allow-http", "--nopbar", "--retry", 0, "-f", url, target),
    )


def test_xrdfs_looks_through_the_cache(cache: Cache) -> None:
    need("xrdfs", package="xrootd-client")
    name, place = cache.put("looked-at"), f"root://{cache.host}"
    assert f"/web/d/{name}" in cache.run("xrdfs", place, "ls", "-l", "/web/d").out
    assert f"Size:   {len(DATA)}" in cache.run("xrdfs", place, "stat", f"/web/d/{name}").out
    said = cache.run("xrdfs", place, "query", "checksum", f"/web/d/{name}?cks.type=adler32")
    assert said.out.split() == ["adler32", ADLER]
    assert "[3011]" in cache.run("xrdfs", place, "stat", "/web/d/none").all
    assert "[3025]" in cache.run("xrdfs", place, "rm", f"/web/d/{name}", token=True).all


def test_a_file_replaced_by_one_of_equal_size_is_seen(cache: Cache) -> None:
    """XRootD's HEAD tells no version; what WebDAV says of it is believed."""
    name = cache.put("replaced", b"one")
    ask = ("GET", f"/web/d/{name}", None)
    assert cache.system.ask(*ask).content == b"one"
    file = cache.origin.put(f"d/{name}", b"two")
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert cache.system.ask(*ask).content == b"one"
    assert cache.system.ask(*ask, headers={"Cache-Control": "no-cache"}).content == b"two"
    assert cache.system.ask(*ask).content == b"two"


def test_davix_and_gfal_copy_and_list(cache: Cache) -> None:
    need("davix-get", package="davix")
    need("gfal-copy", package="gfal2-util-scripts gfal2-plugin-http python3-gfal2-util")
    name, top = cache.put("davix"), f"https://{cache.host}/web/d"
    cas = ("--capath", cache.environment["X509_CERT_DIR"])
    twice(cache, "web", name, lambda target: cache.run("davix-get", *cas, f"{top}/{name}", target))
    assert name in cache.run("davix-ls", *cas, top).out.split()
    name = cache.put("gfal")
    for scheme in ("davs", "https"):
        copy = cache.scratch / f"{scheme}-copy"
        url = f"{scheme}://{cache.host}/web/d/{name}"
        said = cache.run("gfal-copy", "-K", "adler32", url, f"file://{copy}")
        assert said.code == 0, said.why
        assert copy.read_bytes() == DATA


def test_curl_reads_one_and_many_ranges(cache: Cache) -> None:
    need("curl", package="curl")
    name = cache.put("curl")
    url = f"https://{cache.host}/web/d/{name}"
    for _ in range(2):
        for span, status in (("0-0", 206), ("5000000-5000099", 206), ("-7", 206), (f"{len(DATA)}-", 416)):
            said = cache.run("curl", "-sS", "-r", span, "-o", "part", "-w", "%{http_code}", url)
            assert said.out == str(status)
            first, _, last = span.partition("-")
            start = int(first) if first else len(DATA) - int(last)
            end = int(last) + 1 if first and last else len(DATA)
            assert status == 416 or (cache.scratch / "part").read_bytes() == DATA[start:end]
        cache.run("curl", "-sS", "-r", "10-19,5000000-5000099,0-0", "-o", "parts", url)
        whole = (cache.scratch / "parts").read_bytes()
        at = [whole.index(DATA[a:b]) for a, b in ((10, 20), (5_000_000, 5_000_100))]
        assert at == sorted(at)
        assert whole.count(b"Content-Range: bytes ") == 3


def test_the_origin_may_be_named_as_at_an_xcache(cache: Cache) -> None:
    need("xrdcp", "curl", package="xrootd-client curl")
    name = cache.put("named")
    xrdcp = ("xrdcp", "-f", "--nopbar")
    before = cache.fetched("web")
    for number, url in enumerate(
        (
            f"root://{cache.host}//root://{cache.far}//vo/d/{name}",
            f"root://{cache.host}//web/root://{cache.far}//vo/d/{name}",
            f"root://{cache.host}//https://{cache.far}/vo/d/{name}",
        )
    ):
        query = "" if "/web/" in url else f"?authz=Bearer%20{cache.system.token()}"
        said = cache.run(*xrdcp, url + query, cache.scratch / f"named{number}")
        assert said.code == 0, said.why
        assert (cache.scratch / f"named{number}").read_bytes() == DATA
    for number, path in enumerate((f"root://{cache.far}//vo/d/{name}", f"https://{cache.far}/vo/d/{name}")):
        said = cache.run("curl", "-sS", "-f", "-o", f"web{number}", f"https://{cache.host}/web/{path}")
        assert said.code == 0, said.why
        assert (cache.scratch / f"web{number}").read_bytes() == DATA
    assert cache.fetched("web") - before <= 2 * len(DATA)  # by root:// and https: each once
    said = cache.run(*xrdcp, f"root://{cache.host}//web/root://127.0.0.1:1//f", cache.scratch / "refused")
    assert "cache.allow" in said.all


PYTHON = """
import json, sys
host, far = sys.argv[1:3]
from XRootD import client
from XRootD.client.flags import OpenFlags
found = []
for path in ("/web/d/nano.root", f"/web/root://{far}//vo/d/nano.root"):
    file = client.File()
    status, _ = file.open(f"root://{host}/{path}", OpenFlags.READ)
    assert status.ok, status
    size = file.stat()[1].size
    whole = file.read(0, size)[1]
    spans = [(0, 10), (size - 100, 100), (5, 4096)]
    status, vector = file.vector_read(spans)
    assert [c.buffer for c in vector.chunks] == [whole[a:a + n] for a, n in spans], status
    found.append(len(whole))
    file.close()
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
import fsspec
fsspec.register_implementation("root", "fsspec_xrootd.XRootDFileSystem", clobber=True)
for url in (f"root://{host}//web/d/nano.root", f"https://{host}/web/d/nano.root"):
    with uproot.open({url: "Events"}) as tree:
        found.append(sum(tree["nMuon"].array().tolist()))
    events = NanoEventsFactory.from_root({url: "Events"}, schemaclass=NanoAODSchema).events()
    found.append(len(events.Muon.pt))
print(json.dumps(found))
"""


def test_the_python_clients_read_through_the_cache(cache: Cache) -> None:
    for module, package in (("XRootD", "xrootd"), ("fsspec_xrootd", "fsspec-xrootd"), ("coffea", "coffea")):
        if find_spec(module) is None:
            pytest.skip(f"needs the package {package}")
    import uproot

    file = sample("nano_dy.root")
    with uproot.open({str(file): "Events"}) as tree:
        muons, events = sum(tree["nMuon"].array().tolist()), tree.num_entries
    size = file.stat().st_size
    assert cache.python(PYTHON, cache.host, cache.far) == [size, size, muons, events, muons, events]


class Director(BaseHTTPRequestHandler):
    """A federation of one cache: tells who directs, and sends every reader to that cache."""

    protocol_version = "HTTP/1.1"
    host = ""
    closed = False

    def do_GET(self) -> None:
        if self.path == "/.well-known/pelican-configuration":
            place = f"https://{self.headers['Host']}"
            body = json.dumps({"director_endpoint": place, "namespace_registration_endpoint": place}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
        else:
            body, space = b"", "/" + self.path.split("/")[1]
            self.send_response(307)
            self.send_header("Location", f"https://{self.host}{self.path}")
            self.send_header("Link", f'<https://{self.host}{self.path}>; rel="duplicate"; pri=1; depth=1')
            needed = str(space == "/cache").lower()
            self.send_header(
                "X-Pelican-Namespace",
                f"namespace={space}, require-token={needed}, collections-url=https://{self.host}",
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PROPFIND = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def federation(cache: Cache) -> Iterator[str]:
    """Host and port of the director of a federation with this one cache."""
    folder = cache.system.home.path / "tls"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*(str(path) for path in pair(folder)))
    kind = type("Here", (Director,), {"host": cache.host})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join(5)


def pair(folder: Path) -> tuple[Path, Path]:
    from doma.net import tls

    made = tls.ensure(folder)
    return made.certificate, made.key


PELICAN = """
import json, sys
federation, token, far = sys.argv[1:4]
from pelicanfs.core import PelicanFileSystem
fs = PelicanFileSystem(f"pelican://{federation}")
found = [fs.info("/web/d/nano.root")["size"]]
whole = fs.cat_file("/web/d/nano.root")
found.append(len(whole))
assert fs.cat_file("/web/d/nano.root", start=5, end=5000) == whole[5:5000]
assert fs.cat_ranges(["/web/d/nano.root"] * 3, [0, 70, 9000], [10, 80, 9999]) == [
    whole[0:10], whole[70:80], whole[9000:9999]]
with fs.open("/web/d/nano.root", "rb") as file:
    file.seek(-100, 2)
    assert file.read() == whole[-100:]
assert any(entry["name"].endswith("/web/d/nano.root") for entry in fs.ls("/web/d")), fs.ls("/web/d")
try:
    fs.cat_file("/web/d/none")
except FileNotFoundError:
    found.append("none")
own = PelicanFileSystem(f"pelican://{federation}", headers={"Authorization": f"Bearer {token}"})
assert own.cat_file("/cache/d/nano.root") == whole
import uproot
with fs.open("/web/d/nano.root", "rb") as file, uproot.open(file) as opened:  # its URLs know no port
    found.append(opened["Events"].num_entries)
print(json.dumps(found))
"""


def test_pelicanfs_reads_through_a_federation_of_this_cache(cache: Cache, federation: str) -> None:
    if find_spec("pelicanfs") is None:
        pytest.skip("needs the package pelicanfs")
    size = sample("nano_dy.root").stat().st_size
    said = cache.python(PELICAN, federation, cache.system.token(), cache.far)
    assert said == [size, size, "none", 40]
