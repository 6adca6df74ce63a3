"""Clients that send nonsense, stand still, or ask for more than they take."""

import asyncio
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Status
from tests.e2e.root.conftest import CONTENT, Wire

OPEN = frames.P_OPEN.pack(0, 0x10, 0)
LOGIN = frames.request(1, Code.LOGIN, frames.P_LOGIN.pack(7, b"eve", 0, 9, 0x85), b"")
HELLO = frames.HELLO.pack(*frames.GREETING)
KNOWN = [int(code) for code in Code]


async def still_serves(server):
    wire = await server.dial()
    assert await wire.read(await wire.open("/pub/f"), 0, 9) == CONTENT[:9]
    await wire.close()


@pytest.mark.parametrize(
    "first", [bytes(20), bytes(200), HELLO[:-1] + b"\0", bytes(12) + b"GET / HTTP/1.1\r\n\r\n"]
)
async def test_garbage_instead_of_a_hello_is_cut_off(server, first):
    wire = await Wire.dial(server.address)
    wire.writer.write(first)
    assert await asyncio.wait_for(wire.reader.read(), 20) == b""
    await wire.close()
    await still_serves(server)


async def test_a_client_that_never_logs_in_is_closed_in_time(serve):
    async with serve(head_timeout=0.5) as server:
        silent = []
        for said in (b"\0", HELLO[:10], HELLO, HELLO + LOGIN[:10]):
            silent.append(await Wire.dial(server.address))
            silent[-1].writer.write(said)
        for wire in silent:
            assert await wire.ended()
            await wire.close()
        logged_in = await server.dial()
        await still_serves(server)
        assert await logged_in.ask(Code.PING) == (0, b"")
        await logged_in.close()


@pytest.mark.parametrize("length", [-1, -(2**31), 2**31 - 1, (1 << 20) + 1])
@pytest.mark.parametrize("code", [Code.STAT, Code.READ, Code.WRITE, 4711])
async def test_data_of_an_impossible_length_is_refused_and_ends_it(wire, server, code, length):
    wire.writer.write(frames.REQUEST.pack(9, code, bytes(16), length) + bytes(100_000))
    stream, status, body = await asyncio.wait_for(wire.one(), 20)
    assert (stream, status) == (9, Status.ERROR)
    assert frames.number_and_text(body)[0] == 3002
    assert await wire.ended()
    await still_serves(server)


@pytest.mark.parametrize("code", [0, 2999, 3033, 65535, Code.GPFILE, Code.CLONE])
async def test_an_unknown_request_is_refused_and_its_data_dropped(wire, code):
    number, _ = await wire.refused(code, bytes(16), bytes(200_000))
    assert number in {3006, 3013}
    assert await wire.ask(Code.PING) == (0, b"")


@pytest.mark.parametrize(
    ("code", "body"),
    [(Code.WRITEV, bytes(16)), (Code.CHKPOINT, bytes(16)), (Code.WRITE, bytes(12) + b"\1" + bytes(3))],
)
@pytest.mark.parametrize("length", [16, 200_000])
async def test_data_that_cannot_be_told_from_requests_end_the_connection(wire, server, code, body, length):
    wire.writer.write(frames.REQUEST.pack(9, code, body, length) + bytes(16))
    _, status, said = await asyncio.wait_for(wire.one(), 20)
    assert (status, frames.number_and_text(said)[0]) == (Status.ERROR, 3013)
    assert await wire.ended()
    await still_serves(server)


@pytest.mark.parametrize("code", [c for c in KNOWN if c not in {Code.PROTOCOL, Code.LOGIN, Code.BIND}])
async def test_before_login_nothing_is_answered(server, code):
    wire = await server.dial(login=False)
    await wire.greet()
    number, _ = await wire.refused(code, bytes(16), b"/pub/f")
    assert number == 3006
    if code != Code.AUTH:
        assert await wire.ended()
    await wire.close()


@pytest.mark.parametrize("cut", [1, 23, 24, 25, 40, 41])
async def test_a_stream_that_stops_in_a_frame_costs_nothing(wire, server, cut):
    request = frames.request(5, Code.OPEN, OPEN, b"/pub/f" + bytes(30))
    wire.writer.write(request[:cut])
    await wire.close()
    while server.door.sessions:
        await asyncio.sleep(0.01)
    await still_serves(server)


async def test_answers_that_come_after_the_last_one_are_dropped(server, caplog):
    """Requests are under way when one comes after which nothing can be understood."""
    wire = await server.dial()
    many = b"".join(frames.request(100 + i, Code.STAT, bytes(16), b"/pub/none") for i in range(40))
    wire.writer.write(many + frames.REQUEST.pack(7, Code.STAT, bytes(16), -1))
    while (await asyncio.wait_for(wire.one(), 20))[0] != 7:
        pass
    assert await wire.ended()
    await wire.close()
    await still_serves(server)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_requests_may_come_in_any_pieces(server):
    wire = await Wire.dial(server.address)
    said = HELLO + frames.request(0, Code.PROTOCOL, frames.P_PROTOCOL.pack(0x520, 0, 3)) + LOGIN
    said += frames.request(2, Code.OPEN, OPEN, b"/pub/f")
    for at in range(0, len(said), 7):
        wire.writer.write(said[at : at + 7])
        await wire.writer.drain()
        await asyncio.sleep(0)
    seen = [await asyncio.wait_for(wire.one(), 20) for _ in range(4)]
    assert [status for _, status, _ in seen] == [0, 0, 0, 0]
    await wire.close()


