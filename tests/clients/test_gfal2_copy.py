"""Third-party copies as gfal2 asks for them, and FTS through it: every direction, mode and failure."""

import os
import zlib

import pytest

from tests.clients.conftest import DEBIAN_PYTHON, Said, Spot, need

pytestmark = pytest.mark.client

DATA = os.urandom(5 << 20)
ADLER = f"{zlib.adler32(DATA):08x}"
PAIRS = [("ours", "ours"), ("ours", "other"), ("other", "ours")]


@pytest.fixture
def copy(spot: Spot):
    """Runs ``gfal-copy`` between two servers, in one mode only."""
    need("gfal-copy", package="gfal2-util-scripts gfal2-plugin-http gfal2-plugin-file python3-gfal2-util")

    def run(*arguments: object, token: str = "") -> Said:
        env = {"GFAL_PYTHONBIN": DEBIAN_PYTHON}
        return spot.grid.run("gfal-copy", "-vv", *arguments, token=token, env=env)

    return run


def at(spot: Spot, side: str, path: str) -> str:
    """An address as FTS writes it."""
    url = spot.ours(path) if side == "ours" else spot.other(path)
    return url.replace("https:", "davs:")


def place(spot: Spot, side: str, path: str, data: bytes = DATA) -> str:
    (spot.put if side == "ours" else spot.put_other)(path, data)
    return at(spot, side, path)


def held(spot: Spot, side: str, path: str) -> bytes | None:
    return spot.get(path) if side == "ours" else spot.get_other(path)


def used(said: Said) -> str:
    """The mode by which the copy was made."""
    words = "Copy succeeded using mode "
    return said.all.partition(words)[2].partition("\n")[0]


@pytest.mark.parametrize("mode", ["pull", "push", "streamed"])
@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=lambda value: value)
def test_every_direction_in_every_mode_with_checksums_of_both_sides(spot, copy, source, destination, mode):
    start = place(spot, source, "a")
    said = copy("-p", "--copy-mode", mode, "-K", f"adler32:{ADLER}", start, at(spot, destination, "x/y/b"))
    assert said.code == 0, said.why
    assert mode in used(said), used(said)
    assert held(spot, destination, "x/y/b") == DATA


@pytest.mark.parametrize("data", [b"", b"x"], ids=["empty", "one byte"])
@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=lambda value: value)
@pytest.mark.parametrize("mode", ["pull", "push"])
def test_the_smallest_files_are_copied_at_once(spot, copy, source, destination, mode, data):
    start = place(spot, source, "a", data)
    said = copy("-p", "--copy-mode", mode, start, at(spot, destination, "b"))
    assert said.code == 0, said.why
    assert held(spot, destination, "b") == data


@pytest.mark.parametrize("mode", ["pull", "push"])
@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=lambda value: value)
def test_a_missing_source_is_told_as_such(spot, copy, source, destination, mode):
    place(spot, source, "there")
    said = copy("--copy-mode", mode, at(spot, source, "missing"), at(spot, destination, "b"))
    assert said.code == 2, said.why
    assert held(spot, destination, "b") is None


@pytest.mark.parametrize("mode", ["pull", "push"])
@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=lambda value: value)
def test_what_exists_is_kept_without_force_and_replaced_with_it(spot, copy, source, destination, mode):
    start = place(spot, source, "a")
    end = place(spot, destination, "b", b"before")
    said = copy("--copy-mode", mode, start, end)
    assert said.code == 17, said.why
    assert held(spot, destination, "b") == b"before"
    said = copy("-f", "--copy-mode", mode, "-K", "adler32", start, end)
    assert said.code == 0, said.why
    assert held(spot, destination, "b") == DATA


@pytest.mark.parametrize("mode", ["pull", "push"])
@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=lambda value: value)
def test_a_wrong_checksum_leaves_nothing(spot, copy, source, destination, mode):
    start = place(spot, source, "a")
    said = copy("-p", "--copy-mode", mode, "-K", "adler32:00000bad", start, at(spot, destination, "b"))
    assert said.code != 0
    assert "do not match" in said.all or "checksum" in said.all.lower()
    assert held(spot, destination, "b") is None


@pytest.mark.parametrize("mode", ["pull", "push"])
def test_a_source_that_lies_about_its_checksum_is_found_out(spot, copy, mode):
    """XRootD goes on saying the old digest of a file that changed on its disk; no mode can hide it."""
    start = place(spot, "other", "a")
    file = spot.grid.xrootd.files / spot.name / "a"
    asked = spot.grid.run("gfal-sum", start, "ADLER32", env={"GFAL_PYTHONBIN": DEBIAN_PYTHON})
    assert ADLER in asked.out, asked.all
    stamp = file.stat()
    with file.open("r+b") as changed:
        changed.write(b"flipped")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    asked = spot.grid.run("gfal-sum", start, "ADLER32", env={"GFAL_PYTHONBIN": DEBIAN_PYTHON})
    if ADLER not in asked.out:
        pytest.skip("this XRootD computes the digest anew, so it does not lie")
    said = copy("-p", "--copy-mode", mode, "-K", "adler32", start, at(spot, "ours", "b"))
    assert said.code != 0
    if mode == "pull":  # we compare, so nothing is published
        assert spot.get("b") is None
    else:  # XRootD sends no digest with a push, and gfal2 leaves what it complains about
        assert "do not match" in said.all, said.why


@pytest.mark.parametrize("mode", ["pull", "push"])
def test_a_token_without_the_right_is_final_and_says_which_right(spot, copy, mode):
    start = place(spot, "ours", "a")
    reader = spot.grid.system.token("storage.read:/")
    said = copy("--copy-mode", mode, start, at(spot, "ours", "b"), token=reader)
    assert said.code != 0
    assert spot.get("b") is None
    assert spot.get("a") == DATA


def test_a_bulk_copy_of_many_files_ends_with_every_one(spot, copy):
    pairs = [
        (place(spot, "other", f"from/{i}", bytes([i]) * (i * 1000)), at(spot, "ours", f"to/{i}"))
        for i in range(20)
    ]
    listed = spot.local / "files"
    for number, (start, end) in enumerate(pairs):
        listed.write_text(start + "\n")
        said = copy("-p", "--copy-mode", "pull", "--from-file", listed, end)
        assert said.code == 0, said.why
        assert spot.get(f"to/{number}") == bytes([number]) * (number * 1000)
