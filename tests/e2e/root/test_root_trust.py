"""What a client may not gain: by words before TLS, by a token that no longer counts, by announcing bytes."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from doma.net import tls
from doma.net import xroot_frames as frames
from doma.net.xroot_frames import Code, Status
from doma.net.xroot_text import ztn
from tests.e2e.root.conftest import CONTENT, Wire


@pytest.fixture
async def dial(server):
    """Connects; what is still open at the end is closed."""
    made = []

    async def one():
        made.append(await Wire.dial(server.address))
        return made[-1]

    yield one
    for wire in made:
        await wire.close()


LOGIN = frames.P_LOGIN.pack(7, b"eve", 0, 9, 0x85)


@pytest.fixture
def trust(certificate):
    return tls.client_context(certificate.ca)


async def ping_under_tls(wire, trust):
    await wire.writer.start_tls(trust, server_hostname="localhost")
    await wire.ask(Code.PING)


async def test_what_was_said_before_tls_is_not_taken_as_said_under_it(server, dial, trust):
    wire = await dial()
    first = frames.HELLO.pack(*frames.GREETING)
    first += frames.request(1, Code.PROTOCOL, frames.P_PROTOCOL.pack(0x520, 0x04 | 0x02, 3))
    first += frames.request(2, Code.LOGIN, LOGIN)  # by somebody on the way
    wire.writer.write(first)
    for _ in range(2):
        await asyncio.wait_for(wire.one(), 20)
    with pytest.raises(OSError):  # noqa: PT011 - the handshake or the first read, whichever sees it
        await ping_under_tls(wire, trust)
    assert not server.door.sessions


async def revoked(server, identity):
    server.site.verifier._revoked = frozenset({identity.jti})
    server.site.verifier._local = frozenset({identity.issuer})
    server.site.verifier.drop([identity.jti])


async def test_a_revoked_token_of_a_session_opens_and_changes_nothing_more(server, dial, trust, token):
    wire = await dial()
    await wire.login(flags=0x04 | 0x02, context=trust)
    assert await wire.ask(Code.AUTH, frames.P_AUTH.pack(b"ztn\0"), ztn(token())) == (0, b"")
    assert await wire.open("/own/f")
    (session,) = server.door.sessions.values()
    await revoked(server, session.identity)
    number, text = await wire.refused(Code.OPEN, frames.P_OPEN.pack(0, 0x10, 0), b"/own/f")
    assert "revoked" in text
    assert number == 3030
    await wire.refused(Code.RM, data=b"/own/f")
    assert (server.folder / "own" / "f").read_bytes() == CONTENT
    assert await wire.open("/pub/f")


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (Code.STAT, frames.P_STAT.pack(0, b"HAND")),
        (Code.QUERY, frames.P_QUERY.pack(3, b"HAND")),
        (Code.FATTR, b"HAND" + bytes(12)),
    ],
)
async def test_a_handle_of_an_expired_token_tells_nothing_more(server, dial, token, code, body):
    wire = await dial()
    await wire.login()
    handle = await wire.open(f"/own/f?authz={token()}")
    asked, data = body.replace(b"HAND", handle), b""
    if code == Code.FATTR:
        asked, data = frames.P_FATTR.pack(handle, frames.Attribute.LIST, 0, 0), b"\0"
    assert (await wire.ask(code, asked, data))[0] == Status.OK
    (session,) = server.door.sessions.values()
    for file in session.files.values():
        file.target.identity = file.target.identity.__class__(
            file.target.identity.issuer,
            "ada",
            time.time() - 1,
            capabilities=file.target.identity.capabilities,
        )
    _, text = await wire.refused(code, asked, data)
    assert "expired" in text


async def test_an_expired_session_sees_no_endpoint_of_its_own(server, dial, token):
    wire = await dial()
    await wire.login(f"authz={token()}".encode())
    listing = frames.P_DIRLIST.pack(0)
    assert b"own" in (await wire.ask(Code.DIRLIST, listing, b"/"))[1]
    (session,) = server.door.sessions.values()
    known = session.identity
    session.identity = known.__class__(known.issuer, "ada", time.time() - 1, capabilities=known.capabilities)
    assert b"own" not in (await wire.ask(Code.DIRLIST, listing, b"/"))[1]


async def test_large_data_is_taken_for_a_file_that_is_written_only(server, wire):
    handle = await wire.open("/pub/f")
    wire.writer.write(frames.REQUEST.pack(9, Code.WRITE, frames.P_WRITE.pack(handle, 0, 0), 16 << 20))
    stream, status, body = await asyncio.wait_for(wire.one(), 20)
    assert (stream, status) == (9, Status.ERROR)
    assert frames.number_and_text(body)[0] == 3002
    assert await wire.ended()


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_bytes_that_are_announced_and_never_come_take_no_memory(server, dial, token):
    handles = []
    for number in range(20):
        wire = await dial()
        await wire.login(f"authz={token()}".encode())
        handles.append((wire, await wire.open(f"/own/w{number}", 0x8028, 0o644)))
    before = resident()
    for wire, handle in handles:
        wire.writer.write(frames.REQUEST.pack(9, Code.WRITE, frames.P_WRITE.pack(handle, 0, 0), 16 << 20))
        wire.writer.write(bytes(9))
    receiving = server.listener._hub.connections
    while sum(one._into is not None for one in receiving) < len(handles):
        await asyncio.sleep(0.01)
    assert resident() - before < 100 << 20
