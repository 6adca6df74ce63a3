"""Ranges R1-R28 and their like over root://: on a miss, on a hit and on a half-cached file."""

import asyncio
import email.parser
import email.policy
import itertools
import socket
import struct
import time
from urllib.parse import quote, unquote

import pytest

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import P_OPEN, P_READ, P_STAT, Code, Open, Status
from doma.net.xroot_text import stat_line
from tests.e2e.cache.conftest import Client, Thing, content

PAGE = 4096
S = 70 * PAGE + 77
"""Size of the file that HTTP ranges are asked of: bytes behind the last whole page too."""
BIG = 3 << 20
"""A file with room for a part of more than 2 MiB."""
STATES = ["cold", "warm", "half"]
WHOLE = "whole"

_names = itertools.count()
_warm: dict[int, str] = {}


def prepared(caching, client, state, size):
    """The path of a file of this size that the cache holds not at all, whole and in memory, or half."""
    if state == "warm" and size in _warm:
        return _warm[size]
    path = f"/{size}/{state}-{next(_names)}"
    if state == "warm":
        for _ in range(3):  # from the origin, from the disk, from memory
            client.ask(f"/cache{path}")
            time.sleep(0.03)
        _warm[size] = path
    elif state == "half" and size:
        # every other run of two pages, and the last byte
        runs = [f"{at}-{min(at + 2 * PAGE, size) - 1}" for at in range(PAGE, size, 4 * PAGE)][:40]
        for span in (*runs[:: max(1, len(runs) // 8)], f"{size - 1}-{size - 1}"):
            assert client.ask(f"/cache{path}", f"bytes={span}")[0] == 206
    return path


def parts(headers, body):
    """The parts of a multipart/byteranges answer: (Content-Range, bytes), by the boundary of its head."""
    head = f"Content-Type: {headers['content-type']}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = message.get_boundary().encode()
    found = []
    for piece in body.split(b"--" + boundary)[1:-1]:
        fields, _, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = dict(line.split(": ", 1) for line in fields.decode().split("\r\n"))
        lower = {name.lower(): value for name, value in named.items()}
        assert lower["content-type"]
        found.append((lower["content-range"], data[:-2]))
    assert body.endswith(b"--" + boundary + b"--\r\n")
    return found


RANGES = [
    ("R1", None, WHOLE),
    ("R2", "bytes=0-0", (0, 0)),
    ("R3-in-a-page", "bytes=10-99", (10, 99)),
    ("R3-over-pages", f"bytes=4095-{3 * PAGE}", (4095, 3 * PAGE)),
    ("R3-all", f"bytes=0-{S - 1}", (0, S - 1)),
    ("R4", f"bytes={S - 10}-{S + 10}", (S - 10, S - 1)),
    ("R4-far", f"bytes=5-{10**18}", (5, S - 1)),
    ("R5", "bytes=5000-", (5000, S - 1)),
    ("R5-last-byte", f"bytes={S - 1}-", (S - 1, S - 1)),
    ("R5-all", "bytes=0-", (0, S - 1)),
    ("R6", "bytes=-1", (S - 1, S - 1)),
    ("R6-most", f"bytes=-{S - 1}", (1, S - 1)),
    ("R7-equal", f"bytes=-{S}", (0, S - 1)),
    ("R7-more", f"bytes=-{S + 1}", (0, S - 1)),
    ("R8", "bytes=-0", 416),
    ("R9", f"bytes={S}-", 416),
    ("R9-both", f"bytes={S}-{S + 5}", 416),
    ("R9-far", f"bytes={2**63}-", 416),
    ("R10-reversed", "bytes=9-5", WHOLE),
    ("R10-words", "bytes=x-y", WHOLE),
    ("R10-nothing", "bytes=", WHOLE),
    ("R10-other-unit", "pages=0-1", WHOLE),
    ("R11", "bytes=0-9,100-199", [(0, 9), (100, 199)]),
    ("R11-blanks", f"bytes=0-9, {S - 5}-,\t7-7", [(0, 9), (S - 5, S - 1), (7, 7)]),
    ("R12", f"bytes={S}-,3-4,{S + 9}-{S + 99}", [(3, 4)]),
    ("R13", f"bytes={S}-,{S + 9}-{S + 99},-0", 416),
    ("R14", "bytes=0-0,-1", [(0, 0), (S - 1, S - 1)]),
    ("R15", "bytes=500-600,0-9,550-700,0-9", [(500, 600), (0, 9), (550, 700), (0, 9)]),
    ("R18", "bytes=17-17", (17, 17)),
]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("span", "expected"), [row[1:] for row in RANGES], ids=[row[0] for row in RANGES])
def test_a_range_is_answered_as_the_standard_says(caching, clients, origin, scheme, state, span, expected):
    client = clients[scheme]
    path = prepared(caching, client, state, S)
    sent = origin.sent[path]
    status, headers, body = client.ask(f"/cache{path}", span)
    assert int(headers["content-length"]) == len(body)
    if expected == 416:
        assert (status, headers["content-range"]) == (416, f"bytes */{S}")
    else:
        assert headers["accept-ranges"] == "bytes"
        assert headers["etag"].startswith('"')
        assert headers["last-modified"] == "Sun, 01 Mar 2026 10:00:00 GMT"
    if expected == WHOLE:
        assert (status, body == content(0, S)) == (200, True)
        assert "content-range" not in headers
    elif isinstance(expected, tuple) or (isinstance(expected, list) and len(expected) == 1):
        a, b = expected if isinstance(expected, tuple) else expected[0]
        if headers.get("content-type", "").startswith("multipart"):
            assert parts(headers, body) == [(f"bytes {a}-{b}/{S}", content(a, b + 1))]
            assert isinstance(expected, list)
        else:
            assert (status, headers["content-range"]) == (206, f"bytes {a}-{b}/{S}")
            assert body == content(a, b + 1)
    elif isinstance(expected, list):
        assert status == 206
        assert parts(headers, body) == [(f"bytes {a}-{b}/{S}", content(a, b + 1)) for a, b in expected]
    if state == "warm" or expected == 416:
        assert origin.sent[path] == sent
    assert client.ask(f"/cache{path}", "bytes=0-3")[2] == content(0, 4)  # the connection goes on


@pytest.mark.parametrize("state", STATES)
def test_r16_many_ranges_and_large_parts_are_served(caching, clients, state):
    client = clients["http"]
    path = prepared(caching, client, state, BIG)
    spans = [(at, at + 9) for at in range(0, 1024 * 2000, 2000)]
    status, headers, body = client.ask(f"/cache{path}", "bytes=" + ",".join(f"{a}-{b}" for a, b in spans))
    assert (status, int(headers["content-length"])) == (206, len(body))
    assert [data for _, data in parts(headers, body)] == [content(a, b + 1) for a, b in spans]
    status, headers, body = client.ask(f"/cache{path}", f"bytes=1-{5 << 19},7-8")
    assert (status, int(headers["content-length"])) == (206, len(body))
    assert [data for _, data in parts(headers, body)] == [content(1, (5 << 19) + 1), content(7, 9)]
    status, _, body = client.ask(f"/cache{path}", "bytes=" + ",".join(f"{n}-{n}" for n in range(1025)))
    assert (status, bool(body)) in {(400, True), (200, True)}
    assert status == 400 or body == content(0, BIG)
    assert client.ask(f"/cache{path}", "bytes=0-3")[2] == content(0, 4)


@pytest.mark.parametrize("state", STATES)
def test_r17_ranges_that_ask_for_more_than_there_is_cost_the_origin_nothing_extra(
    caching, clients, origin, state
):
    client = clients["http"]
    path = prepared(caching, client, state, BIG)
    status, headers, body = client.ask(f"/cache{path}", "bytes=" + ",".join(["0-"] * 5))
    if status == 206:
        assert {data == content(0, BIG) for _, data in parts(headers, body)} == {True}
    else:
        assert (status, body == content(0, BIG)) == (200, True)
    assert origin.sent[path] <= BIG


@pytest.mark.parametrize("state", STATES)
async def test_r16_r17_the_root_door_serves_1024_elements_and_refuses_more(caching, clients, origin, state):
    path = prepared(caching, clients["http"], state, BIG)
    wire = await caching.dial()
    handle = await wire.open(f"/cache{path}")
    spans = [(at, at + 10) for at in range(0, 1024 * 2000, 2000)]
    assert await vector(wire, handle, spans) == [content(a, b) for a, b in spans]
    longest = 2_097_136
    again = [(0, longest), (BIG - longest, BIG), (0, longest), (7, 8)]  # more than there is, out of order
    assert await vector(wire, handle, again) == [content(a, b) for a, b in again]
    assert origin.sent[path] <= BIG
    for wrong, number in (([(0, 10)] * 1025, 3002), ([(0, longest + 1)], 3008)):
        asked = b"".join(frames.SEGMENT.pack(handle, b - a, a) for a, b in wrong)
        assert (await wire.refused(Code.READV, bytes(16), asked))[0] == number
    assert await wire.read(handle, 0, 4) == content(0, 4)
    await wire.close()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_r19_r20_r21_r22_r24_conditions_are_kept(caching, clients, origin, scheme, state):
    client = clients[scheme]
    path = prepared(caching, client, state, S)
    status, head, body = client.ask(f"/cache{path}", "bytes=5-9", method="HEAD")  # R22
    assert (status, head["content-length"], head["accept-ranges"], body) == (200, str(S), "bytes", b"")
    etag, when = head["etag"], head["last-modified"]
    for good in (etag, when):  # R19
        status, headers, body = client.ask(f"/cache{path}", "bytes=5-9", If_Range=good)
        assert (status, headers["content-range"], body) == (206, f"bytes 5-9/{S}", content(5, 10))
    for bad in ('"other"', f"W/{etag}", "Sat, 28 Feb 2026 10:00:00 GMT"):
        status, headers, body = client.ask(f"/cache{path}", "bytes=5-9", If_Range=bad)
        assert (status, "content-range" in headers, body == content(0, S)) == (200, False, True), bad
    for match in ({"If_None_Match": etag}, {"If_None_Match": f'"x", W/{etag}'}, {"If_None_Match": "*"},
                  {"If_Modified_Since": when}):  # R20, R24  # fmt: skip
        for method, span in (("GET", None), ("GET", "bytes=0-9"), ("HEAD", None)):
            status, headers, body = client.ask(f"/cache{path}", span, method=method, **match)
            assert (status, body, headers["etag"]) == (304, b"", etag)
            assert int(headers["age"]) >= 0, (method, match)
    assert client.ask(f"/cache{path}", If_None_Match='"other"')[0] == 200
    for match in ({"If_Match": '"other"'}, {"If_Unmodified_Since": "Sat, 28 Feb 2026 10:00:00 GMT"}):  # R21
        assert client.ask(f"/cache{path}", **match)[0] == 412
    assert client.ask(f"/cache{path}", "bytes=0-1", If_Match=etag)[2] == content(0, 2)
    assert client.ask(f"/cache{path}", If_Match="*")[0] == 200


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_r23_an_empty_file_has_no_ranges(clients, scheme):
    path = f"/cache/0/empty-{scheme}"
    for _ in range(3):
        for span, expected in ((None, 200), ("bytes=0-", 416), ("bytes=0-0", 416), ("bytes=-5", 200)):
            status, headers, body = clients[scheme].ask(path, span)
            assert (status, span, body if status == 200 else b"") == (expected, span, b"")
            assert status == 416 or headers["content-length"] == "0"
            assert status == 200 or headers["content-range"] == "bytes */0"


HUGE = (1 << 32) + (1 << 21) + 5
EDGES = [1 << 31, 1 << 32, HUGE - 4, HUGE - PAGE]


def test_r25_ranges_beyond_4_gib_are_exact(clients, origin):
    path, client = f"/{HUGE}/huge", clients["http"]
    for _ in range(2):
        for edge in EDGES:
            a, b = edge - 5000, min(edge + 5000, HUGE)
            status, headers, body = client.ask(f"/cache{path}", f"bytes={a}-{b - 1}")
            assert (status, headers["content-range"]) == (206, f"bytes {a}-{b - 1}/{HUGE}")
            assert body == content(a, b)
    spans = [(edge - 3, edge + 2) for edge in EDGES]
    _, headers, body = client.ask(f"/cache{path}", "bytes=" + ",".join(f"{a}-{b}" for a, b in spans))
    assert parts(headers, body) == [(f"bytes {a}-{b}/{HUGE}", content(a, b + 1)) for a, b in spans]
    assert client.ask(f"/cache{path}", "bytes=-3")[2] == content(HUGE - 3, HUGE)
    for edge in EDGES[:2]:  # half of it is here
        a, b = edge - 20_000, edge + 20_000
        assert client.ask(f"/cache{path}", f"bytes={a}-{b - 1}")[2] == content(a, b)
    assert origin.sent[path] < 1 << 20


async def test_r25_the_root_door_reads_beyond_4_gib_exactly(caching):
    wire = await caching.dial()
    handle = await wire.open(f"/cache/{HUGE}/huge-root")
    for _ in range(2):
        for edge in EDGES:
            a, b = edge - 5000, min(edge + 5000, HUGE)
            assert await wire.read(handle, a, b - a) == content(a, b)
            assert await wire.pages(handle, a, b - a) == content(a, b)
        spans = [(edge - 3, edge + 3) for edge in EDGES]
        assert await vector(wire, handle, spans) == [content(a, b) for a, b in spans]
    for edge in EDGES[:2]:  # half of it is here
        a, b = edge - 20_000, edge + 20_000
        assert await wire.pages(handle, a, b - a) == content(a, b)
    await wire.close()


@pytest.fixture
def stalling(origin):
    """An origin that gives nothing beyond 2 MiB of a file."""
    origin.stall = (2 << 20) + 5
    origin.stuck.clear()
    origin.left.clear()
    yield origin
    origin.stall = None


def vanish(sock):
    """Close as a program that is killed in the middle: what is on its way to it is refused."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_r26_a_client_that_goes_away_stops_the_fetch_and_what_came_is_kept(
    caching, clients, stalling, scheme
):
    path, client = f"/{64 << 20}/left-{scheme}", Client(caching, scheme)
    client._to.request("GET", f"/cache{path}")
    answer = client._to.getresponse()
    assert answer.read(200_000) == content(0, 200_000)
    assert stalling.stuck.wait(10)
    vanish(client._to.sock)
    answer.close()
    client.close()
    assert stalling.left.wait(10)  # the cache has hung up on the origin
    assert stalling.sent[path] < 4 << 20
    kept = clients[scheme].ask(f"/cache{path}", "bytes=0-199999", Cache_Control="only-if-cached")
    assert (kept[0], kept[2] == content(0, 200_000)) == (206, True)


@pytest.mark.parametrize("how", ["read", "pgread", "readv"])
async def test_r26_the_same_for_a_root_client(caching, clients, stalling, how):
    path = f"/{64 << 20}/left-{how}"
    wire = await caching.dial()
    handle = await wire.open(f"/cache{path}")
    code, body, data = Code.READ, P_READ.pack(handle, 0, 8 << 20), bytes(8)
    if how == "pgread":
        code, data = Code.PGREAD, b"\0\0"
    elif how == "readv":
        code, body = Code.READV, bytes(16)
        data = b"".join(frames.SEGMENT.pack(handle, 1 << 20, at << 20) for at in range(8))

    def kept():
        return clients["http"].ask(f"/cache{path}", "bytes=0-199999", Cache_Control="only-if-cached")

    wire.send(code, body, data)
    assert await asyncio.to_thread(stalling.stuck.wait, 10)
    async with asyncio.timeout(10):  # elements come side by side: one may wait before another has come
        while (await asyncio.to_thread(kept))[0] != 206:
            await asyncio.sleep(0.01)
    vanish(wire.writer.get_extra_info("socket"))
    await wire.close()
    assert await asyncio.to_thread(stalling.left.wait, 10)
    assert stalling.sent[path] < 4 << 20
    status, _, found = kept()
    assert (status, found == content(0, 200_000)) == (206, True)


def under_way(caching):
    """The requests of a cache that its origin has not answered."""
    entries = tuple(caching.store.catalogue._entries.values())
    return [flight for entry in entries for flight in tuple(entry.fetcher._flights)]


async def test_r26_a_fetch_goes_on_for_those_who_stay(caching, stalling):
    path, at = f"/{8 << 20}/stayed", 4 << 20
    wires = [await caching.dial() for _ in range(2)]
    handles = [await wire.open(f"/cache{path}") for wire in wires]
    for wire, handle in zip(wires, handles, strict=True):
        wire.send(Code.READ, P_READ.pack(handle, at, 100), bytes(8))
        assert await asyncio.to_thread(stalling.stuck.wait, 10)
    asked, there = stalling.asked[path], len(caching.listener._hub.connections)
    async with asyncio.timeout(10):  # until both want the same
        while not any(flight.wanted == 2 for flight in under_way(caching)):
            await asyncio.sleep(0.01)
    vanish(wires[0].writer.get_extra_info("socket"))
    await wires[0].close()
    while len(caching.listener._hub.connections) == there:
        await asyncio.sleep(0.01)
    stalling.stall = None
    assert await asyncio.wait_for(wires[1].one(), 10) == (
        wires[1].stream,
        Status.OK,
        content(at, at + 100),
    )
    assert stalling.asked[path] == asked
    await wires[1].close()


NAMES = ["a%20b", "a+b", "a%2Bb", "a%23b", "a%25b", "%C3%A9", "%2520", "a%3Fb", "%5B%5D%7C"]


@pytest.mark.parametrize("name", NAMES)
async def test_r27_a_name_is_decoded_once_and_is_the_same_at_every_door(caching, clients, origin, name):
    plain = unquote(name)
    sent = f"/{S}/names/" + quote(plain, safe="+")
    assert clients["http"].ask(f"/cache/{S}/names/{name}")[::2] == (200, content(0, S))
    asked = {path: count for path, count in origin.asked.items() if "/names/" in path and count}
    assert unquote(sent) in {unquote(path) for path in asked}
    total = sum(origin.asked.values())
    for other in (f"/cache/{S}//names/{name}", f"/cache/{S}/names/./{name}", f"/cache/{S}/names/{name}/"):
        assert clients["https"].ask(other)[1]["x-cache"] == "HIT"
    if "?" not in plain:
        wire = await caching.dial()
        for other in (f"/cache//{S}/names/{plain}", f"//cache/{S}/names/{plain}/"):
            assert await wire.read(await wire.open(other), 0, S) == content(0, S)
        await wire.close()
    assert sum(origin.asked.values()) == total


def test_r28_what_is_not_there_or_not_allowed_is_said_and_not_kept_for_long(caching, clients, origin):
    client = clients["http"]
    origin.things |= {"/no/right": Thing(5, status=403), "/gone": Thing(5, status=410)}
    for path, expected in (("/no/file", 404), ("/gone", 404), ("/no/right", 403)):
        for span in (None, "bytes=0-3"):
            status, _, text = client.ask(f"/cache{path}", span)
            assert (status, path.encode() in text) == (expected, True), text
    assert client.ask("/closed/5/f")[0] == 401
    assert client.ask("/nowhere/5/f")[0] == 404
    origin.things |= {path: Thing(5) for path in ("/no/file", "/gone", "/no/right")}
    assert client.ask("/cache/no/right")[0] == 200
    caching.clock.ahead += 31
    for path in ("/no/file", "/gone"):
        assert client.ask(f"/cache{path}")[::2] == (200, content(0, 5))


async def test_r28_the_root_door_says_the_same(caching, origin):
    wire = await caching.dial()
    origin.things |= {"/root/right": Thing(5, status=403), "/root/gone": Thing(5, status=410)}
    for path, expected in (("/root/file", 3011), ("/root/gone", 3011), ("/root/right", 3010)):
        for code, body in (
            (Code.OPEN, P_OPEN.pack(0, Open.READ, 0)),
            (Code.STAT, P_STAT.pack(0, bytes(4))),
        ):
            number, text = await wire.refused(code, body, f"/cache{path}".encode())
            assert (number, path in text) == (expected, True), text
    asked = origin.asked.copy()
    for path in ("/root/file", "/root/gone"):
        await wire.refused(Code.OPEN, P_OPEN.pack(0, Open.READ, 0), f"/cache{path}".encode())
    assert origin.asked == asked, "what is not there is remembered"
    assert (await wire.refused(Code.OPEN, P_OPEN.pack(0, Open.READ, 0), b"/closed/5/f"))[0] == 3030
    assert (await wire.refused(Code.OPEN, P_OPEN.pack(0, Open.READ, 0), b"/nowhere/5/f"))[0] == 3011
    origin.things |= {path: Thing(5) for path in ("/root/file", "/root/gone", "/root/right")}
    assert await wire.read(await wire.open("/cache/root/right"), 0, 5) == content(0, 5)
    caching.clock.ahead += 31
    for path in ("/root/file", "/root/gone"):
        assert await wire.read(await wire.open(f"/cache{path}"), 0, 5) == content(0, 5)
    await wire.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("said", ["Bearer None", "Bearer a.b.c"])
def test_a_token_that_is_none_harms_nothing_public(caching, clients, scheme, said):
    client = clients[scheme]
    path = prepared(caching, client, "warm", S)
    for method, status in (("GET", 200), ("HEAD", 200), ("PROPFIND", 207)):
        headers = {"Authorization": said, "Depth": "0"}
        assert client.ask(f"/cache{path}", method=method, **headers)[0] == status
        assert client.ask(f"/closed{path}", method=method, **headers)[0] == 401
    assert client.ask(f"/cache{path}", method="DELETE", Authorization=said)[0] == 401


# root://

SIZES = [0, 1, 4095, 4096, 4097, (2 << 20) - 1, 2 << 20, (2 << 20) + 1]


def spans_of(size):
    edges = {0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5, size // 2, size - PAGE, size - 1, size}
    found = [(at, at + n) for at in sorted(edges) if at >= 0 for n in (1, 100, PAGE, 3 * PAGE + 1)]
    return [*found, (0, size), (0, size + 10), (size, size + 10), (size + 5, size + 10)]


async def vector(wire, handle, spans):
    """What one readv gives for each span."""
    asked = b"".join(frames.SEGMENT.pack(handle, b - a, a) for a, b in spans)
    status, body = await wire.ask(Code.READV, bytes(16), asked)
    assert status == Status.OK, body[:200]
    found, at = [], 0
    for a, b in spans:
        assert frames.SEGMENT.unpack_from(body, at) == (handle, b - a, a)
        found.append(body[at + 16 : at + 16 + b - a])
        at += 16 + b - a
    assert at == len(body)
    return found


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["read", "pgread", "readv"])
@pytest.mark.parametrize("size", SIZES)
async def test_the_root_door_gives_the_same_bytes(caching, clients, origin, how, state, size):
    """R1-R7, R9, R11, R14, R15, R23 as root:// can ask: the end clips a read and refuses a readv."""
    path = prepared(caching, clients["http"], state, size)
    sent = origin.sent[path]
    wire = await caching.dial()
    status, said = await wire.ask(Code.STAT, frames.P_STAT.pack(0, bytes(4)), f"/cache{path}".encode())
    assert (status, stat_line(said[:-1].decode()).size) == (Status.OK, size)
    handle = await wire.open(f"/cache{path}")
    spans = spans_of(size)
    if how == "readv":
        within = [(a, b) for a, b in spans if b <= size]
        if within:
            some = [(a, min(b, a + 2_000_000)) for a, b in within]
            assert await vector(wire, handle, some) == [content(a, b) for a, b in some]
            assert await vector(wire, handle, some[::-1]) == [content(a, b) for a, b in some[::-1]]
        past = frames.SEGMENT.pack(handle, 2, size - 1 if size else 0)
        await wire.refused(Code.READV, bytes(16), past)
    else:
        for a, b in spans:
            get = wire.read if how == "read" else wire.pages
            assert await get(handle, a, b - a) == content(a, min(b, size)) if a < size else True, (a, b)
            if a >= size and b > a:
                assert await get(handle, a, b - a) == b""
    if state == "warm":
        assert origin.sent[path] == sent
    assert origin.sent[path] <= size
    await wire.close()
