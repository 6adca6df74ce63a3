"""Ranges that a connection asks for after the first: nothing that has changed since is overlooked."""

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.cache.extents import PAGE
from doma.cache.freshness import Control, control
from doma.cache.origins import Origins
from doma.cache.store import CacheStore
from doma.core.config import Cache, Issuer
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.fast_ask import TRUST
from doma.doors.reads import HttpReads
from doma.net.exchange import Request
from tests.contract.counted_origin import MIB, Origin, blob, put, read_all

ISSUER = "https://issuer.example/doma"
AUDIENCE = "https://se.example"
SIZE = MIB + 5
DATA = blob(SIZE)


class Files:
    """What the monitoring is told."""

    def __init__(self):
        self.opened_files = []

    def opened(self, file):
        self.opened_files.append(file)

    def closed(self, file, *, forced=False):
        pass

    def left(self, session):
        pass


class Scene:
    """One connection to a quick door over a cache that has ``/f``."""

    def __init__(self, root, keys, *, life):
        self.now, self.told, self.files = time.time(), [], Files()
        self.origin = Origin()
        self.verifier = Verifier(
            [Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks()}, clock=self.clock, skew=0
        )
        at = int(self.now)
        self.jti = os.urandom(8).hex()
        claims = {
            "iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "exp": at + life, "iat": at, "nbf": at,
            "jti": self.jti, "scope": "storage.read:/", "wlcg.ver": "1.0",
        }  # fmt: skip
        self.token = keys.sign(claims, "ES256")
        self.cache = CacheStore(
            root,
            Origins(self.origin, name="site"),
            Cache(file_lifetime=100),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.reads = HttpReads(self.files, TRUST / 3, clock=self.clock, all=False)
        where = {"c": Endpoint("c", self.cache, Gate({ISSUER: ["/"]}, name="c"), writable=False)}
        self.door = FastDoor(
            Site(self.verifier, where, reads=self.reads),
            clock=self.clock,
            count=lambda *row: self.told.append(row),
        )

    def clock(self):
        return self.now

    async def warm(self, data):
        await put(self.origin, "/f", data)
        await self.settle()

    async def settle(self):
        await read_all(self.cache, "/f")
        await asyncio.sleep(0.03)
        await read_all(self.cache, "/f")

    async def dial(self, *, tls=False):
        """What answers this connection's next ranges; three of them were answered already."""
        await self.verifier.verify(self.token)
        request = Request({}, tls=tls, client=("::1", 1), server=("::1", 2))
        request.method, request.target = b"GET", b"/c/f"
        request.headers = [
            (b"authorization", b"Bearer " + self.token.encode()),
            (b"range", b"bytes=0-65535"),
        ]
        request.fields = dict(request.headers)
        self.request = request
        again = self.door.head(request).again
        for _ in range(2):
            assert again(b"bytes=0-65535") is not None
        return again


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return KeySet.load_or_make(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture
async def make(tmp_path, keys):
    made = []

    async def make(life=3600):
        made.append(scene := Scene(tmp_path / "cache", keys, life=life))
        await scene.warm(DATA)
        return scene

    yield make
    for scene in made:
        scene.reads.close()
        await scene.cache.close()


def body_of(answer):
    span = answer.span
    if span is None:
        return b"".join(map(bytes, answer.parts))
    if span.ready is None:
        return bytes(span.source.view(span.start, span.stop))
    return os.pread(span.ready, span.stop - span.start, span.start)


def without_age(head):
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith((b"Age", b"Cache-St")))


@pytest.mark.parametrize("tls", [False, True])
async def test_the_next_ranges_are_answered_as_the_first_would_be(make, tls):
    scene = await make()
    again = await scene.dial(tls=tls)
    asked = [
        b"bytes=1-65536", b"bytes=70000-70009", b"bytes=0-0", b"bytes=%d-%d" % (SIZE - 40_000, SIZE - 1),
        b"bytes=5-", b"bytes=-40000", b"bytes=0-9, 20-29", b"bytes=4096-300000", b"bytes=9-8",
        b"bytes=1000-%d" % SIZE, b"bytes=%d-%d" % (SIZE, SIZE + 5), b"bytes=0-%d" % (SIZE - 1), b"",
    ]  # fmt: skip
    for value in [value for value in asked for _ in range(2)]:
        scene.request.fields[b"range"] = value
        first, now = scene.door.head(scene.request), again(value)
        assert (first is None) == (now is None), value
        if now is None or b"multipart" in now.head:
            continue
        assert (now.head, now.size) == (first.head, first.size)
        if now.size <= 300_000:
            assert body_of(now) == body_of(first)
    here = again(b"bytes=100-40099")
    assert body_of(here) == DATA[100:40100]
    assert b"Content-Range: bytes 100-40099/%d\r\n" % SIZE in here.head


async def test_every_byte_of_the_next_ranges_is_counted_once(make):
    scene = await make()
    again = await scene.dial()
    (file,) = scene.files.opened_files
    scene.door._tally.tell()
    scene.told.clear()
    hit, reads, total, cached = (
        scene.cache.stats().bytes["hit"], file.reads.count, file.reads.total, file.cached.hit,
    )  # fmt: skip
    for start in range(0, 500_000, 100_000):
        again(b"bytes=%d-%d" % (start, start + 49_999))
    scene.door._tally.tell()
    assert scene.cache.stats().bytes["hit"] - hit == file.cached.hit - cached == 250_000
    assert (file.reads.count - reads, file.reads.total - total) == (5, 250_000)
    assert [(row[:5], row[6]) for row in scene.told] == [(("c", "GET", 206, 0, 250_000), 5)]
    scene.now += TRUST / 2  # the token is still believed
    scene.reads.sweep()
    assert again(b"bytes=0-65535") is not None
    assert len(scene.files.opened_files) == 2, "the open file had ended: this read belongs to another"


async def test_a_replaced_file_is_seen_by_the_next_range(make):
    scene = await make()
    again = await scene.dial()
    old = again(b"bytes=0-65535")
    await put(scene.origin, "/f", DATA[::-1] + b"longer")
    scene.now = scene.cache.catalogue.get(scene.cache.place("/f").key).fresh_until - 0.1
    assert body_of(again(b"bytes=0-65535")) == DATA[:65536]
    scene.now += 0.2
    assert again(b"bytes=0-65535") is None, "its freshness is over"
    await scene.settle()
    for _ in range(3):
        new = again(b"bytes=0-65535")
        assert body_of(new) == DATA[::-1][:65536]
        assert without_age(new.head) != without_age(old.head)
        assert b"/%d\r\n" % (SIZE + 6) in new.head
    assert body_of(old) == DATA[:65536], "the answer under way keeps its version"


async def test_age_is_told_anew_each_second(make):
    scene = await make()
    again = await scene.dial()
    ages = []
    for _ in range(3):
        head = again(b"bytes=0-65535").head
        ages += [int(line[4:]) for line in head.split(b"\r\n") if line.startswith(b"Age:")]
        scene.now += 7
    assert [age - ages[0] for age in ages] == [0, 7, 14]


async def test_an_evicted_file_is_let_go_though_its_readers_stay_connected(make, tmp_path):
    scene = await make()
    again = await scene.dial()
    assert again(b"bytes=0-65535") is not None
    await scene.cache.evict("/f", immediate=True)
    assert again(b"bytes=0-65535") is None
    held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in held if name.startswith(str(tmp_path / "cache" / "objects"))]


