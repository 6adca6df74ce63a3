"""Reading over root://: every byte, every length, every limit."""

import asyncio
import time

import pytest

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Status
from doma.net.xroot_text import stat_line
from doma.store.memory import MemoryStore
from tests.e2e.root.conftest import CONTENT, Told

SIZE = len(CONTENT)
EDGES = [0, 1, 4095, 4096, 4097, (1 << 20) - 1, (1 << 20) + 1, (2 << 20) + 5, SIZE - 1, SIZE]


class ColdStore(MemoryStore):
    """Nothing is at hand: everything goes the slow road."""

    def peek(self, path):
        return None


async def cold(data=CONTENT):
    store = ColdStore()
    upload = await store.create("/f")
    await upload.write(data)
    await upload.commit()
    return store


@pytest.fixture(params=["hot", "cold"])
async def server(serve, request):
    stores = {"pub": await cold()} if request.param == "cold" else {}
    async with serve(stores) as one:
        yield one


@pytest.mark.parametrize("start", EDGES)
async def test_a_range_gives_exactly_its_bytes(wire, start):
    handle = await wire.open("/pub/f")
    for length in (1, 4096, 65536, (2 << 20) + 7, SIZE):
        assert await wire.read(handle, start, length) == CONTENT[start : start + length]
        assert await wire.pages(handle, start, length) == CONTENT[start : start + length]


async def test_beyond_the_end_there_is_nothing_and_no_error(wire):
    handle = await wire.open("/pub/f")
    assert await wire.read(handle, SIZE, 10) == b""
    assert await wire.read(handle, SIZE + 10**12, 10) == b""
    assert await wire.read(handle, 5, 0) == b""
    assert await wire.pages(handle, SIZE + 1, 10) == b""


async def test_numbers_that_make_no_sense_are_refused(wire):
    handle = await wire.open("/pub/f")
    for code in (Code.READ, Code.PGREAD):
        for start, length in ((-1, 10), (0, -1)):
            number, text = await wire.refused(code, frames.P_READ.pack(handle, start, length))
            assert number == 3000
            assert "/pub/f" in text
    assert (await wire.refused(Code.PGREAD, frames.P_READ.pack(handle, 0, 0)))[0] == 3000
    assert (await wire.refused(Code.READ, frames.P_READ.pack(b"none", 0, 1)))[0] == 3004
    assert (await wire.refused(Code.READ, frames.P_READ.pack(handle, 0, 1), b"\3" + bytes(7)))[0] == 3000


async def test_an_open_gives_the_stat_line_where_it_is_asked_for(wire):
    status, body = await wire.ask(Code.OPEN, frames.P_OPEN.pack(0, 0x450, 0), b"/pub/f?oss.x=1")
    assert status == Status.OK
    assert body[4:12] == bytes(8)
    assert body[-1] == 0
    assert stat_line(body[12:-1].decode()).size == SIZE


async def test_what_cannot_be_opened_says_why(wire, server):
    (server.folder / "pub" / "d").mkdir()
    for path, code in (("/pub/none", 3011), ("/nowhere/f", 3011), ("/pub/../x", 3000), ("f", 3000)):
        number, text = await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), path.encode())
        assert number == code, text
        assert path.lstrip("/") in text
    assert (await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), b"/data/\xff"))[0] == 3000
    (server.folder / "data" / "d").mkdir()
    number, text = await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), b"/data/d")
    assert (number, text.startswith("/data/d:")) == (3016, True)


async def test_nothing_is_written_where_nobody_may_write(wire):
    number, text = await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x08, 0), b"/data/new")
    assert number == 3025
    assert "/data" in text


def vector(*parts):
    return b"".join(frames.SEGMENT.pack(handle, length, start) for handle, start, length in parts)