async def test_a_half_closed_client_gets_what_it_asked_for(wire):
    handle = await wire.open("/pub/f")
    wire.send(Code.READ, frames.P_READ.pack(handle, 0, 3_000_000))
    wire.writer.write_eof()
    got = b""
    while len(got) < len(CONTENT):
        got += (await asyncio.wait_for(wire.one(), 20))[2]
    assert got == CONTENT
    assert await wire.ended()


def unsent(server):
    return [c.transport.get_write_buffer_size() for c in server.listener._hub.connections]


async def test_who_stops_reading_holds_little_and_delays_nobody(server):
    """64 requests of 3 MB each are taken; what waits for the client stays below a few MiB."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, server.address)
    greedy = Wire(*await asyncio.open_connection(sock=raw, limit=8192))
    try:
        await greedy.login()
        handle = await greedy.open("/pub/f")
        for code in (Code.PGREAD, Code.READ):
            for _ in range(200):
                greedy.send(code, frames.P_READ.pack(handle, 0, 3_000_000))
        async with asyncio.timeout(20):
            while not max(unsent(server)):
                await asyncio.sleep(0.01)
        for _ in range(20):
            await still_serves(server)
        connection = server.door.sessions[greedy.id].streams[0]
        assert len(connection._calls) <= 66
        assert 0 < max(unsent(server)) < 4 << 20
    finally:
        greedy.writer.transport.abort()
    while server.door.sessions:
        await asyncio.sleep(0.01)
    await still_serves(server)


async def test_who_stands_still_with_an_answer_is_cut(serve):
    async with serve(body_timeout=1) as server:
        greedy = await server.dial()
        greedy.reader._limit = 1
        handle = await greedy.open("/pub/f")
        for _ in range(20):
            greedy.send(Code.READ, frames.P_READ.pack(handle, 0, 3_000_000))
        begun = await server.dial()
        begun.writer.write(frames.REQUEST.pack(5, Code.STAT, bytes(16), 100) + b"/pu")
        assert await begun.ended()
        while server.door.sessions:
            await asyncio.sleep(0.05)
        await greedy.close()
        await begun.close()


async def test_hundreds_of_idle_connections_are_borne(server):
    wires = [await server.dial() for _ in range(300)]
    assert server.listener.connections == 300
    assert len(server.door.sessions) == 300
    await still_serves(server)
    for wire in wires:
        wire.writer.transport.abort()
    while server.door.sessions:
        await asyncio.sleep(0.01)


def text_of(answer):
    return frames.number_and_text(answer)[1]


async def test_no_answer_quotes_a_token(wire, token):
    secret = token()
    for path in (
        f"/none/f?authz={secret}",
        f"/pub/../x?authz=Bearer%20{secret}x",
        f"/own/none?access_token={secret}",
    ):
        for code, body in ((Code.OPEN, OPEN), (Code.STAT, bytes(16)), (Code.DIRLIST, bytes(16))):
            status, answer = await wire.ask(code, body, path.encode())
            assert status == Status.ERROR
            assert secret[:40] not in text_of(answer)


READ_FIRST = struct.pack(">4sqi", b"\0\0\0\1", 0, 9)
BODIES = st.one_of(st.binary(min_size=16, max_size=16), st.sampled_from([bytes(16), READ_FIRST]))
PATHS = st.sampled_from([b"/pub/f", b"/own/f", b"/pub/new?x=1", b"/", b"*"])
requests = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(KNOWN), st.integers(0, 65535)),
        BODIES,
        st.one_of(st.binary(max_size=60), PATHS),
    ),
    max_size=6,
)


async def converse(server, asked, tail):
    wire = await server.dial()
    await wire.open("/pub/f")
    wire.writer.write(b"".join(frames.request(100 + i, *one) for i, one in enumerate(asked)) + tail)
    wire.writer.write_eof()
    seen = {}
    while True:
        try:
            stream, status, body = await asyncio.wait_for(wire.one(), 20)
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        assert status == 0 or 4000 <= status <= 4007
        if status != Status.OKSOFAR and stream >= 100 and stream < 100 + len(asked):
            assert stream not in seen
            seen[stream] = body
        if status == Status.ERROR:
            assert "failed here" not in frames.number_and_text(body)[1]
    await wire.close()


async def test_whatever_is_sent_each_answer_is_a_frame_and_nothing_fails_inside(server):
    """Every request gets one final answer at most, under its number; none is an internal error."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=60)
    @given(asked=requests, tail=st.binary(max_size=30))
    def tried(asked, tail):
        asyncio.run_coroutine_threadsafe(converse(server, asked, tail), loop).result(60)

    await asyncio.to_thread(tried)
    await still_serves(server)