async def test_pages_that_may_have_changed_are_checked_before_the_next_range(make):
    scene = await make()
    again = await scene.dial()
    pages = scene.cache.peek("/f")._pages
    pages.doubt(2 * PAGE, 3 * PAGE)
    assert again(b"bytes=0-65535") is None
    assert again(b"bytes=65536-131071") is not None
    await scene.settle()
    assert again(b"bytes=0-65535") is not None
    os.pwrite(pages._fd, b"!", 5 * PAGE)
    assert again(b"bytes=65536-131071") is None, "another hand wrote to the file: nothing of it is believed"


async def test_a_token_is_looked_at_for_every_range(make):
    scene = await make(life=int(TRUST) - 10)
    again = await scene.dial()
    scene.now += TRUST - 11
    assert again(b"bytes=0-65535") is not None
    scene.now += 2
    assert again(b"bytes=0-65535") is None, "expired, though the connection still trusts it"


async def test_a_revoked_token_gets_no_further_range(make):
    scene = await make()
    again = await scene.dial()
    scene.verifier.drop([os.urandom(8).hex()])
    assert again(b"bytes=0-65535") is not None, "another one was revoked"
    scene.verifier.drop([scene.jti])
    assert again(b"bytes=0-65535") is None


async def test_a_request_that_wants_the_origin_asked_gets_nothing_here(make):
    scene = await make()
    again = await scene.dial()
    mark = control.set(Control.REFRESH)
    try:
        assert again(b"bytes=0-65535") is None
    finally:
        control.reset(mark)
