"""A server of ours that copies, and others that it copies from and to: honest ones and liars."""

import asyncio
import os
import time
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import uvloop
from joserfc.jwk import ECKey

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen, Tpc
from doma.doors import tpc_remote
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.tpc import ThirdParty
from doma.doors.webdav import app
from doma.net.listener import Listener
from doma.store.file import FileStore
from doma.store.memory import MemoryStore


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


ISSUER, AUDIENCE = "https://issuer.example/tpc", "https://se.example"


@dataclass
class Told:
    """How a COPY was answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def last(self):
        return self.lines[-1]

    def values(self, name):
        """What the markers say under that name."""
        return [line.partition(": ")[2] for line in self.lines if line.strip().startswith(name + ":")]


class Door:
    """Our server, on the test's own loop."""

    def __init__(self, folder, quota=None, **settings):
        self.store, self.memory = FileStore(folder, quota=quota), MemoryStore()
        self.folder, self.events = folder, []
        self._keys = KeySet({"ES256": ECKey.generate_key("P-256")})
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: self._keys.jwks()})
        usual = {"allow": ("loopback",), "plain_http": True, "stall": 2}
        self.copier = ThirdParty(Tpc(**(usual | settings)), every=0.2)
        endpoints = {
            name: Endpoint(name, store, Gate({ISSUER: ["/"]}))
            for name, store in (("site", self.store), ("memory", self.memory))
        }
        site = Site(
            verifier, endpoints, self.events.append, "localhost",
            frozenset({("se.example", 443)}), third_party=self.copier,
        )  # fmt: skip
        listen = Listen(address="127.0.0.1:0", drain=1)
        self._listener = Listener(app(site), fast=FastDoor(site), listen=listen, tls=None)

    async def start(self):
        host, port = await self._listener.start()
        self.url = f"http://{host}:{port}"
        # plain http only: no reason to read the authorities of the world for each test
        self.http = httpx.AsyncClient(
            timeout=30, verify=False, headers={"Authorization": f"Bearer {self.token()}"}
        )
        return self

    async def stop(self):
        await self.http.aclose()
        await self._listener.stop()
        await self.copier.close()
        await self.store.close()

    def token(self, scope="storage.read:/ storage.modify:/", **more):
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "iat": now, "exp": now + 600, "jti": "1"}
        return self._keys.sign({**claims, "wlcg.ver": "1.0", "scope": scope, **more}, "ES256")

    async def copy(self, path, **headers):
        """Send a COPY (``TransferHeader_X`` is spelled ``TransferHeaderX``) and listen to the end."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.stream("COPY", self.url + path, headers=fields) as answer:
            told = Told(answer.status_code, dict(answer.headers), "")
            async for piece in answer.aiter_text():
                told.text += piece
        return told

    def files(self):
        """Everything on disk but the store's own files; uploads under way, or left over, included."""
        found = (place.relative_to(self.folder) for place in self.folder.rglob("*") if place.is_file())
        return sorted(str(f) for f in found if not f.parts[0].startswith(".doma") or "new" in f.parts)

    def record(self, kind):
        """The data of the last event of that kind."""
        return [event.data for event in self.events if event.kind == kind][-1]


@dataclass
class Asked:
    """One request that the other server got."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def start(self):
        span = self.headers.get("range", "bytes=0-").removeprefix("bytes=")
        return int(span.partition("-")[0])


@dataclass
class Other:
    """A server with one file; what it does wrong is told by its fields, or by a function."""

    data: bytes = b""
    etag: str = '"v1"'
    digest: str | None = ""
    """Empty: the right one; None: none is told."""
    act: object = None
    """``async act(asked, writer) -> bool``: True if it has answered itself."""
    seen: list[Asked] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/a/f.root"

    def head(self, status, length, *more):
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {length}", *more]
        if self.etag:
            lines.append(f"ETag: {self.etag}")
        right = f"adler32={zlib.adler32(self.data):08x}"
        if self.digest is not None:
            lines.append(f"Digest: {self.digest or right}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def serve(self, reader, writer):
        try:
            while line := await reader.readline():
                method, target, _ = line.decode().split()
                asked = Asked(method, target, {})
                while line := (await reader.readline()).decode().strip():
                    name, _, value = line.partition(":")
                    asked.headers[name.lower()] = value.strip()
                self.seen.append(asked)
                await self._answer(asked, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, asked, reader, writer):
        if asked.method == "PUT":
            if "expect" in asked.headers:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            asked.body = await reader.readexactly(int(asked.headers["content-length"]))
            self.data = asked.body
        if self.act is not None and await self.act(asked, writer):
            return
        if asked.method == "PUT":
            writer.write(self.head(201, 0))
        elif asked.method == "HEAD":
            writer.write(self.head(200, len(self.data)))
        elif "range" in asked.headers:
            first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(self.data) - 1) + 1, len(self.data))
            span = f"Content-Range: bytes {start}-{stop - 1}/{len(self.data)}"
            writer.write(self.head(206, stop - start, span) + self.data[start:stop])
        else:
            writer.write(self.head(200, len(self.data)) + self.data)
        await writer.drain()


@asynccontextmanager
async def serving(other, tls=None):
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0, ssl=tls)
    other.scheme = "https" if tls is not None else "http"
    other.port = server.sockets[0].getsockname()[1]
    try:
        yield other
    finally:
        server.close()


@pytest.fixture
async def door(tmp_path):
    one = await Door(tmp_path / "site").start()
    yield one
    await one.stop()


@pytest.fixture
async def make_door(tmp_path):
    """Doors with settings of their own."""
    made = []

    async def make(**settings):
        made.append(await Door(tmp_path / f"door{len(made)}", **settings).start())
        return made[-1]

    yield make
    for one in made:
        await one.stop()


@pytest.fixture
async def other():
    async with serving(Other(b"some bytes " * 1000)) as one:
        yield one


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Back-off and polling that a test can wait for; the authorities of the world are not read each time."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setattr(tpc_remote, "PAUSES", (0.02, 0.02, 0.02))
    monkeypatch.setattr(tpc_remote, "POLL", 0.05)
