"""Freshness F1-F18 at the doors: the same word of an origin over http and over root://."""

import asyncio
import http.client
import itertools
import zlib

import crc32c
import pytest

from doma.net.xroot_frames import (
    P_HANDLE,
    P_OPEN,
    P_QUERY,
    P_STAT,
    SEGMENT,
    Code,
    Open,
    Status,
    number_and_text,
)
from doma.net.xroot_text import stat_line
from tests.e2e.cache.conftest import Client, Thing, Visitor, content

S = 40 * 4096 + 7
DAY = 86400
_names = itertools.count()


class Case:
    """One file at the origin, and both doors to it."""

    def __init__(self, caching, origin, client, wire):
        self.caching, self.origin, self.client, self.wire = caching, origin, client, wire
        self.visitors = {door: Visitor(caching, door) for door in DOORS}
        self.path = f"/fresh/{next(_names)}"
        self.thing = origin.things[self.path] = Thing(S)

    def later(self, seconds):
        self.caching.clock.ahead += seconds

    def replace(self):
        self.thing.version += 1

    def want(self, version=None):
        return content(0, S, self.thing.version if version is None else version)

    @property
    def asked(self):
        return self.origin.asked[self.path]

    def http(self, **headers):
        return self.client.ask(f"/cache{self.path}", **headers)

    async def open(self, options=Open.READ):
        """A handle, or the number of the error."""
        body = P_OPEN.pack(0, options, 0)
        status, said = await self.wire.ask(Code.OPEN, body, f"/cache{self.path}".encode())
        return said[:4] if status == Status.OK else number_and_text(said)[0]

    async def root(self, options=Open.READ):
        """The bytes, or the number of the error."""
        handle = await self.open(options)
        if isinstance(handle, int):
            return handle
        data = await self.wire.pages(handle, 0, S)
        await self.wire.ask(Code.CLOSE, P_HANDLE.pack(handle))
        return data

    async def get(self, door):
        """The bytes by a door, or its error: an HTTP status or a number of root://."""
        if door == "root":
            return await self.root()
        status, _, body = self.http()
        return body if status == 200 else status

    async def sums(self):
        """adler32 and crc32c as both doors tell them."""
        found = []
        for name in ("adler32", "crc32c"):
            query = f"/cache{self.path}?cks.type={name}".encode()
            status, said = await self.wire.ask(Code.QUERY, P_QUERY.pack(3, bytes(4)), query)
            assert status == Status.OK, said
            found.append(said.rstrip(b"\0").decode())
        digest = self.client.ask(f"/cache{self.path}", method="HEAD", Want_Digest="adler32")[1]["digest"]
        return [digest, *found]

    def files(self):
        """Its files on disk."""
        record = self.caching.record(self.path)
        return [*record.parent.glob(f"{record.name}*")]

    async def some(self, door, start, stop):
        """A range by a door, or its error."""
        return await self.visitors[door].read(self.path, start, stop)

    async def held(self):
        """Whether ``set cache cached`` says yes."""
        return await self.visitors["root"].held(self.path)


@pytest.fixture
async def case(caching, origin, clients):
    wire = await caching.dial()
    made = Case(caching, origin, clients["http"], wire)
    yield made
    origin.up = True
    made.later(60)  # what failed is tried again
    for visitor in made.visitors.values():
        await visitor.close()
    await wire.close()


def sums_of(data):
    adler, crc = f"{zlib.adler32(data):08x}", f"{crc32c.crc32c(data):08x}"
    return [f"adler32={adler}", f"adler32 {adler}", f"crc32c {crc}"]


