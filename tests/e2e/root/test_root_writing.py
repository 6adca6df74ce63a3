"""Writing over root:// on real sockets: what is published, and what is left when a client goes away."""

import asyncio
import os
import zlib
from random import Random

import pytest

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import (
    P_HANDLE,
    P_MKDIR,
    P_MV,
    P_OPEN,
    P_PGWRITE,
    P_STAT,
    P_WRITE,
    Code,
    Open,
    Status,
)
from doma.net.xroot_pages import corrections, interleaved
from tests.e2e.root.conftest import Told

NEW = Open.NEW | Open.UPDATE | Open.MKPATH | Open.RETSTAT
CHUNK = 8 << 20


def hidden(server) -> list[str]:
    """Temporaries that are there."""
    return [name for _, _, names in os.walk(server.folder / "own" / ".doma" / "new") for name in names]


@pytest.fixture
async def wire(server, token):
    one = await server.dial(cgi=f"xrd.appname=test&authz=Bearer%20{token()}".encode())
    yield one
    await one.close()


async def start(wire, path: str, options: Open = NEW) -> bytes:
    handle: bytes = await wire.open(path, options, 0o644)
    return handle


async def settled(condition) -> bool:
    for _ in range(2000):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_large_file_lands_whole_with_requests_in_flight(server, wire):
    data = Random(1).randbytes(3 * CHUNK + 12345)
    handle = await start(wire, f"/own/new/dir/big?oss.asize={len(data)}")
    asked = [
        wire.send(
            Code.PGWRITE,
            P_PGWRITE.pack(handle, at, 0, 0),
            interleaved(at, data[at : at + CHUNK]),
        )
        for at in range(0, len(data), CHUNK)
    ]
    answered = [await asyncio.wait_for(wire.one(), 30) for _ in asked]
    assert sorted(stream for stream, _, _ in answered) == asked
    assert {status for _, status, _ in answered} == {Status.STATUS}
    place = server.folder / "own" / "new" / "dir" / "big"
    assert not place.exists()
    assert await wire.ask(Code.CLOSE, P_HANDLE.pack(handle)) == (Status.OK, b"")
    assert place.read_bytes() == data
    query = frames.P_QUERY.pack(3, bytes(4))
    status, told = await wire.ask(Code.QUERY, query, b"/own/new/dir/big")
    assert (status, told) == (Status.OK, f"adler32 {zlib.adler32(data):08x}\0".encode())


async def test_a_close_in_the_same_breath_waits_for_the_writes(server, wire):
    handle = await start(wire, "/own/f2")
    for at in range(20):
        wire.send(Code.WRITE, P_WRITE.pack(handle, at * 1000, 0), bytes([at]) * 1000)
    last = wire.send(Code.CLOSE, P_HANDLE.pack(handle))
    answers = {(await asyncio.wait_for(wire.one(), 20))[:2] for _ in range(21)}
    assert answers == {(stream, Status.OK) for stream in range(last - 20, last + 1)}
    assert (server.folder / "own" / "f2").read_bytes() == b"".join(bytes([at]) * 1000 for at in range(20))


async def test_two_streams_that_overtake_each_other_make_one_file(server, wire):
    data = Random(2).randbytes(900_000)
    handle = await start(wire, "/own/crossed")
    pieces = [(at, data[at : at + 100_000]) for at in range(0, len(data), 100_000)]
    for at, piece in pieces[1::2] + pieces[::2]:
        assert await wire.ask(Code.WRITE, P_WRITE.pack(handle, at, 0), piece) == (Status.OK, b"")
    assert (await wire.ask(Code.CLOSE, P_HANDLE.pack(handle)))[0] == Status.OK
    assert (server.folder / "own" / "crossed").read_bytes() == data


async def test_a_page_damaged_on_its_way_is_asked_for_and_comes_again(server, wire):
    data = Random(3).randbytes(40_000)
    handle = await start(wire, "/own/repaired")
    sent = bytearray(interleaved(0, data))
    sent[4100 + 77] ^= 4
    status, told = await wire.ask(Code.PGWRITE, P_PGWRITE.pack(handle, 0, 0, 0), bytes(sent))
    assert status == Status.STATUS
    assert corrections(told[24:], 0, len(data)) == [(4096, 4096)]
    again = interleaved(4096, data[4096:8192])
    status, told = await wire.ask(Code.PGWRITE, P_PGWRITE.pack(handle, 4096, 0, 1), again)
    assert (status, told[24:]) == (Status.STATUS, b"")
    assert (await wire.ask(Code.CLOSE, P_HANDLE.pack(handle)))[0] == Status.OK
    assert (server.folder / "own" / "repaired").read_bytes() == data


