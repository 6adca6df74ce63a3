"""XRootD's own xrdcp and xrdfs write and manage files at the root door (Debian: xrootd-client)."""

import json
import os
import subprocess
import time
import zlib
from collections.abc import Callable
from hashlib import md5

import pytest

from tests.clients.conftest import Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(20 << 20)


class Tools:
    """The two programs, at our door, with a token, over TLS."""

    def __init__(self, spot: Spot) -> None:
        self.spot = spot
        self.host = "roots://" + spot.grid.ours.partition("://")[2].partition("/")[0]

    def url(self, path: str = "") -> str:
        return f"{self.host}/{self.path(path)}"

    def path(self, path: str = "") -> str:
        return f"/site/{self.spot.name}/{path}".rstrip("/")

    def cp(self, *words: object, token: str = "", env: dict[str, str] | None = None) -> Said:
        return self.spot.grid.run("xrdcp", "--nopbar", *words, token=token, env=env)

    def fs(self, *words: object, token: str = "") -> Said:
        return self.spot.grid.run("xrdfs", self.host, *words, token=token)

    def good(self, *words: object) -> str:
        said = self.fs(*words)
        assert said.code == 0, (words, said.why)
        return said.out


@pytest.fixture
def tools(spot: Spot) -> Tools:
    need("xrdcp", "xrdfs", package="xrootd-client")
    return Tools(spot)


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, (2 << 20) + 1, len(DATA)])
def test_uploads_of_any_size_arrive_whole(tools, size):
    said = tools.cp(tools.spot.file("a", DATA[:size]), tools.url("new/dir/a"))
    assert said.code == 0, said.why
    assert tools.spot.get("new/dir/a") == DATA[:size]


@pytest.mark.parametrize(
    "options", [["-S", 4], ["--posc"], ["--cksum", "adler32:source"], ["--cksum", "md5:print"]]
)
def test_uploads_by_every_option(tools, options):
    said = tools.cp(*options, tools.spot.file("a", DATA), tools.url("a"))
    assert said.code == 0, said.why
    assert tools.spot.get("a") == DATA
    if "adler32:source" in options:  # the client prints no zeros in front
        assert f"adler32: {zlib.adler32(DATA):x} " in said.all
    if "md5:print" in options:
        assert md5(DATA, usedforsecurity=False).hexdigest() in said.all


def test_a_stream_of_unknown_length_is_taken(tools):
    command = f"head -c 9000000 /dev/zero | xrdcp --nopbar - {tools.url('zeros')}"
    said = tools.spot.grid.run("sh", "-c", command)
    assert said.code == 0, said.why
    assert tools.spot.get("zeros") == bytes(9_000_000)


def test_a_file_is_replaced_with_force_only(tools):
    tools.spot.put("a", b"before")
    said = tools.cp(tools.spot.file("a", b"after"), tools.url("a"))
    assert said.code != 0
    assert "exists" in said.all
    assert tools.spot.get("a") == b"before"
    assert tools.cp("-f", tools.spot.local / "a", tools.url("a")).code == 0
    assert tools.spot.get("a") == b"after"


def test_a_folder_goes_up_with_everything_in_it(tools):
    tree = tools.spot.local / "tree"
    (tree / "x" / "y").mkdir(parents=True)
    files = {"empty": b"", "x/a b%c#é": b"1", "x/y/deep": DATA[:100_000]}
    for name, data in files.items():
        (tree / name).write_bytes(data)
    tools.good("mkdir", tools.path())
    said = tools.cp("-r", tree, tools.url())
    assert said.code == 0, said.why
    listed = tools.good("ls", "-R", tools.path()).split("\n")
    assert sorted(line for line in listed if line) == sorted(
        tools.path(f"tree/{name}".rstrip("/")) for name in ("", "x", "x/y", *files)
    )
    for name, data in files.items():
        back = tools.spot.local / "back"
        assert tools.cp("-f", f"{tools.url()}/tree/{name}", back).code == 0
        assert back.read_bytes() == data


def test_an_upload_that_is_killed_leaves_nothing(tools):
    tools.spot.put("there", b"before")
    grid = tools.spot.grid
    for name in ("there", "new"):
        writer = subprocess.Popen(
            ["xrdcp", "--nopbar", "-f", "-", tools.url(name)], stdin=subprocess.PIPE, env=grid.environment()
        )
        assert writer.stdin is not None
        writer.stdin.write(DATA)
        writer.stdin.flush()
        hidden = grid.system.home / "site" / ".doma" / "new"
        assert _soon(lambda place=hidden: any(place.iterdir()))
        writer.kill()
        writer.wait()
        writer.stdin.close()
        assert _soon(lambda place=hidden: not any(place.iterdir()))
    assert tools.spot.get("there") == b"before"
    assert tools.spot.get("new") is None


