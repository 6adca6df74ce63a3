"""gfal2 over root:// (Debian: gfal2-plugin-xrootd): what users, Rucio and FTS do without HTTP."""

import os
import zlib
from pathlib import Path

import pytest

from tests.clients.conftest import DEBIAN_PYTHON, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(9 << 20)
ADLER = f"{zlib.adler32(DATA):08x}"


@pytest.fixture
def gfal(spot: Spot):
    """Runs ``gfal-<verb>`` as a user who holds a token."""
    need("gfal-copy", package="gfal2-util-scripts gfal2-plugin-xrootd python3-gfal2-util")
    if not [*Path("/usr").glob("lib*/**/libgfal_plugin_xrootd.so")]:
        pytest.skip("gfal2 has no root:// plug-in (Debian: gfal2-plugin-xrootd)")

    def run(verb, *arguments, token=""):
        return spot.grid.run(f"gfal-{verb}", *arguments, token=token, env={"GFAL_PYTHONBIN": DEBIAN_PYTHON})

    return run


@pytest.fixture
def url(spot: Spot):
    """The root:// URL of a name of this test's."""
    top = "roots://" + spot.grid.ours.partition("://")[2].replace("/site", f"//site/{spot.name}", 1)
    return lambda path="": f"{top}/{path}".rstrip("/")


def test_copy_up_and_down_with_checksum_verified(spot, gfal, url):
    said = gfal("copy", "-K", "adler32", "-p", spot.file("a", DATA), url("x/y/a"))
    assert said.code == 0, said.why
    assert spot.get("x/y/a") == DATA
    said = gfal("copy", "-K", "adler32", url("x/y/a"), f"file://{spot.local}/back")
    assert said.code == 0, said.why
    assert (spot.local / "back").read_bytes() == DATA
    assert gfal("sum", url("x/y/a"), "ADLER32").out.split()[-1] == ADLER


def test_a_file_that_exists_is_replaced_with_force_only(spot, gfal, url):
    spot.put("a", b"before")
    assert gfal("copy", spot.file("a", DATA), url("a")).code != 0
    assert spot.get("a") == b"before"
    assert gfal("copy", "-f", spot.local / "a", url("a")).code == 0
    assert spot.get("a") == DATA


def test_names_are_made_listed_moved_and_removed(spot, gfal, url):
    assert gfal("mkdir", "-p", url("one/two")).code == 0
    spot.put("one/file", b"12345")
    rows = {row.split()[-1]: row.split() for row in gfal("ls", "-l", url("one")).out.splitlines()}
    assert (rows["file"][4], rows["two"][0][0]) == ("5", "d")
    assert gfal("rename", url("one/file"), url("one/two/moved")).code == 0
    assert "directory" in gfal("stat", url("one/two")).out
    assert gfal("rm", "-r", url("one")).code == 0
    assert gfal("stat", url("one")).code == 2


def test_what_is_missing_or_refused_is_told(spot, gfal, url):
    assert "No such file" in gfal("cat", url("none")).all
    spot.put("a", b"kept")
    reader = spot.grid.system.token("storage.read:/")
    assert gfal("rm", url("a"), token=reader).code != 0
    assert gfal("copy", "-f", spot.file("a", DATA), url("a"), token=reader).code != 0
    assert spot.get("a") == b"kept"
