"""The WebDAV door behind the real listener, and the standard library's HTTP client as somebody else's."""

import asyncio
import http.client
import threading
import time

import pytest
import uvloop
from joserfc.jwk import ECKey

from doma.auth.gate import Gate
from doma.auth.keys import KeySet
from doma.auth.verifier import Verifier
from doma.core.config import Issuer, Listen
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.webdav import app
from doma.net.listener import Listener
from doma.store.file import FileStore
from doma.store.memory import MemoryStore

ISSUER, AUDIENCE = "https://issuer.example/dav", "https://se.example"


class Server:
    """A listener on a thread of its own."""

    def __init__(self, folder):
        self._folder, self._ready = folder, threading.Event()
        self._keys = KeySet({"ES256": ECKey.generate_key("P-256")})
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)

    async def _main(self):
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: self._keys.jwks()})
        gate = Gate({ISSUER: ["/"]})
        self.broken = BrokenListing()
        stores = {"site": FileStore(self._folder), "broken": self.broken}
        site = Site(verifier, {n: Endpoint(n, s, gate) for n, s in stores.items()})
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        listen = Listen(address="127.0.0.1:0", drain=5)
        listener = Listener(app(site), fast=FastDoor(site), listen=listen, tls=None)
        self.address = await listener.start()
        self._ready.set()
        await self._end.wait()
        await listener.stop()
        for store in stores.values():
            await store.close()

    def token(self, scope="storage.read:/ storage.modify:/"):
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "iat": now, "exp": now + 600, "jti": "1"}
        return self._keys.sign({**claims, "wlcg.ver": "1.0", "scope": scope}, "ES256")

    def exists(self, name):
        """Whether something lies in the served folder."""
        return (self._folder / name).exists()

    def dial(self):
        return http.client.HTTPConnection(*self.address, timeout=20)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


class BrokenListing(MemoryStore):
    """A store whose disk fails in the middle of a long listing."""

    async def list(self, path):
        from doma.core.errors import StorageUnavailable
        from doma.store.protocol import Stat

        for i in range(3000):
            yield Stat(f"/file{i}", 1, "v", 0.0)
        raise StorageUnavailable(f"{path}: the disk is gone")


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The folder above the served one, with something in it that nobody may see."""
    folder = tmp_path_factory.mktemp("dav")
    (folder / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture(scope="module")
def server(outside):
    with Server(outside / "served") as running:
        yield running


@pytest.fixture
def ask(server):
    """Ask on one kept-alive connection: (status, headers, body)."""
    connection, token = server.dial(), server.token()

    def one(method, target, body=None, **headers):
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {"Authorization": f"Bearer {token}", **fields})
        response = connection.getresponse()
        return response.status, response.headers, response.read()

    one.connection = connection
    yield one
    connection.close()
