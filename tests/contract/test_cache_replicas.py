"""Several origins of one object: fail-over, proof of equality, whose word counts (O4, O11, O12, C11, F10)."""

import asyncio
import random
import threading
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache
from doma.core.errors import (
    DomaError,
    Forbidden,
    NotFound,
    OriginFailed,
    Replaced,
    StorageUnavailable,
    TooManyRequests,
)
from doma.store.http import HttpStore
from doma.store.memory import MemoryStore

MIB = 1 << 20


class Site(MemoryStore):
    """An origin that fails as it is told, and counts what it sends."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.sent = 0
        self.asked = 0
        self.word: DomaError | None = None
        """Raised by everything."""
        self.dies_at: int | None = None
        """Reads from this offset on fail."""
        self.modified = 1000.0
        self.checksums = {}
        self.spoil = False

    def _seen(self, stat):
        return replace(
            stat, version=f"{self.name}-{stat.version}", modified=self.modified, checksums=self.checksums
        )

    async def stat(self, path):
        self.asked += 1
        if self.word:
            raise self.word
        return self._seen(await super().stat(path))

    async def open(self, path):
        if self.word:
            raise self.word
        return Line(self, await super().open(path))


class Line:
    def __init__(self, site, inner):
        self._site, self._inner = site, inner
        self.stat = site._seen(inner.stat)
        self.known, self.hashed = inner.known, inner.hashed

    async def read(self, start, stop):
        await asyncio.sleep(0)
        site = self._site
        if site.word:
            raise site.word
        if site.dies_at is not None and stop > site.dies_at:
            raise StorageUnavailable(f"{site.name}: connection reset")
        data = await self._inner.read(start, stop)
        site.sent += len(data)
        return bytes(len(data)) if site.spoil else data

    async def close(self):
        await self._inner.close()


async def put(store, path, data):
    upload = await store.create(path, size=len(data))
    await upload.write(data)
    await upload.commit()


async def get(cache, path):
    reader = await cache.open(path)
    try:
        size = reader.stat.size
        return b"".join([bytes(await reader.read(a, min(a + MIB, size))) for a in range(0, size, MIB)])
    finally:
        await reader.close()


DATA = random.Random(7).randbytes(5 * MIB + 99)


@pytest.fixture
def one():
    return Site("one")


@pytest.fixture
def two():
    return Site("two")


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def make(tmp_path, one, two, clock):
    made = []

    def make(**config):
        origins = Origins(one, name="https://one", others={"https://two": two})
        rng = random.Random(1)
        made.append(CacheStore(tmp_path / "cache", origins, Cache(**config), clock=clock, rng=rng))
        return made[-1]

    await put(one, "/f", DATA)
    await put(two, "/f", DATA)
    yield make
    for cache in made:
        await cache.close()


async def test_o12_an_origin_that_dies_in_mid_file_is_left_for_another_one_at_the_same_offset(make, one, two):
    cache = make()
    one.dies_at = 2 * MIB
    assert await get(cache, "/f") == DATA
    assert one.sent == 2 * MIB
    assert two.sent == len(DATA) - 2 * MIB
    assert cache.stats().bytes["stored"] == len(DATA)
    assert cache.stats().counts["discarded"] == 0


async def test_o12_one_open_file_knows_who_gave_its_bytes_and_what_was_tried_again(make, one):
    cache = make()
    one.dies_at = 2 * MIB
    reader = await cache.open("/f")
    for start in range(0, 4 * MIB, MIB):
        await reader.read(start, start + MIB)
    seen = reader.cached
    await reader.close()
    assert seen.remotes == ["one", "two"]
    assert seen.retries >= 1
    assert seen.miss + seen.hit == 4 * MIB
    assert seen.wait_origin > 0
    again = await cache.open("/f")
    await again.read(0, MIB)
    await again.close()
    assert (again.cached.hit, again.cached.miss, again.cached.remotes) == (MIB, 0, [])


@pytest.mark.parametrize("difference", ["size", "checksum", "unknown"])
async def test_o12_a_replica_that_is_not_shown_to_be_the_same_is_not_mixed_in(make, one, two, difference):
    cache = make()
    if difference == "size":
        await put(two, "/f", DATA[:-1])
    elif difference == "checksum":
        one.checksums, two.checksums = {"adler32": "00000001"}, {"adler32": "00000002"}
    else:
        two.modified = 2000.0
    one.dies_at = 2 * MIB
    reader = await cache.open("/f")
    assert bytes(await reader.read(0, MIB)) == DATA[:MIB]
    with pytest.raises(StorageUnavailable):
        await reader.read(2 * MIB, 3 * MIB)
    await reader.close()
    assert two.sent == 0


@pytest.mark.parametrize("proof", ["checksum", "asked checksum", "by size"])
async def test_o12_equal_checksums_or_the_operators_word_make_a_replica_good(make, one, two, proof):
    cache = make(replicas_by_size=proof == "by size")
    two.modified = 2000.0
    value = f"{zlib.adler32(DATA):08x}"
    if proof != "by size":
        one.checksums = {"adler32": value}
    if proof == "checksum":
        two.checksums = {"adler32": value}
    one.dies_at = 2 * MIB
    assert await get(cache, "/f") == DATA
    assert two.sent > 0


async def test_o4_a_definite_word_of_one_replica_beats_a_busy_other(make, one, two):
    cache = make()
    one.word, two.word = TooManyRequests("one: busy", retry_after=3), NotFound("two: no such file")
    with pytest.raises(NotFound):
        await cache.open("/f")
    one.word, two.word = TooManyRequests("one: busy", retry_after=3), Forbidden("two: not with this token")
    with pytest.raises(Forbidden):
        await cache.open("/g")
    one.word = two.word = TooManyRequests("busy", retry_after=3)
    with pytest.raises(TooManyRequests) as caught:
        await cache.open("/h")
    assert caught.value.retry_after == 3


async def test_a_file_that_only_the_second_origin_has_is_served_from_there(make, two):
    cache = make()
    await put(two, "/only", b"here")
    assert await get(cache, "/only") == b"here"


async def test_an_origin_that_is_away_from_the_beginning_costs_nobody_a_file(make, one, two):
    cache = make()
    one.word = StorageUnavailable("one: nobody answers")
    assert await get(cache, "/f") == DATA
    assert one.sent == 0
    assert two.sent == len(DATA)


async def test_f6_f10_while_the_first_origin_is_away_another_one_confirms_what_is_here(make, one, two, clock):
    cache = make(file_lifetime=10)
    assert await get(cache, "/f") == DATA
    clock.now += 60
    one.word = StorageUnavailable("one: nobody answers")
    assert await get(cache, "/f") == DATA
    counts = cache.stats().counts
    assert (counts["renewed"], counts["replaced"], counts["stale"]) == (1, 0, 0)
    assert two.sent == 0


async def test_f10_f11_a_404_elsewhere_removes_nothing_while_the_origin_that_gave_it_is_away(
    make, one, two, clock
):
    cache = make(file_lifetime=10)
    assert await get(cache, "/f") == DATA
    clock.now += 60
    one.word, two.word = StorageUnavailable("one: nobody answers"), NotFound("two: no such file")
    assert await get(cache, "/f") == DATA
    assert cache.stats().counts["stale"] == 1
    one.word = NotFound("one: no such file")
    clock.now += 60
    with pytest.raises(NotFound):
        await cache.open("/f")


async def test_f8_a_version_that_is_gone_at_its_origin_is_gone_though_a_replica_still_has_it(make, one, two):
    cache = make()
    reader = await cache.open("/f")
    await reader.read(0, MIB)
    await put(one, "/f", bytes(len(DATA)))
    one.modified = 3000.0
    cache.connections.drop(reader._fetcher.record.key, reader._fetcher.record.generation)
    with pytest.raises((Replaced, OriginFailed)):
        await reader.read(3 * MIB, 4 * MIB)
    await reader.close()
    assert await get(cache, "/f") == bytes(len(DATA))


async def test_c11_bytes_that_do_not_fit_the_checksum_count_against_their_origin(make, one, clock):
    cache = make()
    one.checksums = {"adler32": f"{zlib.adler32(DATA):08x}"}
    one.spoil = True
    for _ in range(5):
        await get(cache, "/f")
        while cache._checks:
            await asyncio.sleep(0.001)
    assert cache.stats().counts["discarded"] == 5
    one.checksums = {}
    assert await get(cache, "/f") == bytes(len(DATA))
    assert cache.lanes.resting("https://one") == 0  # good answers in between clear it


class Sends(BaseHTTPRequestHandler):
    """Sends the reader on: to the file, and round and round."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]] = []
    moved: ClassVar[str] = "/there"
    files: ClassVar[set[str]] = {"/there", "/headless"}

    def do_HEAD(self):
        if self.path == "/headless":
            self.send_response(405)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.do_GET()

    def do_GET(self):
        self.seen.append(self.path)
        span = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if self.headers.get("If-None-Match") == '"one"':
            self.send_response(304)
            body = b""
        elif self.path in self.files:
            start, stop = (int(span[0]), int(span[2]) + 1) if span[0] else (0, len(DATA))
            self.send_response(206 if span[0] else 200)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(DATA)}")
            body = DATA[start:stop]
        else:
            self.send_response(307)
            self.send_header("Location", self.moved if self.path == "/moved" else self.path)
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
async def http(tmp_path, clock):
    """A cache over that server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Sends) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        origin = HttpStore(f"http://127.0.0.1:{server.server_port}")
        cache = CacheStore(tmp_path / "cache", Origins(origin, name="http"), Cache(lifetime=10), clock=clock)
        yield cache
        await cache.close()
        await asyncio.to_thread(server.shutdown)
        thread.join(5)


async def test_o11_redirects_are_followed_and_a_circle_of_them_ends_after_eight(http):
    assert await get(http, "/moved") == DATA
    with pytest.raises(OriginFailed, match="circular"):
        await http.open("/circle")
    assert Sends.seen.count("/circle") == 9


async def test_o11_the_place_of_a_redirect_is_gone_to_directly_until_it_fails(http, monkeypatch):
    reader = await http.place("/moved").store.open("/moved")
    Sends.seen.clear()
    for start in range(0, 300, 100):
        assert bytes(await reader.read(start, start + 100)) == DATA[start : start + 100]
    assert Sends.seen == ["/moved", "/there", "/there", "/there"]
    monkeypatch.setattr(Sends, "moved", "/headless")
    monkeypatch.setattr(Sends, "files", {"/headless"})
    assert bytes(await reader.read(300, 400)) == DATA[300:400]
    assert Sends.seen[-2:] == ["/moved", "/headless"]


async def test_f5_an_origin_that_knows_no_head_is_read_and_validated_like_others(http, clock):
    assert await get(http, "/headless") == DATA
    clock.now += 60
    assert await get(http, "/headless") == DATA
    stats = http.stats()
    assert stats.counts["renewed"] == 1
    assert stats.bytes["origin"] == len(DATA)