async def test_a_client_that_vanishes_leaves_what_was_there_before(server, wire, token):
    other = await server.dial(cgi=f"authz=Bearer%20{token()}".encode())
    before = (server.folder / "own" / "f").read_bytes()
    handle = await start(other, "/own/f", Open.DELETE | Open.UPDATE)
    await other.ask(Code.WRITE, P_WRITE.pack(handle, 0, 0), b"half of")
    second = await start(other, "/own/never")
    other.send(Code.WRITE, P_WRITE.pack(second, 0, 0), bytes(5_000_000))
    assert len(hidden(server)) == 2
    other.writer.transport.abort()
    assert await settled(lambda: not hidden(server))
    assert (server.folder / "own" / "f").read_bytes() == before
    assert (await wire.refused(Code.STAT, P_STAT.pack(0, bytes(4)), b"/own/never"))[0] == 3011


async def test_a_request_that_is_cut_in_the_middle_publishes_nothing(server, token):
    one = await server.dial(cgi=f"authz=Bearer%20{token()}".encode())
    handle = await start(one, "/own/cut?oss.asize=300000")
    whole = frames.request(99, Code.WRITE, P_WRITE.pack(handle, 0, 0), bytes(300_000))
    one.writer.write(whole[:200_000])
    await one.writer.drain()
    one.writer.write_eof()
    assert await one.ended()
    await one.close()
    assert await settled(lambda: not hidden(server))
    assert not (server.folder / "own" / "cut").exists()


async def test_a_failed_write_is_told_at_the_write_and_at_the_close(server, wire):
    handle = await start(wire, "/own/short?oss.asize=10")
    code, text = await wire.refused(Code.WRITE, P_WRITE.pack(handle, 0, 0), bytes(11))
    assert (code, "10 were announced" in text) == (3026, True)
    assert text.startswith("/own/short:")
    assert (await wire.refused(Code.CLOSE, P_HANDLE.pack(handle)))[0] == 3026
    assert (await wire.refused(Code.CLOSE, P_HANDLE.pack(handle)))[0] == 3004
    assert hidden(server) == []


async def test_handles_are_for_what_they_were_opened_for(server, wire):
    reading, writing = await wire.open("/own/f"), await start(wire, "/own/w")
    assert (await wire.refused(Code.WRITE, P_WRITE.pack(reading, 0, 0), b"x"))[0] == 3000
    assert (await wire.refused(Code.READ, frames.P_READ.pack(writing, 0, 10)))[0] == 3000
    assert (await wire.refused(Code.WRITE, P_WRITE.pack(b"\0\0\0\0", 0, 0), b"x"))[0] == 3004
    assert await wire.ask(Code.SYNC, P_HANDLE.pack(reading)) == (Status.OK, b"")


async def test_nobody_writes_without_a_token_or_where_nothing_is_written(server, wire):
    anybody = await server.dial()
    body = P_OPEN.pack(0o644, NEW, 0)
    assert (await anybody.refused(Code.OPEN, body, b"/pub/x"))[0] == 3030
    for code, data in (
        (Code.RM, b"/pub/f"),
        (Code.RMDIR, b"/pub/f"),
        (Code.MKDIR, b"/pub/d"),
        (Code.CHMOD, b"/pub/f"),
        (Code.TRUNCATE, b"/pub/f"),
    ):
        assert (await anybody.refused(code, frames.NOTHING, data))[0] == 3030
    assert (await anybody.refused(Code.MV, P_MV.pack(6), b"/pub/f /pub/g"))[0] == 3030
    await anybody.close()
    assert (await wire.refused(Code.OPEN, body, b"/data/x"))[0] == 3025
    assert (server.folder / "pub" / "f").exists()


async def test_a_narrow_token_in_the_path_wins_over_the_session(server, wire, token):
    narrow = token("storage.create:/mine")
    handle = await start(wire, f"/own/mine/a?authz=Bearer%20{narrow}")
    await wire.ask(Code.WRITE, P_WRITE.pack(handle, 0, 0), b"1")
    assert (await wire.ask(Code.CLOSE, P_HANDLE.pack(handle)))[0] == Status.OK
    body = P_OPEN.pack(0o644, NEW, 0)
    code, text = await wire.refused(Code.OPEN, body, f"/own/theirs?authz=Bearer%20{narrow}".encode())
    assert (code, narrow in text) == (3010, False)
    body = P_OPEN.pack(0o644, Open.DELETE, 0)
    assert (await wire.refused(Code.OPEN, body, f"/own/mine/a?authz={narrow}".encode()))[0] == 3010


