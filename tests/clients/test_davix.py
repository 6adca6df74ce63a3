"""davix's own programs (Debian: davix) do with our endpoint what they do with any other."""

import os
import re

import pytest

from tests.clients.conftest import Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(3 << 20)


@pytest.fixture
def davix(spot: Spot):
    """Runs ``davix-<verb>`` with a token, trusting the CA of the two servers."""
    need("davix-get", package="davix")

    def run(verb: str, *arguments: object, token: str = "", header: tuple[str, ...] = ()) -> Said:
        grid = spot.grid
        more = [word for line in (grid.bearer(token), *header) for word in ("-H", line)]
        cas = grid.trust["X509_CERT_DIR"]
        return grid.run(f"davix-{verb}", "--capath", cas, "--retry", 1, *more, *arguments, token=None)

    return run


def test_put_and_get_return_every_byte(spot, davix):
    said = davix("put", spot.file("a", DATA), spot.ours("deep/er/a"))
    assert said.code == 0, said.err
    said = davix("get", spot.ours("deep/er/a"), spot.local / "back")
    assert said.code == 0, said.err
    assert (spot.local / "back").read_bytes() == DATA


def test_an_empty_file_is_an_ordinary_file(spot, davix):
    assert davix("put", spot.file("a", b""), spot.ours("a")).code == 0
    assert davix("get", spot.ours("a"), spot.local / "back").code == 0
    assert (spot.local / "back").read_bytes() == b""


def test_ls_shows_names_kinds_and_sizes(spot, davix):
    spot.put("a%20b%25.root", b"x" * 17)
    spot.put("sub/c", b"y")
    # davix shows a name as the URL has it, which the standard wants encoded
    assert sorted(davix("ls", spot.ours()).out.splitlines()) == ["a%20b%25.root", "sub"]
    rows = [line.split() for line in davix("ls", "-l", spot.ours()).out.splitlines()]
    by_name = {row[-1]: row for row in rows}
    assert by_name["a%20b%25.root"][0].startswith("-rw")
    assert by_name["a%20b%25.root"][2] == "17"
    assert by_name["sub"][0].startswith("d")
    assert davix("get", spot.ours("a%20b%25.root"), spot.local / "back").code == 0
    assert (spot.local / "back").read_bytes() == b"x" * 17


def test_mkdir_mv_and_rm_change_the_name_space(spot, davix):
    spot.put("a", DATA)
    assert davix("mkdir", spot.ours("sub")).code == 0
    # davix-mv 0.8.4 ends with 255 whatever happened (with XRootD too): what counts is what is there
    davix("mv", spot.ours("a"), spot.ours("sub/b"))
    assert spot.get("a") is None
    assert spot.get("sub/b") == DATA
    assert davix("rm", spot.ours("sub/b")).code == 0
    assert spot.get("sub/b") is None
    assert davix("ls", spot.ours("sub")).out == ""


def test_mkdir_of_what_exists_says_so(spot, davix):
    spot.put("sub/a", b"x")
    said = davix("mkdir", spot.ours("sub"))
    assert said.code != 0
    assert re.search("exist|405", said.err, re.IGNORECASE), said.err


def test_a_missing_file_and_a_missing_right_are_told_apart(spot, davix):
    spot.put("a", b"x")
    said = davix("get", spot.ours("nothing"), spot.local / "x")
    assert said.code != 0
    assert "404" in said.err
    weak = spot.grid.system.token("storage.read:/elsewhere")
    said = davix("get", spot.ours("a"), spot.local / "x", token=weak)
    assert said.code != 0
    assert "403" in said.err or "denied" in said.err.lower(), said.err
    said = davix("rm", spot.ours("a"), token=weak)
    assert spot.get("a") == b"x"
    assert said.code != 0


COPIES = [(source, destination) for source in ("ours", "other") for destination in ("ours", "other")]


@pytest.mark.parametrize("mode", ["pull", "push"])
@pytest.mark.parametrize(("source", "destination"), COPIES, ids=lambda value: value)
@pytest.mark.parametrize("streams", [1, 4])
def test_cp_copies_between_the_servers(spot, davix, source, destination, mode, streams):
    start = spot.put("a", DATA) if source == "ours" else spot.put_other("a", DATA)
    if "other" in {source, destination}:
        spot.put_other("to/x", b"")  # a pull of XRootD's makes no folders
    end = spot.ours("to/b") if destination == "ours" else spot.other("to/b")
    bearer = spot.grid.bearer()
    header = [f"TransferHeader{bearer}", "Credential: none"]
    if streams > 1:
        header.append(f"X-Number-Of-Streams: {streams}")
    said = davix("cp", "--copy-mode", mode, start, end, header=tuple(header))
    assert said.code == 0, said.err
    found = spot.get("to/b") if destination == "ours" else spot.get_other("to/b")
    assert found == DATA
