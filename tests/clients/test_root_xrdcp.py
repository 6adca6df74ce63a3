"""XRootD's own programs over root:// and roots:// (Debian: xrootd-client)."""

import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import Said, need
from tests.conftest import System

pytestmark = pytest.mark.client

DATA = os.urandom((20 << 20) + 4097)
SIZES = [0, 1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    need("xrdcp", "xrdfs", package="xrootd-client")
    base = tmp_path_factory.mktemp("root")
    for name in ("open", "closed"):
        (base / name / "d é#").mkdir(parents=True)
        (base / name / "f").write_bytes(DATA)
        (base / name / "d é#" / "a b%41").write_bytes(b"named")
        for size in SIZES:
            (base / name / f"s{size}").write_bytes(DATA[:size])
    (base / "doma.toml").write_text(
        f'[endpoints.open]\nstore = "file://{base}/open"\npublic = true\n'
        f'[endpoints.closed]\nstore = "file://{base}/closed"\n'
    )
    system = System(base / "home", "--config", base / "doma.toml", "--role", "issuer", "--role", "storage")
    system.up()
    yield system
    assert system.down() == 0, system.log


Run = Callable[..., Said]


@pytest.fixture
def run(site: System, tmp_path: Path) -> Run:
    """Runs a program with the site's CA and, if one is given, a token as it finds it on a machine."""

    def one(*words: object, token: str = "") -> Said:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BEARER", "XRD_"))}
        # no token of the person who runs the tests is found in the usual places
        environment = kept | {"X509_CERT_DIR": str(hashed(site)), "XDG_RUNTIME_DIR": str(tmp_path)}
        if token:
            file = tmp_path / "token"
            file.touch(0o600)
            file.write_text(token)
            environment["BEARER_TOKEN_FILE"] = str(file)
        command = [str(word) for word in words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return one


def hashed(site: System) -> Path:
    """The site's CA in a folder as OpenSSL looks for it."""
    folder = site.home.path / "hashed"
    if not folder.exists():
        folder.mkdir()
        ca = site.run["ca_file"]
        name = subprocess.run(
            ["openssl", "x509", "-in", ca, "-noout", "-hash"], capture_output=True, text=True, check=True
        ).stdout.strip()
        (folder / f"{name}.0").write_bytes(Path(ca).read_bytes())
    return folder


def server(site: System, scheme: str = "root") -> str:
    place: str = site.run["endpoints"]["open"]["root"].split("/")[2]
    return f"{scheme}://{place}"


@pytest.mark.parametrize("scheme", ["root", "roots"])
@pytest.mark.parametrize(
    "how", [(), ("-S", "4"), ("--cksum", "adler32:source"), ("--cksum", "md5:source")], ids=str
)
def test_a_copy_is_the_file(site, run, tmp_path, scheme, how):
    said = run("xrdcp", "-f", "--nopbar", *how, f"{server(site, scheme)}//open/f", tmp_path / "copy")
    assert said.code == 0, said.why
    assert (tmp_path / "copy").read_bytes() == DATA
    if "adler32:source" in how:
        # xrdcp writes the number without zeros before it
        assert f"{zlib.adler32(DATA):x}" in said.all


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_copied_whole(site, run, tmp_path, size):
    said = run("xrdcp", "-f", "--nopbar", f"{server(site)}//open/s{size}", tmp_path / "copy")
    assert said.code == 0, said.why
    assert (tmp_path / "copy").read_bytes() == DATA[:size]


def test_a_tree_is_copied_with_its_names(site, run, tmp_path):
    (tmp_path / "tree").mkdir()
    said = run("xrdcp", "-r", "--nopbar", f"{server(site)}//open/d é#", tmp_path / "tree")
    assert said.code == 0, said.why
    assert [path.read_bytes() for path in tmp_path.rglob("a b%41")] == [b"named"]


def test_the_token_of_the_machine_opens_what_is_closed(site, run, tmp_path):
    place = f"{server(site, 'roots')}//closed/f"
    said = run("xrdcp", "-f", "--nopbar", place, tmp_path / "copy", token=site.token("storage.read:/"))
    assert said.code == 0, said.why
    assert (tmp_path / "copy").read_bytes() == DATA
    for how in ({}, {"token": site.token("storage.read:/elsewhere")}):
        said = run("xrdcp", "-f", "--nopbar", place, tmp_path / "other", **how)
        assert said.code != 0
        assert "/closed/f" in said.all
        assert not (tmp_path / "other").exists() or not (tmp_path / "other").stat().st_size


def test_a_token_that_is_none_is_no_login(site, run, tmp_path):
    said = run(
        "xrdcp", "-f", "--nopbar", f"{server(site, 'roots')}//closed/f", tmp_path / "x", token="no.token.it"
    )
    assert said.code != 0


def test_a_token_in_the_url_does_without_tls(site, run, tmp_path):
    url = f"{server(site)}//closed/f?authz=Bearer%20{site.token('storage.read:/')}"
    said = run("xrdcp", "-f", "--nopbar", url, tmp_path / "copy")
    assert said.code == 0, said.why
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_file_goes_up_and_comes_back(site, run, tmp_path):
    (tmp_path / "here").write_bytes(DATA)
    place, token = f"{server(site, 'roots')}//closed/new/up", site.token()
    said = run("xrdcp", "-f", "--nopbar", tmp_path / "here", place, token=token)
    assert said.code == 0, said.why
    assert run("xrdcp", "-f", "--nopbar", place, tmp_path / "back", token=token).code == 0
    assert (tmp_path / "back").read_bytes() == DATA


def test_xrdfs_looks_and_reads(site, run):
    place = server(site)
    assert f"Size:   {len(DATA)}" in run("xrdfs", place, "stat", "/open/f").out
    assert "/open/d é#" in run("xrdfs", place, "ls", "-l", "/open").out
    assert run("xrdfs", place, "cat", "/open/d é#/a b%41").out == "named"
    assert run("xrdfs", place, "query", "config", "readv_iov_max").out.strip() == "1024"
    assert "[3011]" in run("xrdfs", place, "stat", "/open/none").all
    assert run("xrdfs", place, "locate", "/open/f").out.split()[0].endswith(place.rpartition(":")[2])


def test_no_token_is_in_the_log(site, run, tmp_path):
    token = site.token(subject="logged")
    run("xrdcp", "-f", f"{server(site, 'roots')}//closed/f", tmp_path / "x", token=token)
    run("xrdcp", "-f", f"{server(site)}//closed/none?authz=Bearer%20{token}", tmp_path / "x")
    assert token.rpartition(".")[2] not in site.log
