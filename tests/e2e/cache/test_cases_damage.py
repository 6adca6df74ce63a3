"""Damage C4-C12 at both doors: of what a restart finds, of the disk, of what an origin sends."""

import asyncio
import errno
import itertools
import os
import shutil
import zlib
from base64 import b64encode
from hashlib import md5

import pytest

from doma.cache.disk import REST
from doma.cache.extents import PAGE
from tests.e2e.cache.conftest import Caching, Thing, Visitor, content, directory, grow, serving

S = 24 * PAGE + 77
HERE = 11 * PAGE
"""As much as is here of a half-cached file."""
DOORS = ["http", "root"]
_names = itertools.count()


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def hole(path):
    """Zeros for pages that the file still says to hold."""
    with path.open("r+b") as file:
        file.write(bytes(HERE))


HARMS = {
    "C5-truncated": lambda record, pages: os.truncate(record, 40),
    "C5-flipped": lambda record, pages: flip(record, 60),
    "C5-size": lambda record, pages: flip(record, record.read_bytes().index(b'"size": ') + 8),
    "C5-missing": lambda record, pages: record.unlink(),
    "C5-empty": lambda record, pages: os.truncate(record, 0),
    "C5-directory": lambda record, pages: directory(record),
    "C5-of-another": lambda record, pages: shutil.copy(
        next(p for p in record.parents[1].glob("*/*") if "." not in p.name and p != record), record
    ),
    "C4-truncated": lambda record, pages: os.truncate(pages, 3 * PAGE),
    "C4-deleted": lambda record, pages: pages.unlink(),
    "C4-grown": lambda record, pages: grow(pages),
    "C4-directory": lambda record, pages: directory(pages),
    "C6-hole": lambda record, pages: hole(pages),
}


@pytest.fixture(scope="module")
def restarted(origin, tmp_path_factory):
    """A cache that was harmed while it did not run: an object for each harm, state and door."""
    home = tmp_path_factory.mktemp("restarted")
    paths = {(harm, state, door): f"/{S}/{harm}-{state}-{door}"
             for harm in HARMS for state in ("whole", "half") for door in DOORS}  # fmt: skip
    with Caching(home, origin, origin.url) as first:
        visitor = Visitor(first, "http")
        for (_, state, _), path in paths.items():
            asyncio.run(visitor.read(path, 0, S if state == "whole" else HERE))
        asyncio.run(visitor.close())
        files = {key: (first.record(path), first.pages(path)) for key, path in paths.items()}
    for (harm, _, _), (record, pages) in files.items():
        HARMS[harm](record, pages)
    with Caching(home, origin, origin.url) as second:
        second.paths = paths
        yield second


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", ["whole", "half"])
@pytest.mark.parametrize("harm", HARMS)
async def test_c4_c5_c6_c7_what_was_damaged_while_nothing_ran_is_fetched_again(
    restarted, origin, harm, state, door
):
    path, visitor = restarted.paths[harm, state, door], Visitor(restarted, door)
    before = origin.sent[path]
    if harm not in {"C4-grown", "C6-hole"}:  # of these the pages themselves tell
        assert not await visitor.held(path)
    assert await visitor.size(path) == S
    assert await visitor.read(path, 0, HERE) == content(0, HERE)
    if harm.startswith("C5") or harm == "C6-hole":
        assert origin.sent[path] == before + HERE, "not here, so fetched again"
    assert await visitor.read(path, 0, S) == content(0, S)
    assert await visitor.adler32(path) == f"{zlib.adler32(content(0, S)):08x}"
    assert await visitor.held(path)
    await visitor.close()


@pytest.fixture
def path():
    return f"/{S}/harmed-{next(_names)}"


async def prepare(visitor, path, state):
    """The cache holds the file not at all, its first pages or all of it."""
    if state != "cold":
        stop = S if state == "warm" else HERE
        for _ in range(2):  # from the origin, from the disk
            assert await visitor.read(path, 0, stop) == content(0, stop)
            await asyncio.sleep(0.02)


def ill(*_):
    raise OSError(errno.EIO, "Input/output error")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("state", ["cold", "half"])
@pytest.mark.parametrize("trouble", [ill, full], ids=["EIO", "ENOSPC"])
async def test_c9_a_disk_that_takes_nothing_costs_no_client_a_byte(
    visitor, path, state, trouble, monkeypatch, caplog
):
    await prepare(visitor, path, state)
    counts = visitor.caching.store.stats().counts
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", trouble)
        for _ in range(2):
            assert await visitor.read(path, 0, S) == content(0, S)
        assert visitor.caching.store.stats().counts["disk_errors"] > counts["disk_errors"]
        assert visitor.caching.store.stats().resting
        assert not await visitor.held(path)
    assert any(record.name == "doma.cache.disk" for record in caplog.records)
    visitor.caching.clock.ahead += REST + 1
    assert await visitor.read(path, 0, S) == content(0, S)
    assert await visitor.held(path)


