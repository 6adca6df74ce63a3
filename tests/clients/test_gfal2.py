"""gfal2's command line and Python module: what users, Rucio and FTS do with one storage element."""

import json
import os
import subprocess
import zlib

import pytest

from tests.clients.conftest import DEBIAN_PYTHON, Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(3 << 20)
ADLER = f"{zlib.adler32(DATA):08x}"


@pytest.fixture
def gfal(spot: Spot):
    """Runs ``gfal-<verb>`` as a user who holds a token."""
    need("gfal-copy", package="gfal2-util-scripts gfal2-plugin-http gfal2-plugin-file python3-gfal2-util")

    def run(verb: str, *arguments: object, token: str = "") -> Said:
        return spot.grid.run(f"gfal-{verb}", *arguments, token=token, env={"GFAL_PYTHONBIN": DEBIAN_PYTHON})

    return run


def test_copy_up_and_down_with_checksum_verified(spot, gfal):
    """``-K``: gfal2 compares the digests of both sides with each other."""
    said = gfal("copy", "-K", "adler32", "-p", spot.file("a", DATA), spot.ours("x/y/a"))
    assert said.code == 0, said.err
    said = gfal("copy", "-K", "adler32", spot.ours("x/y/a"), f"file://{spot.local}/back")
    assert said.code == 0, said.err
    assert (spot.local / "back").read_bytes() == DATA


def test_a_given_checksum_is_compared(spot, gfal):
    said = gfal("copy", "-K", f"adler32:{ADLER}", spot.file("a", DATA), spot.ours("a"))
    assert said.code == 0, said.err
    said = gfal("copy", "-K", "adler32:00000bad", spot.file("a", DATA), spot.ours("b"))
    assert said.code != 0
    assert "checksum" in said.all.lower() or "do not match" in said.all, said.all
    assert spot.get("b") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("ADLER32", ADLER), ("MD5", None), ("CRC32C", None)],
    ids=["adler32", "md5", "crc32c"],
)
def test_sum_prints_the_digest(spot, gfal, name, value):
    url = spot.put("a", DATA)
    said = gfal("sum", url, name)
    assert said.code == 0, said.err
    digest = said.out.split()[-1]
    if name == "MD5":
        import hashlib

        value = hashlib.md5(DATA).hexdigest()
    if value is not None:
        assert digest == value
    else:
        assert len(digest) == 8


def test_stat_and_ls_agree_with_what_is_there(spot, gfal):
    spot.put("a", DATA)
    spot.put("sub/b", b"")
    said = gfal("stat", spot.ours("a"))
    assert f"Size: {len(DATA)}" in said.out, said.all
    assert "regular file" in said.out
    assert "directory" in gfal("stat", spot.ours("sub")).out
    rows = {row.split()[-1]: row.split() for row in gfal("ls", "-l", spot.ours()).out.splitlines()}
    assert set(rows) == {"a", "sub"}
    assert rows["a"][0] == "-rw-r--r--"
    assert rows["a"][4] == str(len(DATA))
    assert rows["sub"][0] == "drwxr-xr-x"


def test_mkdir_rename_and_rm_change_the_name_space(spot, gfal):
    assert gfal("mkdir", "-p", spot.ours("one/two/three")).code == 0
    spot.put("one/a", DATA)
    assert gfal("rename", spot.ours("one/a"), spot.ours("one/two/b")).code == 0
    assert spot.get("one/a") is None
    assert spot.get("one/two/b") == DATA
    assert gfal("rm", spot.ours("one/two/b")).code == 0
    assert spot.get("one/two/b") is None
    said = gfal("rm", "-r", spot.ours("one"))
    assert said.code == 0, said.err
    assert gfal("stat", spot.ours("one")).code == 2


def test_cat_and_save_move_small_things(spot, gfal):
    spot.put("a", b"some text")
    assert gfal("cat", spot.ours("a")).out == "some text"


def test_an_existing_destination_is_kept_without_force(spot, gfal):
    spot.put("a", b"before")
    said = gfal("copy", spot.file("a", DATA), spot.ours("a"))
    assert said.code == 17
    assert "exists" in said.all
    assert spot.get("a") == b"before"
    assert gfal("copy", "-f", spot.file("a", DATA), spot.ours("a")).code == 0
    assert spot.get("a") == DATA


def test_failures_have_the_errno_that_scripts_look_at(spot, gfal):
    spot.put("a", b"x")
    missing = gfal("stat", spot.ours("nothing"))
    assert missing.code == 2
    assert "File not found" in missing.all or "No such file" in missing.all
    weak = spot.grid.system.token("storage.read:/elsewhere")
    refused = gfal("cat", spot.ours("a"), token=weak)
    assert refused.code in {1, 13}, refused.all
    assert "storage.read" in refused.all or "denied" in refused.all.lower() or "403" in refused.all, (
        refused.all
    )
    forged = gfal("cat", spot.ours("a"), token="not.a.token")
    assert forged.code != 0
    assert "Traceback" not in refused.all + forged.all


SCRIPT = """
import gfal2, json, sys
job = json.load(sys.stdin)
context = gfal2.creat_context()
said = {}

def attempt(name, call):
    try:
        said[name] = call()
    except gfal2.GError as e:
        said[name] = {"errno": e.code, "text": e.message}

url = job["url"]
context.mkdir_rec(url + "/deep/er", 0o755)
file = context.open(url + "/deep/a", "w")
file.write("0123456789" * 100)
del file
attempt("size", lambda: context.stat(url + "/deep/a").st_size)
attempt("list", lambda: sorted(context.listdir(url + "/deep")))
attempt("sum", lambda: context.checksum(url + "/deep/a", "ADLER32"))
read = context.open(url + "/deep/a", "r")
attempt("read", lambda: read.read(15))
attempt("pread", lambda: read.pread(995, 20))
del read
context.rename(url + "/deep/a", url + "/deep/b")
context.unlink(url + "/deep/b")
attempt("again", lambda: context.unlink(url + "/deep/b"))
context.rmdir(url + "/deep/er")
attempt("gone", lambda: context.stat(url + "/deep/er"))
print(json.dumps(said))
"""


def test_the_python_module_does_the_same(spot, gfal):
    done = subprocess.run(
        [DEBIAN_PYTHON, "-c", SCRIPT], input=json.dumps({"url": spot.ours()}), capture_output=True, text=True,
        env=spot.grid.environment(), timeout=60, check=False,
    )  # fmt: skip
    if "No module named 'gfal2'" in done.stderr:
        pytest.skip("the gfal2 module is not installed (Debian: python3-gfal2)")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["size"] == 1000
    assert said["list"] == ["a", "er"]
    assert said["sum"] == f"{zlib.adler32(b'0123456789' * 100):08x}"
    assert said["read"] == "012345678901234"
    assert said["pread"] == "56789"
    assert said["again"]["errno"] == 2
    assert said["gone"]["errno"] == 2
