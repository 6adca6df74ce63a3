"""A real Rucio server (PyPI: rucio) over our endpoint: upload, download, columns of a dataset, deletion."""

import json
import os
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from tests.clients.conftest import need
from tests.clients.rucio_server import PASSWORD
from tests.clients.xrootd_server import authorities
from tests.conftest import Said, System, doma

pytestmark = pytest.mark.client

HERE, REPO = Path(__file__).parent, Path(__file__).parents[2]
PYTHON = Path(os.environ.get("DOMA_RUCIO_PYTHON", REPO / ".venv/rucio/bin/python"))
GFAL = next(Path("/usr/lib/python3/dist-packages").glob("gfal2*.so"), None)
SAMPLE = REPO / "tests/data/uproot-Zmumu.root"
NAMES = ("a.root", "b.root", "c.root")
SCOPE = "test"

CONFIG = """
[tpc]
allow = ["loopback"]
[datasets]
rucio = "{url}"
rucio_user = "root"
rucio_account = "root"
rucio_password = "{password}"
"""


@dataclass
class Site:
    """Our system, the environment of Rucio's programs, and what they said of one session."""

    system: System
    folder: Path
    environment: dict[str, str]
    said: dict[str, Any]

    def ask(self, verb: str) -> dict[str, Any]:
        """Have Rucio's own code do something."""
        place = urlsplit(str(self.system.run["https"]))
        job = {"host": place.hostname, "port": place.port, "prefix": "/site/rucio/",
               "folder": str(self.folder), "scope": SCOPE, "names": NAMES}  # fmt: skip
        done = subprocess.run(
            [PYTHON, HERE / "rucio_user.py", verb], input=json.dumps(job), capture_output=True, text=True,
            timeout=180, env=self.environment, cwd=self.folder, check=False,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
        assert lines, done.stderr[-3000:]
        said: dict[str, Any] = json.loads(lines[0].removeprefix("SAID "))
        return said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Rucio over our endpoint, with a dataset in it."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing (PyPI: rucio; `make clients` makes it)")
    if GFAL is None:
        pytest.skip("gfal2 is not installed (Debian: python3-gfal2 gfal2-plugin-http)")
    need("openssl", package="openssl")
    folder = tmp_path_factory.mktemp("rucio-server")
    (folder / "gfal").mkdir()
    (folder / "gfal" / GFAL.name).symlink_to(GFAL)  # of Debian's packages for Python this one only
    for name in NAMES:
        (folder / name).write_bytes(SAMPLE.read_bytes())
    program = subprocess.Popen(
        [PYTHON, HERE / "rucio_server.py", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        word, _, url = program.stdout.readline().strip().partition(" ")
        assert word == "READY"
        (folder / "doma.toml").write_text(CONFIG.format(url=url, password=PASSWORD))
        system = System(folder / "home", "--config", folder / "doma.toml")
        system.up()
        try:
            trust = authorities(folder / "cas", folder / "home" / "tls" / "ca.pem")
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("BEARER", "X509", "RUCIO"))}
            kept |= trust | {"BEARER_TOKEN": system.token(lifetime=3600), "PYTHONPATH": str(folder / "gfal")}
            one = Site(system, folder, kept | {"RUCIO_CONFIG": str(folder / "rucio.cfg")}, {})
            one.said = one.ask("use")
            yield one
        finally:
            system.down()
    finally:
        program.stdin.close()
        program.wait(20)
        program.stdout.close()


def test_a_dataset_is_uploaded_found_and_downloaded(site: Site) -> None:
    data = SAMPLE.read_bytes()
    assert site.said["upload"] == 0
    assert site.said["upload again"] == "NoFilesUploaded"
    assert sorted(site.said["replicas"]) == list(NAMES)
    for urls, size, adler in site.said["replicas"].values():
        assert (len(urls), size, adler) == (1, len(data), f"{zlib.adler32(data):08x}")
        path = urlsplit(urls[0]).path
        assert path.startswith("/site/rucio/test/")
        assert site.system.ask("GET", path).content == data
    assert site.said["download"] == [[f"{SCOPE}:{name}", "DONE"] for name in NAMES]
    assert all((site.folder / "back" / name).read_bytes() == data for name in NAMES)


def deliver(site: Site, did: str, out: Path) -> Said:
    query, home = "Select(EventDataset('bogus'), lambda e: {'pt1': e.pt1})", site.system.home.path
    return doma("columns", "deliver", query, "--did", f"rucio://{SCOPE}:{did}", "--home", home, "--out", out)


@pytest.mark.parametrize("did", ["all", "every", "b.root"])
def test_columns_of_a_dataset_of_a_container_and_of_a_file_are_delivered(
    site: Site, tmp_path: Path, did: str
) -> None:
    said = deliver(site, did, tmp_path)
    assert said.code == 0, said.err
    files = said.out.split()
    assert len(files) == (1 if did == "b.root" else 3)
    assert sum(pq.read_table(file).num_rows for file in files) == 2304 * len(files)


def test_a_dataset_that_is_not_there_says_so(site: Site, tmp_path: Path) -> None:
    said = deliver(site, "nothing", tmp_path)
    assert said.code != 0
    assert f"{SCOPE}:nothing: Rucio knows no such dataset" in said.err
    assert "Traceback" not in said.err


def test_what_no_rule_holds_is_deleted_by_rucios_daemons(site: Site) -> None:
    paths = [urlsplit(urls[0]).path for urls, _, _ in site.said["replicas"].values()]
    assert site.ask("remove") == {"left": []}
    assert [site.system.ask("GET", path).status_code for path in paths] == [404] * len(paths)
