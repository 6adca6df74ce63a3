"""A real server on a thread of its own, and a client that speaks raw HTTP to it."""

import asyncio
import contextlib
import mmap
import os
import select
import socket
import ssl
import threading
import time

import pytest
import uvloop

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen
from doma.core.errors import DomaError
from doma.doors import files
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.net import tls
from doma.net.listener import Listener
from doma.net.problem import render
from doma.store.memory import MemoryStore

ISSUER = "https://issuer.example/doma"
AUDIENCE = "https://se.example"
CONTENT = bytes((i * 7 + i // 251) % 256 for i in range(300_000))
BIG = CONTENT * 10


class Mapped:
    """A file on disk as a door's quick side sees it."""

    def __init__(self, stat, place):
        self.stat = stat
        self._file = os.open(place, os.O_RDONLY)
        self._map = mmap.mmap(self._file, 0, prot=mmap.PROT_READ)

    def __del__(self):
        os.close(self._file)

    def view(self, start, stop):
        return memoryview(self._map)[start:stop]

    def fileno(self, start, stop):
        return self._file


class ColdStore(MemoryStore):
    """Hot files come from disk, by map and descriptor; names with ``cold`` are never hot."""

    def __init__(self, folder):
        super().__init__()
        self._folder = folder
        self._hot = {}

    def peek(self, path):
        file = self._files.get(path)
        if file is None or "cold" in path or not file.stat.size:
            return None
        hot = self._hot.get(path)
        if hot is None or hot.stat is not file.stat:
            place = self._folder / file.stat.version
            place.write_bytes(file.view(0, file.stat.size))
            hot = self._hot[path] = Mapped(file.stat, place)
        return hot


class Server:
    """A listener on a thread of its own."""

    def __init__(self, app, fast, context=None, **limits):
        self.listen = Listen(address="127.0.0.1:0", **limits)
        self._app, self._fast, self._context = app, fast, context
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)
        self.listener = None

    async def _main(self):
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self.listener = Listener(self._app, fast=self._fast, listen=self.listen, tls=self._context)
        self.address = await self.listener.start()
        self._ready.set()
        await self._end.wait()
        await self.listener.stop()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def stop(self):
        self.loop.call_soon_threadsafe(self._end.set)

    def join(self):
        self._thread.join(20)
        assert not self._thread.is_alive()

    def __exit__(self, *_):
        with contextlib.suppress(RuntimeError):
            self.stop()
        self.join()

    def dial(self, context=None):
        return Wire(self.address, context)


class Wire:
    """One client connection."""

    def __init__(self, address, context=None):
        self.address = address
        self.sock = socket.create_connection(address, timeout=20)
        if context is not None:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.rest = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def pour(self, data):
        """Send more than fits, reading meanwhile; in one thread, since a TLS connection bears no two."""
        waits = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
        left = memoryview(data)
        self.sock.setblocking(False)
        while left:
            with contextlib.suppress(*waits):
                left = left[self.sock.send(left) :]
                continue
            assert any(select.select([self.sock], [self.sock], [], 20)), "neither side goes on"
            with contextlib.suppress(*waits):
                while self.more():
                    pass
        self.sock.settimeout(20)

    def ask(self, method, target, headers=None, body=b"", token=None):
        self.send(request(method, target, headers, body, token))
        return self.answer(method)

    def more(self):
        data = self.sock.recv(1 << 18)
        self.rest += data
        return bool(data)

    def _until(self, mark):
        while mark not in self.rest:
            assert self.more(), f"the connection ended after {self.rest[:200]!r}"
        found, _, self.rest = self.rest.partition(mark)
        return found

    def _exactly(self, count):
        while len(self.rest) < count:
            assert self.more(), f"the connection ended {count - len(self.rest)} bytes early"
        found, self.rest = self.rest[:count], self.rest[count:]
        return found

    def answer(self, method="GET"):
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        if status == 100 or method == "HEAD" or status in {204, 304}:
            return Got(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            self._until(b"\r\n")
            return Got(status, headers, body)
        return Got(status, headers, self._exactly(int(headers["content-length"])))

    def closed(self):
        """Whether the server has closed the connection and said nothing more."""
        try:
            return not self.rest and not self.sock.recv(1)
        except ConnectionError:
            return True


class Got:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body


def request(method, target, headers=None, body=b"", token=None):
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body and not any(name.lower() in {"content-length", "transfer-encoding"} for name in headers or {}):
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def application(site):
    """Files, and a few routes that show what the bridge does."""
    of_file = files.app(site)

    async def whole(send, status, body, headers=()):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        path = scope["path"]
        if path == "/json":
            await whole(send, 200, b"{}", [(b"content-type", b"application/json"), (b"content-length", b"2")])
        elif path == "/echo":
            message = await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send(
                    {"type": "http.response.body", "body": message.get("body", b""), "more_body": True}
                )
                if not message.get("more_body", False):
                    break
                message = await receive()
            await send({"type": "http.response.body", "body": b""})
        elif path == "/refuse":
            await whole(send, 403, b"no\n", [(b"content-length", b"3")])
        elif path == "/crash":
            raise ZeroDivisionError
        elif path == "/slow":
            await asyncio.sleep(0.3)
            await whole(send, 200, b"slow", [(b"content-length", b"4")])
        elif path == "/scope":
            text = repr([scope[k] for k in ("scheme", "method", "http_version", "raw_path", "query_string")])
            await whole(send, 200, text.encode(), [(b"content-length", str(len(text)).encode())])
        else:
            try:
                await of_file(scope, receive, send)
            except DomaError as e:
                accept = dict(scope["headers"]).get(b"accept", b"").decode()
                status, headers, body = render(e, accept, site.name)
                headers["Content-Length"] = str(len(body))
                raw = [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]
                await whole(send, status, body if scope["method"] != "HEAD" else b"", raw)

    return app


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return KeySet.load_or_make(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture(scope="session")
def sign(keys):
    def token(scope="storage.read:/ storage.modify:/", life=3600, subject="tester"):
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "exp": now + life, "iat": now, "nbf": now,
            "jti": os.urandom(8).hex(), "scope": scope, "wlcg.ver": "1.0",
        }  # fmt: skip
        return keys.sign(claims, "ES256")

    return token


@pytest.fixture(scope="session")
def token(sign):
    return sign()


@pytest.fixture(scope="session")
def events():
    return []


@pytest.fixture(scope="session")
def site(keys, tmp_path_factory, events):
    verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: keys.jwks()})
    gate = Gate({ISSUER: ["/"]})
    store = ColdStore(tmp_path_factory.mktemp("hot"))
    named = {"site": Endpoint("site", store, gate), "fixed": Endpoint("fixed", store, gate, writable=False)}

    async def fill():
        for name, data in {
            "/f": CONTENT,
            "/cold": CONTENT,
            "/big": BIG,
            "/coldbig": BIG,
            "/empty": b"",
        }.items():
            upload = await store.create(name)
            await upload.write(data)
            await upload.commit()

    asyncio.run(fill())
    return Site(verifier, named, events.append, "localhost")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return tls.ensure(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def context(certificates):
    return tls.server_context(certificates.certificate, certificates.key)


@pytest.fixture(scope="session")
def trust(certificates):
    return tls.client_context(certificates.ca)


@pytest.fixture(scope="session")
def server(site, context):
    with Server(application(site), FastDoor(site), context) as running:
        yield running


@pytest.fixture(params=["plain", "tls"])
def wire(request, server, trust):
    with server.dial(trust if request.param == "tls" else None) as connection:
        yield connection


@pytest.fixture
def plain(server):
    with server.dial() as connection:
        yield connection


@pytest.fixture(scope="session")
def launch(context):
    """Starts another server: ``with launch(app, fast, idle_timeout=1) as server``."""

    def make(app, fast=None, **limits):
        return Server(app, fast, context, **limits)

    return make


@pytest.fixture(scope="session")
def tools():
    """What tests need of this module."""

    class Tools:
        CONTENT, BIG, AUDIENCE = CONTENT, BIG, AUDIENCE
        request = staticmethod(request)
        application = staticmethod(application)

    return Tools
