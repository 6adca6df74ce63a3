"""A real listener with the root:// door in this process, and a client that speaks raw frames to it."""

import asyncio
import os
import struct
import time
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen
from doma.doors.endpoint import Endpoint, Site
from doma.doors.root import RootDoor
from doma.net import tls
from doma.net import xroot_frames as frames
from doma.net.listener import Listener
from doma.net.xroot_frames import Code, Status
from doma.net.xroot_pages import page_head, separated
from doma.store.file import FileStore

ISSUER = "https://issuer.example/doma"
AUDIENCE = "https://se.example"
CONTENT = bytes((i * 7 + i // 251) % 256 for i in range(3_000_000))


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


async def no_http(scope, receive, send):
    raise NotImplementedError


class Told:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.open, self.over, self.gone = [], [], []

    def opened(self, file):
        self.open.append(file)

    def closed(self, file, *, forced=False):
        self.over.append((file, forced))

    def left(self, session):
        self.gone.append(session)


class Running:
    """The door, listening."""

    def __init__(self, listener, address, door, site, folder, ca):
        self.listener, self.address, self.door, self.site = listener, address, door, site
        self.folder, self.ca = folder, ca

    async def dial(self, *, login=True, **options):
        wire = await Wire.dial(self.address)
        if login:
            await wire.login(**options)
        return wire


class Wire:
    """One client connection; a request's answers come back as (status, body) pairs."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.stream = 0
        self.id = b""

    @classmethod
    async def dial(cls, address):
        return cls(*await asyncio.open_connection(*address, limit=1 << 22))

    def send(self, code, body=frames.NOTHING, data=b""):
        self.stream += 1
        self.writer.write(frames.request(self.stream, code, body, data))
        return self.stream

    async def greet(self, flags=0, expect=3, version=0x520):
        self.writer.write(frames.HELLO.pack(*frames.GREETING))
        self.send(Code.PROTOCOL, frames.P_PROTOCOL.pack(version, flags, expect))
        assert await self.one() == (0, 0, struct.pack(">ii", 0x520, 1))
        stream, status, body = await self.one()
        assert (stream, status) == (self.stream, 0)
        return struct.unpack(">iI", body)

    async def login(self, cgi=b"xrd.appname=test", flags=0, context=None):
        """Hello, protocol, TLS if there is a context, login; what stands behind the session id."""
        await self.greet(flags)
        if context is not None:
            await self.writer.start_tls(context, server_hostname="localhost")
        status, body = await self.ask(Code.LOGIN, frames.P_LOGIN.pack(77, b"ada", 0, 9, 0x85), cgi)
        assert status == Status.OK, body
        self.id = body[:16]
        return body[16:]

    async def one(self):
        """One message: stream, status, body; with the pages of status 4007 behind its 24 bytes."""
        stream, status, length = frames.ANSWER.unpack(await self.reader.readexactly(8))
        body = await self.reader.readexactly(length)
        if status == Status.STATUS:
            body += await self.reader.readexactly(page_head(body).length)
        return stream, status, body

    async def ask(self, code, body=frames.NOTHING, data=b""):
        """The answer to one request, put together."""
        mine, whole = self.send(code, body, data), b""
        while True:
            stream, status, part = await asyncio.wait_for(self.one(), 20)
            assert stream == mine
            if status != Status.OKSOFAR:
                return status, whole + part
            whole += part

    async def refused(self, code, body=frames.NOTHING, data=b""):
        """The code and text of the error that a request must get."""
        status, said = await self.ask(code, body, data)
        assert status == Status.ERROR, (status, said[:200])
        return frames.number_and_text(said)

    async def open(self, path, options=0x10, mode=0):
        status, body = await self.ask(Code.OPEN, frames.P_OPEN.pack(mode, options, 0), path.encode())
        assert status == Status.OK, body
        return body[:4]

    async def read(self, handle, start, length, data=bytes(8)):
        status, body = await self.ask(Code.READ, frames.P_READ.pack(handle, start, length), data)
        assert status == Status.OK, body
        return body

    async def pages(self, handle, start, length, data=b"\0\0"):
        """Bytes by pgread; every checksum is compared."""
        mine = self.send(Code.PGREAD, frames.P_READ.pack(handle, start, length), data)
        whole = b""
        while True:
            stream, status, body = await asyncio.wait_for(self.one(), 20)
            assert (stream, status) == (mine, Status.STATUS), body
            head = page_head(body)
            assert (head.stream, head.request, head.offset) == (mine, Code.PGREAD, start + len(whole))
            data, bad = separated(head.offset, body[24:])
            assert not bad
            whole += data
            if not head.kind:
                return whole
            assert head.kind == 1
            assert (start + len(whole)) % 4096 == 0

    async def close(self):
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def ended(self):
        """Whether the server has closed the connection, whatever it said before."""
        with suppress(ConnectionError):
            await asyncio.wait_for(self.reader.read(), 20)
        return True


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return KeySet.load_or_make(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return tls.ensure(tmp_path_factory.mktemp("tls"), ["localhost"])


@pytest.fixture(scope="session")
def token(keys):
    """Makes tokens."""

    def make(scope="storage.read:/ storage.modify:/", life=600.0, subject="ada"):
        now = time.time()
        claims = {
            "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "exp": now + life, "iat": int(now),
            "nbf": int(now), "jti": os.urandom(8).hex(), "scope": scope, "wlcg.ver": "1.0",
        }  # fmt: skip
        return keys.sign(claims, "ES256")

    return make


@pytest.fixture
def serve(tmp_path, keys, certificate):
    """Starts a door over folders: ``pub`` for everybody, ``own`` for tokens, ``data`` nobody may write."""

    @asynccontextmanager
    async def running(stores=None, observer=None, count=None, **listen):
        for name in ("pub", "own", "data"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "f").write_bytes(CONTENT)
        stores = stores or {}
        made = {name: stores.get(name) or FileStore(tmp_path / name) for name in ("pub", "own", "data")}
        site = Site(
            Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks}),
            {
                name: Endpoint(
                    name, store, Gate({ISSUER: ["/"]}, public=name != "own", name=name), name != "data"
                )
                for name, store in made.items()
            },
        )
        context = tls.server_context(certificate.certificate, certificate.key)
        limits = Listen(address="127.0.0.1:0", drain=2, **listen)
        door = RootDoor(site, tls=context, plain=limits.plain_http, observer=observer, count=count)
        listener = Listener(no_http, fast=None, listen=limits, tls=context, root=door.take)
        address = await listener.start()
        try:
            yield Running(listener, address, door, site, tmp_path, certificate.ca)
        finally:
            await listener.stop()
            for store in made.values():
                await store.close()

    return running


@pytest.fixture
async def server(serve):
    async with serve() as one:
        yield one


@pytest.fixture
async def wire(server):
    one = await server.dial()
    yield one
    await one.close()