def test_a_refusal_names_the_cause_and_changes_nothing(tools):
    file = tools.spot.file("a", DATA)
    reader = tools.spot.grid.system.token("storage.read:/")
    said = tools.cp(file, tools.url("a"), token=reader)
    assert said.code != 0
    assert "3010" in said.all
    assert "storage.create" in said.all
    assert reader not in said.all
    cache = tools.cp(file, f"{tools.host}//cache/{tools.spot.name}/a")
    assert cache.code != 0
    assert "3025" in cache.all
    assert "write to the origin" in cache.all
    assert tools.spot.get("a") is None


def test_directories_are_made_listed_and_removed(tools):
    assert "3032" in tools.fs("mkdir", tools.path("a/b")).all
    tools.good("mkdir", "-p", tools.path("a/b/c"))
    assert "3018" in tools.fs("mkdir", tools.path("a")).all
    tools.spot.put("a/file", b"12345")
    lines = tools.good("ls", "-l", tools.path("a")).strip().split("\n")
    assert [line.split()[0] for line in lines] == ["drwxr-xr-x", "-rw-r--r--"]
    assert " 5 " in lines[1]
    assert "3018" in tools.fs("rmdir", tools.path("a")).all
    assert "3016" in tools.fs("rm", tools.path("a/b")).all
    tools.good("rm", tools.path("a/file"))
    tools.good("rmdir", tools.path("a/b/c"))
    assert tools.good("ls", tools.path("a/b")).strip() == ""
    assert "3011" in tools.fs("rm", tools.path("a/file")).all


def test_files_are_moved_described_cut_and_marked(tools):
    tools.spot.put("a", DATA[:1000])
    tools.good("mv", tools.path("a"), tools.path("b c"))
    told = tools.good("stat", tools.path("b c"))
    assert "Size:   1000" in told
    assert "IsReadable|IsWritable" in told
    tools.good("truncate", tools.path("b c"), 10)
    assert tools.spot.get("b%20c") == DATA[:10]
    tools.good("chmod", tools.path("b c"), "rwxr-x---")
    assert tools.fs("stat", "-q", "IsDir", tools.path("b c")).code != 0
    assert tools.fs("stat", tools.path("a")).code != 0


def test_the_server_answers_for_itself(tools):
    tools.spot.put("a", DATA[:1000])
    assert tools.good("query", "checksum", tools.path("a")).split() == [
        "adler32", f"{zlib.adler32(DATA[:1000]):08x}"
    ]  # fmt: skip
    assert tools.good("query", "checksum", tools.path("a") + "?cks.type=crc32c").startswith("crc32c ")
    told = tools.good("query", "config", "readv_iov_max", "readv_ior_max", "tpc", "nonsense")
    assert told.split() == ["1024", "2097136", "tpc", "nonsense"]
    assert "oss.free=" in tools.good("query", "space", "/site")
    assert "Nodes with RW space:                1" in tools.good("statvfs", "/site")
    assert "Server ReadWrite" in tools.good("locate", tools.path("a"))
    assert "oss.type=f" in tools.good("query", "xattr", tools.path("a"))
    assert tools.good("ls", "/").split() == ["/cache", "/site"]


def test_a_file_is_prestaged_into_the_cache_and_said_to_be_held(tools):
    tools.spot.put("a", DATA[:3_000_000])
    there = f"/cache/{tools.spot.name}/a"
    assert "Flags:  16 (IsReadable)" in tools.good("stat", there)
    tools.good("prepare", "-s", there)
    assert _soon(lambda: "Flags:  528" in tools.good("stat", there))
    (told,) = json.loads(tools.good("query", "prepare", "id", there).strip("\0\n"))["responses"]
    assert (told["path"], told["online"], told["error_text"]) == (there, True, "")


def test_files_on_disk_are_staged_at_once_under_an_id(tools):
    tools.spot.put("a", b"1")
    assert "3010" in tools.fs("prepare", "-s", tools.path("a")).all
    stager = tools.spot.grid.system.token("storage.stage:/ storage.read:/")
    ident = tools.fs("prepare", "-s", tools.path("a"), token=stager).out.strip("\0\n")
    said = tools.fs("query", "prepare", ident, tools.path("a"), token=stager)
    assert said.code == 0, said.why
    (told,) = json.loads(said.out.strip("\0\n"))["responses"]
    assert (told["has_reqid"], told["online"]) == (True, True)
    assert tools.fs("prepare", "-e", tools.path("a"), token=stager).code == 0
    assert tools.fs("prepare", "-a", ident, token=stager).code == 0


def _soon(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.1)
    return False
