"""Stores behind the WebDAV door and the real listener, on a thread of their own; and who counts reads."""

import asyncio
import threading
import time

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
from doma.store.http import HttpStore

ISSUER, AUDIENCE = "https://issuer.example/served", "https://se.example"


class OnThread:
    """A server on a thread of its own: ``_main`` sets ``_loop``, ``_end``, ``_ready``, and awaits the end."""

    def __init__(self):
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


class Served(OnThread):
    """A running server; ``stores`` by name are its endpoints, closed with it.

    A subclass may override :meth:`caches` for endpoints that read from this server itself.
    """

    def __init__(self, stores):
        super().__init__()
        self._stores = stores
        self._keys = KeySet({"ES256": ECKey.generate_key("P-256")})

    def caches(self):
        """Read-only stores by name, made on the server's own loop once ``base`` is known."""
        return {}

    async def _main(self):
        verifier = Verifier([Issuer(issuer=ISSUER)], [AUDIENCE], local={ISSUER: self._keys.jwks()})
        gate = Gate({ISSUER: ["/"]})
        endpoints = {name: Endpoint(name, store, gate) for name, store in self._stores.items()}
        site = Site(verifier, endpoints)
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        listen = Listen(address="127.0.0.1:0", drain=5)
        listener = Listener(app(site), fast=FastDoor(site), listen=listen, tls=None)
        self.address = await listener.start()
        self.base = f"http://{self.address[0]}:{self.address[1]}"
        for name, store in self.caches().items():
            endpoints[name] = Endpoint(name, store, gate, writable=False)
        self._ready.set()
        await self._end.wait()
        await listener.stop()
        for endpoint in endpoints.values():
            await endpoint.store.close()

    def token(self, scope="storage.read:/ storage.modify:/"):
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "iat": now, "exp": now + 600, "jti": "1"}
        return self._keys.sign({**claims, "wlcg.ver": "1.0", "scope": scope}, "ES256")


class CountingHttp(HttpStore):
    """Notes the byte ranges that are read of a server in ``asked``."""

    def __init__(self, asked, *arguments):
        super().__init__(*arguments)
        self._asked = asked

    async def open(self, path):
        return _Line(self._asked, await super().open(path))


class _Line:
    def __init__(self, asked, inner):
        self._asked, self._inner = asked, inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def read(self, start, stop):
        self._asked.append((start, stop))
        return await self._inner.read(start, stop)