async def readv(wire, *parts, path_id=0):
    status, body = await wire.ask(Code.READV, frames.P_READV.pack(path_id), vector(*parts))
    assert status == Status.OK, body
    found, at = [], 0
    for handle, start, length in parts:
        assert frames.SEGMENT.unpack_from(body, at) == (handle, length, start)
        found.append(body[at + 16 : at + 16 + length])
        at += 16 + length
    assert at == len(body)
    return found


async def test_a_vector_of_ranges_of_several_files(wire):
    one, two = await wire.open("/pub/f"), await wire.open("/data/f")
    parts = [(one, 5, 10), (two, 100_000, 70_000), (one, 5, 10), (one, SIZE - 1, 1), (two, 0, 2_000_000)]
    assert await readv(wire, *parts) == [CONTENT[a : a + n] for _, a, n in parts]
    assert await readv(wire, (one, 9, 0), (one, 1, 1)) == [b"", CONTENT[1:2]]
    many = [(one, i * 2000, 1000) for i in range(1024)]
    assert await readv(wire, *many) == [CONTENT[a : a + n] for _, a, n in many]


async def test_a_long_vector_is_cut_between_its_elements_only(wire):
    handle = await wire.open("/pub/f")
    parts = [(handle, i * 100_000, 900_000) for i in range(20)]
    mine = wire.send(Code.READV, frames.P_READV.pack(0), vector(*parts))
    seen, messages = 0, 0
    while True:
        stream, status, body = await asyncio.wait_for(wire.one(), 20)
        assert stream == mine
        messages += 1
        at = 0
        while at < len(body):
            _, length, start = frames.SEGMENT.unpack_from(body, at)
            assert body[at + 16 : at + 16 + length] == CONTENT[start : start + 900_000]
            at, seen = at + 16 + length, seen + 1
        assert at == len(body)
        if status == Status.OK:
            break
    assert seen == 20
    assert messages > 3


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], 3000), ([(0, 0, -1)], 3000), ([(0, -1, 1)], 3000), ([(0, 0, 1)] * 1025, 3002),
        ([(0, 0, 2097137)], 3008), ([(0, SIZE - 5, 6)], 3007), ([(1, 0, 5)], 3004),
        ([(0, 0, 5), (0, SIZE, 1)], 3007),
    ],
    ids=["empty", "negative", "before", "many", "long", "end", "handle", "second"],
)  # fmt: skip
async def test_a_vector_beyond_the_limits_is_refused(wire, parts, code):
    handle = await wire.open("/pub/f")
    data = vector(*((handle if which == 0 else b"none", start, length) for which, start, length in parts))
    number, text = await wire.refused(Code.READV, frames.P_READV.pack(0), data)
    assert number == code, text
    assert await wire.read(handle, 0, 5) == CONTENT[:5]


async def test_a_crooked_vector_is_refused(wire):
    assert (await wire.refused(Code.READV, frames.P_READV.pack(0), bytes(17)))[0] == 3000


async def test_a_closed_handle_is_gone(wire):
    handle = await wire.open("/pub/f")
    assert await wire.ask(Code.CLOSE, frames.P_HANDLE.pack(handle)) == (0, b"")
    assert (await wire.refused(Code.CLOSE, frames.P_HANDLE.pack(handle)))[0] == 3004
    assert (await wire.refused(Code.READ, frames.P_READ.pack(handle, 0, 1)))[0] == 3004


async def test_a_session_has_an_end_of_handles(serve, monkeypatch):
    monkeypatch.setattr("doma.doors.root_call.MOST_FILES", 3)
    async with serve() as server:
        wire = await server.dial()
        handles = [await wire.open("/pub/f") for _ in range(3)]
        assert len(set(handles)) == 3
        assert (await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), b"/pub/f"))[0] == 3008
        await wire.ask(Code.CLOSE, frames.P_HANDLE.pack(handles[1]))
        assert await wire.read(await wire.open("/pub/f"), 0, 4) == CONTENT[:4]
        await wire.close()