@pytest.mark.parametrize("state", ["warm", "half"])
async def test_c10_what_cannot_be_read_from_the_disk_comes_from_the_origin(visitor, path, state, monkeypatch):
    await prepare(visitor, path, state)
    sent = visitor.caching.origin.sent[path]
    with monkeypatch.context() as patch:
        patch.setattr("doma.cache.pages._TRUST", 0)  # nothing counts as checked
        patch.setattr(os, "preadv", ill)
        assert await visitor.read(path, 0, S) == content(0, S)
        assert visitor.caching.store.stats().resting
    assert visitor.caching.origin.sent[path] == sent + S
    visitor.caching.clock.ahead += REST + 1
    assert await visitor.read(path, 0, S) == content(0, S)


async def test_c12_the_scrub_finds_for_both_doors_what_nobody_reads(visitor, path):
    caching, origin = visitor.caching, visitor.caching.origin
    await prepare(visitor, path, "warm")
    for page in (3, 7):
        flip(caching.pages(path), page * PAGE + 5)
    sent = origin.sent[path]
    found = caching.run(caching.store.scrubber.once())
    assert path in found.names
    assert (found.damaged, found.repaired, found.lost) == (2, 2, 0)
    assert origin.sent[path] == sent + 2 * PAGE
    origin.up = False
    assert await visitor.held(path)
    assert await visitor.read(path, 0, S) == content(0, S)


async def test_c12_what_the_scrub_cannot_mend_is_said_and_served_by_no_door(visitor, path):
    caching, origin = visitor.caching, visitor.caching.origin
    await prepare(visitor, path, "half")
    flip(caching.pages(path), 3 * PAGE + 5)
    origin.up = False
    found = caching.run(caching.store.scrubber.once())
    assert path in found.names
    assert (found.damaged, found.repaired, found.lost) == (1, 0, 1)
    caching.clock.ahead += 60
    assert isinstance(await visitor.read(path, 3 * PAGE, 3 * PAGE + 10), int)
    assert await visitor.read(path, 4 * PAGE, HERE) == content(4 * PAGE, HERE)
    origin.up = True
    caching.clock.ahead += 60
    assert await visitor.read(path, 0, S) == content(0, S)


# C11: what an origin sends is not what it promised


@pytest.fixture(scope="module")
def liars(tmp_path_factory):
    """A cache before an origin that lies and a replica that does not."""
    with serving() as first, serving() as second:
        home = tmp_path_factory.mktemp("liars")
        with Caching(home, first, first.url, [second.url]) as one:
            one.replica = second
            yield one


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", ["cold", "half"])
@pytest.mark.parametrize("lie", ["fewer", "shorter", "longer", "shifted"])
async def test_c11_an_answer_that_is_not_the_range_is_not_kept_and_another_replica_is_asked(
    liars, path, lie, state, door
):
    liars.origin.up = True
    visitor = Visitor(liars, door)
    await prepare(visitor, path, state)
    liars.origin.things[path] = Thing(S, lie=lie)
    counts = liars.store.stats().counts["retries"]
    assert await visitor.read(path, 0, S) == content(0, S)
    assert liars.store.stats().counts["retries"] > counts
    assert liars.replica.sent[path] == S - (HERE // PAGE * PAGE if state == "half" else 0)
    liars.origin.up = liars.replica.up = False
    assert await visitor.read(path, 0, S) == content(0, S)
    liars.replica.up = True
    liars.clock.ahead += 60
    await visitor.close()


@pytest.mark.parametrize("lie", ["fewer", "shorter", "longer", "shifted"])
async def test_c11_without_a_replica_it_is_an_error_and_nothing_of_it_is_kept(visitor, path, lie):
    await prepare(visitor, path, "half")
    visitor.caching.origin.things[path] = Thing(S, lie=lie)
    assert isinstance(await visitor.read(path, HERE, S), int)
    visitor.caching.clock.ahead += 60
    assert await visitor.read(path, 0, HERE) == content(0, HERE)
    assert not await visitor.held(path)
    del visitor.caching.origin.things[path]
    assert await visitor.read(path, 0, S) == content(0, S)


async def test_c11_a_wrong_checksum_at_completion_discards_what_came(visitor, path):
    caching, right = visitor.caching, b64encode(md5(content(0, S), usedforsecurity=False).digest()).decode()
    wrong = b64encode(bytes(16)).decode()
    caching.origin.things[path] = Thing(S, headers={"Digest": f"md5={wrong}"})
    before = caching.store.stats().counts["discarded"]
    await visitor.read(path, 0, S)
    async with asyncio.timeout(10):
        while caching.store.stats().counts["discarded"] == before:
            await asyncio.sleep(0.005)
    assert not await visitor.held(path)
    caching.origin.things[path].headers = {"Digest": f"md5={right}"}
    assert await visitor.read(path, 0, S) == content(0, S)
    assert await visitor.held(path)
