"""Damage to the files of a running cache, seen through its doors: cases C1, C2, C4-C7, C13, C14."""

import asyncio
import os
import random
import time
from zlib import adler32

import pytest

from doma.auth.model import bearer
from doma.cache.extents import PAGE
from doma.cache.record import key_of
from doma.store.xrootd import XrootdStore
from tests.e2e.cache.conftest import directory, grow

SIZE = 40 * PAGE + 77


class Object:
    """A file of the site that the cache has whole and has checked."""

    def __init__(self, system, path, size=SIZE):
        self.system, self.path = system, path
        self.data = random.Random(path).randbytes(size)
        system.put(f"/site{path}", self.data)
        key = key_of(system.run["endpoints"]["site"]["https"], path)
        self.record = system.home / "cache/cache/objects" / key[:2] / key
        for _ in range(3):  # from the origin, from the disk, from memory
            assert self.http() == self.data
            time.sleep(0.03)

    @property
    def pages(self):
        return next(self.record.parent.glob(self.record.name + ".*"))

    def http(self, start=0, stop=None):
        stop = len(self.data) if stop is None else stop
        span = {"Range": f"bytes={start}-{stop - 1}"} if stop else {}
        answer = self.system.ask("GET", f"/cache{self.path}", headers=span)
        assert answer.status_code in {200, 206}, answer.text
        return answer.content

    def root(self, start=0, stop=None):
        """By pgread, which checks each page against the checksum that came with it."""
        stop = len(self.data) if stop is None else stop
        return asyncio.run(self._root(start, stop))

    async def _root(self, start, stop):
        address = self.system.run["endpoints"]["cache"]["https"].replace("https://", "roots://")
        host, _, folder = address.removeprefix("roots://").partition("/")
        token = bearer.set(self.system.token())
        store = XrootdStore(f"roots://{host}//{folder}", ca_file=self.system.run["ca_file"])
        try:
            reader = await store.open(self.path)
            data = bytes(await reader.read(start, stop))
            await reader.close()
        finally:
            await store.close()
            bearer.reset(token)
        return data

    def origin_bytes(self):
        return self.system.ask("GET", "/api/v1/cache/stats").json()["bytes"]["origin"]


@pytest.fixture(params=["http", "root"])
def thing(request, shared):
    found = Object(shared, f"/damage/{request.node.callspec.id.replace('[', '-')}-{time.time_ns()}")
    found.read = getattr(found, request.param)
    return found


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_c1_c2_c13_a_flipped_bit_costs_one_page_and_only_who_reads_it(thing):
    flip(thing.pages, 5 * PAGE + 9)
    before = thing.origin_bytes()
    assert thing.read(6 * PAGE, SIZE) == thing.data[6 * PAGE :]
    assert thing.origin_bytes() == before
    assert thing.read() == thing.data
    assert thing.origin_bytes() == before + PAGE
    assert thing.read() == thing.data
    assert thing.origin_bytes() == before + PAGE


def hole(path):
    with path.open("r+b") as file:
        file.seek(8 * PAGE)
        file.write(bytes(4 * PAGE))


HARMS = {
    "truncated": lambda path: os.truncate(path, 3 * PAGE),
    "grown": grow,
    "deleted": os.unlink,
    "directory": directory,
    "hole": hole,
}


@pytest.mark.parametrize("harm", HARMS)
def test_c4_c6_damaged_pages_are_missing_pages(thing, harm):
    HARMS[harm](thing.pages)
    for _ in range(2):
        assert thing.read() == thing.data


@pytest.mark.parametrize("harm", ["truncated", "deleted", "directory", "flipped", "empty"])
def test_c5_c7_a_damaged_record_is_an_object_that_was_never_here(thing, harm):
    harms = HARMS | {
        "truncated": lambda path: os.truncate(path, 40),
        "flipped": lambda path: flip(path, 60),
        "empty": lambda path: os.truncate(path, 0),
    }
    harms[harm](thing.record)
    # So that nothing of it is in memory.
    thing.system.ask("GET", "/pelican/api/v1.0/evict", params={"path": thing.path, "force": "true"})
    headers = {"Want-Digest": "adler32"}
    told = thing.system.ask("HEAD", f"/cache{thing.path}", headers=headers)
    assert int(told.headers["Content-Length"]) == SIZE
    assert thing.read() == thing.data
    told = thing.system.ask("HEAD", f"/cache{thing.path}", headers=headers)
    assert told.headers["Digest"] == f"adler32={adler32(thing.data):08x}"


@pytest.mark.parametrize("door", ["http", "root"])
def test_c14_empty_files_are_cached_like_others(shared, door):
    empty = Object(shared, f"/damage/empty-{door}", size=0)
    before = empty.origin_bytes()
    assert getattr(empty, door)() == b""
    held = shared.ask("GET", "/api/v1/cache/objects", params={"path": empty.path}).json()
    assert (held["size"], held["complete"]) == (0, True)
    assert empty.origin_bytes() == before