async def test_what_began_on_one_version_never_mixes_with_another(wire, server):
    handle = await wire.open("/data/f")
    before = await wire.read(handle, 0, 1000)
    place = server.folder / "data"
    (place / "g").write_bytes(bytes(reversed(CONTENT)))
    (place / "g").rename(place / "f")
    assert before == CONTENT[:1000]
    assert await wire.read(handle, 1000, SIZE) == CONTENT[1000:]
    again = await wire.open("/data/f")
    assert await wire.read(again, 0, 1000) == CONTENT[:-1001:-1]
    await wire.close()


async def test_requests_are_answered_side_by_side(wire):
    """A thousand requests in one segment: each is answered once, under its own number."""
    handle = await wire.open("/pub/f")
    asked = {wire.send(Code.READ, frames.P_READ.pack(handle, i * 1000, 500)): i * 1000 for i in range(1000)}
    for _ in range(1000):
        stream, status, body = await asyncio.wait_for(wire.one(), 20)
        start = asked.pop(stream)
        assert (status, body) == (0, CONTENT[start : start + 500])
    assert not asked


async def test_who_reads_is_told_and_counted(serve):
    told, counted = Told(), []
    async with serve(observer=told, count=lambda *numbers: counted.append(numbers)) as server:
        wire = await server.dial()
        handle = await wire.open("/pub/f")
        await wire.read(handle, 0, 100_000)
        await wire.pages(handle, 0, 50_000)
        await readv(wire, (handle, 0, 10), (handle, 50, 20))
        await wire.ask(Code.CLOSE, frames.P_HANDLE.pack(handle))
        left = await wire.open("/data/f")
        await wire.read(left, 0, 5)
        await wire.close()
        while not told.gone:
            await asyncio.sleep(0.01)
        server.door.tell()
    (first, forced), (second, lost) = told.over
    assert (forced, lost) == (False, True)
    assert (first.path, first.client.app, first.client.name, first.client.pid) == (
        "/pub/f",
        "test",
        "ada",
        77,
    )
    assert (first.reads.count, first.reads.total, first.readvs.total, first.segments.count) == (
        2,
        150_000,
        30,
        2,
    )
    assert second.path == "/data/f"
    assert first.outcome == "partial"
    reads = [row for row in counted if row[2] == "GET"]
    assert sum(row[6] for row in reads) == 150_035
    assert sum(row[7] for row in reads) == 4
    assert {row[0] for row in counted} == {"root"}


async def test_a_token_is_asked_for_and_checked_at_every_request(serve, token):
    async with serve() as server:
        wire = await server.dial()
        number, text = await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), b"/own/f")
        assert number == 3030
        assert "BEARER_TOKEN" in text
        good, life = token(), 2.0
        for name in ("authz=Bearer%20", "access_token=", "authz=Bearer "):
            assert await wire.open(f"/own/f?{name}{good}")
        for bad in (good[:-4] + "AAAA", token(life=-100), ""):
            assert await wire.open(f"/pub/f?authz=Bearer%20{bad}"), "what is public needs no token"
        narrow = token("storage.read:/other")
        number, text = await wire.refused(
            Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), f"/own/f?authz={narrow}".encode()
        )
        assert number == 3010
        assert narrow not in text
        handle = await wire.open(f"/own/f?authz=Bearer%20{token(life=life)}")
        assert await wire.read(handle, 0, 4) == CONTENT[:4]
        end = time.time() + life + 1
        while time.time() < end:
            status, _ = await wire.ask(Code.READ, frames.P_READ.pack(handle, 0, 4))
            if status == Status.ERROR:
                break
            await asyncio.sleep(0.1)
        for code in (Code.READ, Code.PGREAD):
            number, text = await wire.refused(code, frames.P_READ.pack(handle, 0, 4))
            assert number == 3030
            assert "expired" in text
        assert (await wire.refused(Code.READV, bytes(16), vector((handle, 0, 4))))[0] == 3030
        await wire.close()