DOORS = ["http", "root"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("said", "life"),
    [("max-age=100", 100), ("max-age=999, s-maxage=100", 100), ("", 3600), ('MAX-AGE="100", junk=,=', 100)],
    ids=["F1-max-age", "F1-s-maxage", "F2-default", "F14-odd"],
)
async def test_f1_f2_f7_what_changed_is_seen_by_every_door_one_lifetime_later(case, door, said, life):
    case.thing.headers = {"Cache-Control": said} if said else {}
    assert await case.get(door) == case.want()
    assert await case.sums() == sums_of(case.want())
    etag = case.http()[1]["etag"]
    before = case.asked
    case.replace()
    case.later(0.85 * life)
    for other in DOORS:
        assert await case.get(other) == case.want(0)
    assert case.asked == before
    assert int(case.http()[1]["age"]) in range(int(0.85 * life), int(0.85 * life) + 30)
    case.later(0.3 * life)
    for other in (door, *DOORS):
        assert await case.get(other) == case.want(1)
    assert await case.sums() == sums_of(case.want(1))
    assert case.http()[1]["etag"] != etag  # F18


@pytest.mark.parametrize("door", DOORS)
async def test_f7_an_origin_that_tells_a_version_by_webdav_alone_is_not_believed_for_ever(case, door):
    case.thing.silent = True
    assert await case.get(door) == case.want()
    case.later(2 * 3600)
    assert await case.get(door) == case.want()
    assert case.origin.sent[case.path] == S
    case.replace()
    case.later(2 * 3600)
    for other in (door, *DOORS):
        assert await case.get(other) == case.want(1)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("said", ["no-store", "private", "Private, max-age=60"])
async def test_f3_what_must_not_be_kept_is_passed_through(case, door, said):
    case.thing.headers = {"Cache-Control": said}
    for _ in range(2):
        assert await case.get(door) == case.want()
    assert case.origin.sent[case.path] == 2 * S
    assert not await case.held()
    assert not case.files()
    assert case.http(Cache_Control="only-if-cached")[0] == 504


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", [S, 9000], ids=["whole", "half"])
async def test_f3_what_may_not_be_kept_any_longer_leaves_the_disk(case, door, part):
    case.thing.headers = {"Cache-Control": "max-age=100"}
    assert await case.some(door, 0, part) == case.want()[:part]
    assert len(case.files()) == 2
    case.thing.headers = {"Cache-Control": "no-store"}
    case.later(120)
    assert await case.get(door) == case.want()
    assert not case.files()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("said", ["no-cache", "max-age=0, must-revalidate", "max-age=-1", "max-age=never"])
async def test_f4_f5_f14_what_is_stale_at_once_is_validated_each_time_without_bytes(case, door, said):
    case.thing.headers = {"Cache-Control": said}
    assert await case.get(door) == case.want()
    for _ in range(2):
        before = case.asked
        assert await case.get(door) == case.want()
        assert case.asked == before + 1
    assert case.origin.sent[case.path] == S
    case.replace()
    assert await case.get(door) == case.want(1)


@pytest.mark.parametrize("how", ["read", "pgread", "readv"])
async def test_f8_f9_a_handle_keeps_its_version_while_new_opens_see_the_new_one(case, how):
    old = await case.open()
    assert await case.wire.pages(old, 0, S) == case.want(0)
    case.replace()
    case.later(2 * DAY)
    assert await case.root() == case.want(1)
    assert case.http()[2] == case.want(1)
    if how == "readv":
        spans = b"".join(SEGMENT.pack(old, 5000, at) for at in (0, 40_000, 7))
        status, body = await case.wire.ask(Code.READV, bytes(16), spans)
        assert status == Status.OK
        assert body[16:5016] == case.want(0)[:5000]
    else:
        get = case.wire.read if how == "read" else case.wire.pages
        assert await get(old, 0, S) == case.want(0)