async def test_the_monitoring_is_told_how_each_upload_ended(serve, token):
    told = Told()
    async with serve(observer=told) as server:
        one = await server.dial(cgi=f"authz=Bearer%20{token()}".encode())
        for name, size in (("good", 3), ("short", 4), ("lost", 3)):
            handle = await start(one, f"/own/{name}?oss.asize={size}")
            await one.ask(Code.WRITE, P_WRITE.pack(handle, 0, 0), b"123")
            if name != "lost":
                await one.ask(Code.CLOSE, P_HANDLE.pack(handle))
        await one.close()
        assert await settled(lambda: len(told.over) == 3)
    assert [file.path for file in told.open] == ["/own/good", "/own/short", "/own/lost"]
    assert [(file.outcome, forced, file.writes.total) for file, forced in told.over] == [
        ("complete", False, 3),
        ("error:wrong-size", False, 3),
        ("partial", True, 3),
    ]
    assert all(file.writing and file.client.subject == "ada" for file in told.open)


async def test_names_are_made_moved_and_removed(server, wire):
    assert (await wire.ask(Code.MKDIR, P_MKDIR.pack(1, 0o755), b"/own/a/b"))[0] == Status.OK
    assert (await wire.ask(Code.MV, P_MV.pack(6), b"/own/f /own/a/b/g"))[0] == Status.OK
    assert (server.folder / "own" / "a" / "b" / "g").exists()
    code, text = await wire.refused(Code.RMDIR, frames.NOTHING, b"/own/a/b")
    assert (code, text.startswith("/own/a/b:")) == (3018, True)
    for code, path in ((Code.RM, b"/own/a/b/g"), (Code.RMDIR, b"/own/a/b"), (Code.RMDIR, b"/own/a")):
        assert (await wire.ask(code, frames.NOTHING, path))[0] == Status.OK
    assert (await wire.refused(Code.MV, P_MV.pack(30000), b"/own/a /own/b"))[0] == 3000


@pytest.mark.parametrize(
    "code", [Code.STAT, Code.DIRLIST, Code.RM, Code.MKDIR, Code.OPEN, Code.LOCATE, Code.MV]
)
async def test_hostile_paths_get_one_clear_error_and_the_connection_goes_on(server, wire, code):
    for path in (
        b"/own/../../etc/passwd",
        b"/own/a/..",
        b"relative",
        b"/own/.doma/new",
        b"/own/\xff\xfe",
        b"/own/a\nb",
        b"/own/" + b"x" * 17000,
        b"/own" + b"/y" * 4000,
        b"/none/x",
        b"/own/f?authz=Bearer%20rubbish",
        b"\0",
    ):
        status, said = await wire.ask(code, frames.NOTHING, path)
        if (code, path) == (Code.LOCATE, b"\0"):
            continue
        assert status == Status.ERROR, path
        assert frames.number_and_text(said)[0] in {3000, 3002, 3004, 3010, 3011, 3030}, (path, said)
    assert (await wire.ask(Code.PING))[0] == Status.OK


ENDING = {Code.WRITEV, Code.CHKPOINT, Code.WRITE, Code.PGWRITE}
"""Requests that may bring data beside their own, after which nothing can be understood."""
SETTING_UP = {Code.PROTOCOL, Code.LOGIN, Code.AUTH, Code.BIND, Code.SIGVER}


async def test_random_requests_never_break_the_door(server, wire, token):
    rng = Random(5)
    for _ in range(300):
        code = rng.choice([code for code in Code if code not in SETTING_UP | ENDING])
        body = rng.randbytes(16)
        data = rng.choice([b"", b"/own/f", rng.randbytes(rng.randrange(200)), b"\0" * 40])
        status, said = await wire.ask(code, body, data)
        if status == Status.ERROR:
            number, text = frames.number_and_text(said)
            assert 3000 <= number <= 3035
            assert "the log of the server" not in text, (code, body, data)
    assert (await wire.ask(Code.PING))[0] == Status.OK


@pytest.mark.parametrize("code", sorted(ENDING))
async def test_data_that_come_elsewhere_end_the_connection_with_an_error(server, wire, code):
    number, _ = await wire.refused(code, bytes([0] * 12 + [1] + [0] * 3), bytes(16))
    assert number == 3013
    assert await wire.ended()
