"""How a root:// connection begins, grows further streams, and ends."""

import asyncio

import pytest

from doma.net import tls
from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Server, Status
from doma.net.xroot_text import ztn
from tests.e2e.root.conftest import CONTENT, Wire

OPEN = frames.P_OPEN.pack(0, 0x10, 0)
AUTH = frames.P_AUTH.pack(b"ztn\0")
HOST = frames.P_AUTH.pack(b"host")


@pytest.fixture
def trust(certificate):
    return tls.client_context(certificate.ca)


async def secure(server, trust, flags=0x06, cgi=b""):
    wire = await server.dial(login=False)
    security = await wire.login(cgi, flags, trust)
    return wire, security


async def bound(server, session):
    """A stream bound to a session: the connection and its path id."""
    wire = await server.dial(login=False)
    await wire.greet(expect=1)
    status, body = await wire.ask(Code.BIND, session.id)
    assert status == Status.OK
    return wire, body[0]


async def test_the_answer_to_protocol_says_what_there_is(server):
    wire = await server.dial(login=False)
    version, flags = await wire.greet(0x02)
    assert version == 0x520
    assert flags == Server.DATA | Server.PAGES | Server.HAVE_TLS
    await wire.close()


async def test_nobody_is_asked_to_authenticate_without_tls(server):
    wire = await server.dial(login=False)
    assert await wire.login() == b""
    assert len(wire.id) == 16
    number, _ = await wire.refused(Code.LOGIN, bytes(16))
    assert number == 3006
    assert await wire.ask(Code.PING) == (0, b"")
    await wire.close()


async def test_tls_comes_in_place_and_brings_the_token(server, trust, token):
    wire, security = await secure(server, trust)
    assert security == b"&P=ztn,0:16384:&P=host"
    assert (await wire.refused(Code.READ, frames.P_READ.pack(b"none", 0, 1)))[0] == 3004
    assert await wire.ask(Code.PING) == (0, b"")
    assert await wire.ask(Code.AUTH, AUTH, ztn(token()) + b"\0\0\0") == (0, b"")
    handle = await wire.open("/own/f")
    assert await wire.read(handle, 0, 3_000_000) == CONTENT
    assert await wire.pages(handle, 7, 2_500_000) == CONTENT[7:2_500_007]
    assert (await wire.refused(Code.OPEN, OPEN, f"/own/f?authz={token('storage.read:/x')}".encode()))[
        0
    ] == 3010
    await wire.close()


async def test_without_a_token_one_is_nobody_and_reads_what_is_public(server, trust, token):
    wire, _ = await secure(server, trust)
    assert await wire.ask(Code.AUTH, HOST, b"host\0") == (0, b"")
    assert await wire.read(await wire.open("/pub/f"), 0, 9) == CONTENT[:9]
    assert (await wire.refused(Code.OPEN, OPEN, b"/own/f"))[0] == 3030
    assert await wire.read(await wire.open(f"/own/f?authz={token()}"), 0, 9) == CONTENT[:9]
    await wire.close()


async def test_a_token_may_come_with_the_login(server, trust, token):
    wire, security = await secure(server, trust, cgi=f"xrd.rn=v1&authz=Bearer%20{token()}".encode())
    assert security == b""
    assert await wire.read(await wire.open("/own/f"), 0, 9) == CONTENT[:9]
    await wire.close()


async def test_nothing_else_is_answered_while_authentication_is_due(server, trust):
    wire, _ = await secure(server, trust)
    number, text = await wire.refused(Code.STAT, bytes(16), b"/pub/f")
    assert number == 3006
    assert "authenticate" in text
    assert await wire.ended()
    await wire.close()


async def test_three_bad_tokens_end_the_connection(serve, trust, token, monkeypatch):
    monkeypatch.setattr("doma.doors.root_session.PENALTY", 0.05)
    async with serve() as server:
        wire, _ = await secure(server, trust)
        bad = token()[:-4] + "AAAA"
        for credential in (b"zt", ztn(bad), ztn("x.y.z")):
            number, text = await wire.refused(Code.AUTH, AUTH, credential)
            assert number == 3030
            assert bad not in text
        assert await wire.ended()
        await wire.close()


async def test_a_strange_way_to_authenticate_is_refused(server, trust):
    wire, _ = await secure(server, trust)
    number, text = await wire.refused(Code.AUTH, frames.P_AUTH.pack(b"krb5"), b"krb5\0secret")
    assert number == 3030
    assert "ztn" in text
    await wire.close()


async def test_where_tls_is_demanded_a_client_without_it_is_told_so(serve, trust):
    async with serve(plain_http="never") as server:
        wire = await server.dial(login=False)
        _, flags = await wire.greet(0)
        assert flags & Server.TLS_LOGIN
        assert not flags & Server.GOTO_TLS
        number, text = await wire.refused(Code.LOGIN, bytes(16))
        assert number == 3028
        assert "roots://" in text
        assert await wire.ended()
        able, _ = await secure(server, trust, flags=0x02)
        assert await able.ask(Code.AUTH, HOST, b"host\0") == (0, b"")
        assert await able.read(await able.open("/pub/f"), 0, 9) == CONTENT[:9]
        await wire.close()
        await able.close()