@pytest.mark.parametrize("how", ["read", "pgread", "readv"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
async def test_f8_a_handle_on_a_half_cached_old_version_fails_and_never_mixes(case, how, noticed):
    old = await case.open()
    assert await case.wire.read(old, 0, 4096) == case.want(0)[:4096]
    case.replace()
    if noticed:
        case.later(2 * DAY)
        assert await case.root() == case.want(1)
    if how == "readv":
        spans = SEGMENT.pack(old, 4096, 0) + SEGMENT.pack(old, 9000, 100_000)
        await case.wire.refused(Code.READV, bytes(16), spans)
    else:
        code = Code.READ if how == "read" else Code.PGREAD
        number, text = await case.wire.refused(code, old + bytes(8) + S.to_bytes(4), bytes(2))
        assert case.path in text
        assert number
    assert await case.wire.read(old, 0, 4096) == case.want(0)[:4096]  # what is here is still its own
    assert await case.root() == case.want(1)


@pytest.mark.parametrize("door", DOORS)
async def test_f8_a_half_cached_file_that_was_replaced_is_answered_new_from_the_start(case, door):
    handle = await case.open()
    assert await case.wire.read(handle, 0, 4096) == case.want(0)[:4096]
    await case.wire.ask(Code.CLOSE, P_HANDLE.pack(handle))
    case.replace()
    if door == "http":
        assert await case.get(door) == case.want(1)
    else:
        # the open has told the old size already; what comes after it can only fail
        handle = await case.open()
        await case.wire.refused(Code.PGREAD, handle + bytes(8) + S.to_bytes(4), bytes(2))
        assert await case.root() == case.want(1)


LONG = 24 << 20
"""More than the sockets of both sides and what is read ahead of an answer."""


def asked_for(case):
    """An answer of the whole that has begun to come, and its connection."""
    connection = http.client.HTTPConnection("127.0.0.1", case.caching.address[1], timeout=20)
    connection.request("GET", f"/cache{case.path}")
    answer = connection.getresponse()
    assert answer.read(100_000) == content(0, 100_000)
    return connection, answer


@pytest.mark.parametrize("state", ["cold", "half"])
async def test_f8_an_answer_whose_file_is_replaced_breaks_off_and_never_mixes(case, state):
    case.thing.size = LONG
    if state == "half":
        assert case.http(Range="bytes=0-2999999")[2] == content(0, 3_000_000)
    case.origin.stall = 4 << 20
    case.origin.stuck.clear()
    connection, answer = asked_for(case)
    assert case.origin.stuck.wait(10)
    case.replace()
    case.origin.stall = None
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    connection.close()
    came = 100_000 + len(caught.value.partial)
    assert caught.value.partial == content(100_000, came)
    assert case.http(Range="bytes=9000-9999999")[2] == content(9000, 10_000_000, 1)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("state", ["on-disk", "in-memory"])
async def test_f9_an_answer_that_is_all_here_ends_on_its_version_while_others_see_the_new_one(
    case, door, state
):
    case.thing.size = LONG
    for _ in range(1 if state == "on-disk" else 3):
        assert case.http()[2] == content(0, LONG)
        await asyncio.sleep(0.02)
    connection, answer = asked_for(case)
    case.replace()
    case.later(2 * DAY)
    assert await case.some(door, 0, 9000) == content(0, 9000, 1)
    assert answer.read() == content(100_000, LONG)
    connection.close()


@pytest.mark.parametrize("door", DOORS)
async def test_f10_what_is_here_of_a_half_cached_file_is_served_stale_and_the_rest_is_an_error(case, door):
    assert await case.some(door, 0, 8192) == case.want()[:8192]
    case.origin.up = False
    case.later(2 * 3600)
    for other in DOORS:
        assert await case.some(other, 0, 8192) == case.want()[:8192]
        assert isinstance(await case.some(other, 8192, 9000), int)
        case.later(60)
    case.origin.up = True
    assert await case.get(door) == case.want()


@pytest.mark.parametrize("door", DOORS)
async def test_f10_a_dead_origin_is_covered_for_a_day_and_then_said(case, door):
    assert await case.get(door) == case.want()
    case.origin.up = False
    case.later(2 * 3600)
    for other in DOORS:
        assert await case.get(other) == case.want()
    headers = case.http()[1]
    assert headers["warning"].startswith("111")
    assert "origin-unreachable" in headers["cache-status"]
    case.later(26 * 3600)
    said = [await case.get(other) for other in DOORS]
    assert said[0] in {502, 503, 504}
    assert said[1] in {3007, 3012, 3014, 3034}
    case.origin.up = True
    case.later(60)
    assert await case.get(door) == case.want()


@pytest.mark.parametrize("door", DOORS)
async def test_f10_must_revalidate_forbids_it(case, door):
    case.thing.headers = {"Cache-Control": "max-age=10, must-revalidate"}
    assert await case.get(door) == case.want()
    case.origin.up = False
    case.later(20)
    assert isinstance(await case.get(door), int)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("refusal", "gone"), [(403, 404), (401, 410)])
async def test_f11_gone_is_gone_and_forbidden_harms_nobody_else(case, door, refusal, gone):
    assert await case.get(door) == case.want()
    case.later(2 * 3600)
    case.thing.status = refusal
    assert await case.get(door) in ({403, 3010} if refusal == 403 else {401, 3030})
    case.thing.status = 200
    assert await case.get(door) == case.want()
    assert case.origin.sent[case.path] == S
    case.later(2 * 3600)
    case.thing.status = gone
    assert [await case.get(other) for other in DOORS] == [404, 3011]
    assert not await case.held()
    assert not case.files()
    case.later(60)
    case.thing.status = 200
    assert await case.get(door) == case.want()
    assert case.origin.sent[case.path] == 2 * S


@pytest.mark.parametrize("door", DOORS)
async def test_f12_a_client_may_have_it_validated_now_but_not_at_any_rate(case, door):
    async def refreshed():
        if door == "root":
            return await case.root(Open.READ | Open.REFRESH)
        return case.http(Cache_Control="no-cache")[2]

    assert await case.get(door) == case.want()
    case.later(5)
    case.replace()
    assert await case.get(door) == case.want(0)
    assert await refreshed() == case.want(1)
    before = case.asked
    for _ in range(5):
        assert await refreshed() == case.want(1)
    assert case.asked - before <= 2
    for other in DOORS:
        assert await case.get(other) == case.want(1)


async def test_f13_only_if_cached_never_touches_the_origin(case):
    for ask in ({"Cache_Control": "only-if-cached"}, {"X_Pelican_NoDownload": "true"}):
        assert case.http(**ask)[0] == 504
        assert case.client.ask(f"/cache{case.path}", method="HEAD", **ask)[0] == 504
    assert not await case.held()
    assert case.asked == 0
    handle = await case.open()
    await case.wire.read(handle, 0, 8192)
    before = case.asked
    ask = {"Cache_Control": "only-if-cached"}
    assert case.client.ask(f"/cache{case.path}", "bytes=5-8000", **ask)[::2] == (206, case.want()[5:8001])
    assert case.client.ask(f"/cache{case.path}", "bytes=5-9000", **ask)[0] == 504
    assert case.http(**ask)[0] == 504
    assert not await case.held()
    assert case.asked == before
    assert await case.root() == case.want()
    before = case.asked
    assert case.http(**ask)[::2] == (200, case.want())
    assert await case.held()
    status, said = await case.wire.ask(Code.STAT, P_STAT.pack(0, bytes(4)), f"/cache{case.path}".encode())
    assert (status, stat_line(said[:-1].decode()).flags & 512) == (Status.OK, 512)
    case.later(2 * 3600)  # stale is as good as absent
    assert case.http(**ask)[0] == 504
    assert not await case.held()
    assert case.asked == before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("part", [S, 9000], ids=["whole", "half"])
async def test_f17_many_clients_at_expiry_are_one_validation(case, door, part):
    assert await case.some("root", 0, part) == case.want()[:part]
    case.later(2 * 3600)
    before = case.asked
    if door == "root":
        wires = [await case.caching.dial() for _ in range(12)]
        body, path = P_OPEN.pack(0, Open.READ, 0), f"/cache{case.path}".encode()
        said = await asyncio.gather(*(wire.ask(Code.OPEN, body, path) for wire in wires))
        assert {status for status, _ in said} == {Status.OK}
        for wire in wires:
            await wire.close()
    else:
        clients = [Client(case.caching) for _ in range(12)]
        asks = (asyncio.to_thread(c.ask, f"/cache{case.path}", "bytes=0-8999") for c in clients)
        said = await asyncio.gather(*asks)
        assert {status for status, _, _ in said} == {206}
        assert {body for _, _, body in said} == {case.want()[:9000]}
        for client in clients:
            client.close()
    assert case.asked == before + 1


@pytest.mark.parametrize("door", DOORS)
async def test_f15_a_weak_etag_renews_but_joins_nothing(case, door):
    case.thing.weak, case.thing.headers = True, {"Cache-Control": "max-age=100"}
    assert await case.get(door) == case.want()
    etag = case.http()[1]["etag"]
    assert not etag.startswith("W/")  # F18: what clients get is strong, and the copy's own
    assert case.http(If_Range=case.thing.etag, Range="bytes=0-3")[0] == 200
    assert case.http(If_Range=etag, Range="bytes=0-3")[0] == 206
    case.later(120)
    assert await case.get(door) == case.want()
    assert case.http()[1]["etag"] == etag
    assert case.origin.sent[case.path] == S, "304 suffices"
    case.replace()
    case.later(120)
    for other in (door, *DOORS):
        assert await case.get(other) == case.want(1)
    assert case.http()[1]["etag"] != etag


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("more", [4096, -4096], ids=["grown", "shrunk"])
async def test_f16_a_size_that_disagrees_for_one_version_discards_it_and_is_counted(case, door, more):
    case.thing.headers = {"Cache-Control": "max-age=100"}
    same = case.thing.etag
    assert await case.get(door) == case.want()
    before = case.caching.store.stats().counts["discarded"]
    case.thing.size = S + more
    case.thing.fixed = same
    case.later(120)
    for other in (door, *DOORS):
        assert await case.get(other) == content(0, min(S, S + more) if other == "root" else S + more)
    assert case.caching.store.stats().counts["discarded"] == before + 1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("more", [4096, -4096], ids=["grown", "shrunk"])
async def test_f16_a_size_that_disagrees_in_mid_file_mixes_nothing_and_the_next_open_has_the_new_one(
    case, door, more
):
    case.thing.fixed = '"same"'
    handle = await case.open()
    assert await case.wire.read(handle, 0, 8192) == case.want()[:8192]
    case.replace()
    case.thing.size = S + more
    if door == "root":
        await case.wire.refused(Code.PGREAD, handle + bytes(8) + S.to_bytes(4), bytes(2))
    assert await case.wire.read(handle, 0, 8192) == case.want(0)[:8192]
    before = case.caching.store.stats().counts["discarded"]
    assert await case.get("http") == content(0, S + more, 1)
    assert case.caching.store.stats().counts["discarded"] == before + 1
    assert await case.some(door, 0, 8192) == content(0, 8192, 1)


@pytest.mark.parametrize("door", DOORS)
async def test_f15_blocks_under_one_weak_etag_are_not_joined_where_the_date_is_another(case, door):
    case.thing.fixed, case.thing.headers = 'W/"same"', {"Cache-Control": "max-age=1000"}
    assert await case.some(door, 0, 8192) == case.want()[:8192]
    case.replace()  # the same weak ETag, another time
    got = await case.some(door, 0, S)
    assert got == case.want(1) or isinstance(got, int)
    for other in (door, *DOORS):
        assert await case.get(other) == case.want(1)