async def test_answers_come_on_the_stream_that_the_client_names(server, wire):
    streams = [await bound(server, wire) for _ in range(3)]
    assert sorted(path_id for _, path_id in streams) == [1, 2, 3]
    handle = await wire.open("/pub/f")
    for size in (1000, 2_900_000):
        for stream, path_id in streams:
            plain = wire.send(Code.READ, frames.P_READ.pack(handle, 5, size), bytes([path_id]) + bytes(7))
            got = b""
            while len(got) < size:
                number, _, body = await asyncio.wait_for(stream.one(), 20)
                assert number == plain
                got += body
            assert got == CONTENT[5 : size + 5]
            wire.send(Code.PGREAD, frames.P_READ.pack(handle, 0, 4096), bytes([path_id, 0]))
            assert (await asyncio.wait_for(stream.one(), 20))[2][28:] == CONTENT[:4096]
            data = frames.SEGMENT.pack(handle, 5, 5)
            wire.send(Code.READV, frames.P_READV.pack(path_id), data)
            assert (await asyncio.wait_for(stream.one(), 20))[2] == data + CONTENT[5:10]
    await streams[1][0].close()
    while len(server.door.sessions[wire.id].streams) > 3:
        await asyncio.sleep(0.01)
    assert (await wire.refused(Code.READ, frames.P_READ.pack(handle, 0, 9), b"\2" + bytes(7)))[0] == 3000
    again, path_id = await bound(server, wire)
    assert path_id == 2
    await wire.close()
    for stream in (streams[0][0], streams[2][0], again):
        assert await stream.ended()
        await stream.close()


async def test_a_stream_is_bound_only_by_who_knows_the_session(server, wire):
    stranger = await server.dial(login=False)
    await stranger.greet(expect=1)
    number, _ = await stranger.refused(Code.BIND, bytes(16))
    assert number == 3011
    assert await stranger.refused(Code.STAT, bytes(16), b"/pub/f")
    assert await stranger.ended()
    many = [await bound(server, wire) for _ in range(15)]
    last = await server.dial(login=False)
    await last.greet(expect=1)
    assert (await last.refused(Code.BIND, wire.id))[0] == 3008
    for one, _ in many:
        await one.close()
    await last.close()
    await stranger.close()


async def test_a_session_under_tls_takes_no_stream_without(server, trust):
    wire, _ = await secure(server, trust)
    await wire.ask(Code.AUTH, HOST, b"host\0")
    plain = await server.dial(login=False)
    await plain.greet(expect=1)
    assert (await plain.refused(Code.BIND, wire.id))[0] == 3010
    await plain.close()
    await wire.close()


async def test_an_old_session_ends_when_its_client_says_so(server, wire):
    old = await server.dial()
    handle = await old.open("/pub/f")
    assert await old.read(handle, 0, 5) == CONTENT[:5]
    assert await wire.ask(Code.ENDSESS, bytes(16)) == (0, b"")
    assert await wire.ask(Code.ENDSESS, wire.id) == (0, b"")
    assert await wire.ask(Code.ENDSESS, old.id) == (0, b"")
    assert await old.ended()
    assert await wire.ask(Code.PING) == (0, b"")
    await old.close()


async def test_sigver_is_read_and_forgotten(wire):
    wire.send(Code.SIGVER, bytes(16), b"signature")
    assert await wire.ask(Code.PING) == (0, b"")


async def test_http_and_tls_go_on_beside_it_on_the_port(server):
    plain = await Wire.dial(server.address)
    plain.writer.write(b"GET /pub/f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await plain.reader.read(20)).startswith(b"HTTP/1.1")
    await plain.close()


async def test_a_stop_lets_answers_end_and_closes_what_is_idle(serve):
    async with serve() as server:
        idle = await server.dial()
        await idle.open("/pub/f")
    assert await idle.ended()
    assert not server.door.sessions
    await idle.close()


async def test_a_revoked_token_reads_no_more(serve, token):
    async with serve() as server:
        wire = await server.dial()
        handle = await wire.open(f"/own/f?authz={token()}")
        assert await wire.read(handle, 0, 5) == CONTENT[:5]
        server.site.verifier.forget()
        assert await wire.read(handle, 0, 5) == CONTENT[:5]
        identity = server.door.sessions[wire.id].files[handle].target.identity
        server.site.verifier._revoked = frozenset({identity.jti})
        server.site.verifier.drop([identity.jti])
        server.site.verifier._local = frozenset({identity.issuer})
        number, text = await wire.refused(Code.READ, frames.P_READ.pack(handle, 0, 5), bytes(8))
        assert number == 3030
        assert "revoked" in text
        await wire.close()
