"""A cache behind all doors of one port, in front of an origin over HTTP that counts, and changes at will."""

import asyncio
import http.client
import random
import select
import ssl
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.cache.origins import Origins
from doma.cache.record import key_of
from doma.cache.store import CacheStore
from doma.core.config import Cache, Issuer, Listen
from doma.doors.endpoint import Endpoint, Site
from doma.doors.fast import FastDoor
from doma.doors.root import RootDoor
from doma.doors.webdav import app
from doma.net import tls
from doma.net.listener import Listener
from doma.net.xroot_frames import (
    NOTHING,
    P_HANDLE,
    P_OPEN,
    P_QUERY,
    P_READ,
    P_STAT,
    SEGMENT,
    Code,
    Open,
    Status,
    number_and_text,
)
from doma.net.xroot_pages import page_head, separated
from doma.net.xroot_text import stat_line
from doma.store.http import HttpStore
from tests.e2e.root.conftest import Wire
from tests.e2e.served import OnThread

_WAITING = ThreadPoolExecutor(64)
"""Where visitors wait for answers over HTTP, each as long as it takes."""
ISSUER = "https://issuer.example/cases"
_BLOCK = random.Random(8).randbytes(1_048_583)
"""Content repeats with a prime period, so that no shift by a page, a block or 2^32 goes unseen."""


def content(start, stop, version=0):
    """Bytes ``[start, stop)`` of every file of the origin that has this version."""
    first, amount = (start + 7919 * version) % len(_BLOCK), max(0, stop - start)
    times = 1 + (first + amount) // len(_BLOCK)
    return (_BLOCK if times == 1 else _BLOCK * times)[first : first + amount]


@dataclass
class Thing:
    """A file of the origin, and what it says of it."""

    size: int
    version: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    weak: bool = False
    fixed: str = ""
    """The ETag, whatever the content; then a condition is not answered 304."""
    silent: bool = False
    """HEAD and GET tell no version, as XRootD's; PROPFIND tells the time of the last change."""
    lie: str = ""
    """What is wrong with the answer to a range: ``fewer`` bytes than it promises; a ``shorter``, ``longer``
    or ``shifted`` range."""

    @property
    def modified(self):
        return f"Sun, 01 Mar 2026 10:00:{self.version:02} GMT"

    @property
    def etag(self):
        return self.fixed or f'{"W/" if self.weak else ""}"v{self.version}-{self.size}"'


class Origin:
    """What the server below serves: ``/<size>/<any name>``, and what a test puts at other paths.

    ``stall``: the offset in a file from which nothing comes any more, until the client goes away or it is
    None again. ``cut``: the offset at which the connection breaks.
    """

    def __init__(self):
        self.things: dict[str, Thing] = {}
        self.asked, self.sent = Counter(), Counter()
        self.tokens = []
        self.up, self.stall, self.cut = True, None, None
        self.tried = 0
        """Requests, those too that it leaves without an answer."""
        self.stuck, self.left = threading.Event(), threading.Event()
        """Somebody waits for what does not come; somebody who waited has gone away."""

    def thing(self, path):
        """As it is now; what happens to it later does not change a running answer."""
        head = path.split("/")[1]
        if found := self.things.get(path):
            return replace(found)
        return Thing(int(head)) if head.isdigit() else None


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads, block_on_close = True, False
    origin: Origin


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        origin = self.server.origin
        origin.tried += 1
        if not origin.up:
            self.close_connection = True
            return
        origin.asked[self.path] += 1
        origin.tokens.append(self.headers.get("Authorization"))
        thing = origin.thing(self.path)
        if thing is None or thing.status != 200:
            said = thing.headers if thing else {}
            self.say(thing.status if thing else 404, said | {"Content-Length": "0"})
            return
        said = {} if thing.silent else {"ETag": thing.etag, "Last-Modified": thing.modified}
        said |= thing.headers
        if self.headers.get("If-None-Match") == thing.etag and not thing.fixed:
            self.say(304, said)
            return
        start, stop, status = 0, thing.size, 200
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last or thing.size) + 1, thing.size), 206
            start, stop = start + (thing.lie == "shifted"), stop + (thing.lie in {"longer", "shifted"})
            stop -= thing.lie == "shorter"
            said["Content-Range"] = f"bytes {start}-{stop - 1}/{thing.size}"
        self.say(status, said | {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"})
        if self.command == "GET":
            self.body(thing, start, stop - (thing.lie == "fewer"))
            self.close_connection |= thing.lie == "fewer"

    def do_PROPFIND(self):
        thing = self.server.origin.thing(self.path)
        properties = f"<getcontentlength>{thing.size}</getcontentlength>"
        properties += f"<getlastmodified>{thing.modified}</getlastmodified><resourcetype/>"
        text = (
            f'<multistatus xmlns="DAV:"><response><href>{self.path}</href><propstat><prop>{properties}</prop>'
            "<status>HTTP/1.1 200 OK</status></propstat></response></multistatus>"
        )
        self.say(207, {"Content-Type": "application/xml", "Content-Length": str(len(text))})
        self.wfile.write(text.encode())

    def say(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, thing, start, stop):
        origin = self.server.origin
        ends = [stop, *(max(start, at) for at in (origin.stall, origin.cut) if at is not None)]
        self.send(thing, start, min(ends))
        if min(ends) == stop:
            return
        if origin.stall is not None and not self.released():
            origin.left.set()
            self.close_connection = True
        elif origin.cut is not None:
            self.close_connection = True
        else:
            self.send(thing, min(ends), stop)

    def send(self, thing, start, stop):
        for at in range(start, stop, 1 << 20):
            data = content(at, min(stop, at + (1 << 20)), thing.version)
            self.server.origin.sent[self.path] += len(data)  # before anybody can have them
            self.wfile.write(data)

    def released(self):
        """Wait until the stall is over; False: the client went away."""
        self.server.origin.stuck.set()
        while self.server.origin.stall is not None:
            if select.select([self.connection], [], [], 0.02)[0]:
                return False
        return True

    def handle(self):
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        pass


class Clock:
    """Seconds that tests add to the time of day."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


class AtOnce(random.Random):
    """Luck by which what failed is tried again without a pause."""

    def random(self):
        return -0.5


class Caching(OnThread):
    """A thread with a port for http, https and root://: ``/cache`` before the origin, for everybody.

    ``/closed`` is the same for those alone who have a token.

    Args:
        home: Its folder; a later one may have the same.
        origin: What a test looks at.
        url: Of the origin.
        others: URLs of replicas.
        config: Of section ``cache``.
    """

    def __init__(self, home, origin, url, others=(), **config):
        super().__init__()
        self.origin, self.clock = origin, Clock()
        self._url, self._others, self._config = url, others, config
        self._home, self.folder = home, home / "cache"

    async def _main(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        others = {other: HttpStore(other) for other in self._others}
        origins = Origins(await self.behind(), name="origin", others=others)
        config = Cache(**{"lifetime": 3600} | self._config)
        self.store = CacheStore(self.folder, origins, config, clock=self.clock, rng=AtOnce())
        gates = {"cache": Gate({ISSUER: ["/"]}, public=True), "closed": Gate({ISSUER: ["/"]})}
        verifier = Verifier([Issuer(issuer=ISSUER)], ["https://se.example"], local={ISSUER: {"keys": []}})
        site = Site(verifier, {name: Endpoint(name, self.store, gate, False) for name, gate in gates.items()})
        made = tls.ensure(self._home / "tls", ["localhost"])
        context, limits = (
            tls.server_context(made.certificate, made.key),
            Listen(address="127.0.0.1:0", drain=2),
        )
        door = RootDoor(site, tls=context, plain=limits.plain_http)
        self.listener = Listener(app(site), fast=FastDoor(site), listen=limits, tls=context, root=door.take)
        self.address = await self.listener.start()
        self.trust = ssl.create_default_context(cafile=made.ca)
        self._ready.set()
        await self._end.wait()
        await self.listener.stop()
        await self.store.close()
        await self.over()

    def stop(self):
        """Begin to stop; the end of the ``with`` waits for it."""
        self._loop.call_soon_threadsafe(self._end.set)

    def run(self, act):
        """What a coroutine gives, run where the cache runs."""
        return asyncio.run_coroutine_threadsafe(act, self._loop).result(30)

    def pages(self, path):
        """The file with the pages of an object that is here."""
        key = key_of("origin", path)
        return next((self.folder / "objects" / key[:2]).glob(f"{key}.*"))

    def record(self, path):
        """The file that describes an object."""
        key = key_of("origin", path)
        return self.folder / "objects" / key[:2] / key

    async def behind(self):
        """The origin's store."""
        return HttpStore(self._url)

    async def over(self):
        """End what :meth:`behind` began."""

    async def dial(self):
        """A connection of a root:// client, logged in."""
        wire = await Wire.dial(self.address)
        await wire.login()
        return wire


class Client:
    """A kept connection over http or https."""

    def __init__(self, caching, scheme="http"):
        port = caching.address[1]
        if scheme == "https":
            self._to = http.client.HTTPSConnection("localhost", port, context=caching.trust, timeout=20)
        else:
            self._to = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(self, path, span=None, method="GET", **headers):
        """Status, headers (names in lower case) and body."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        self._to.request(method, path, headers=fields | ({"Range": span} if span is not None else {}))
        answer = self._to.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, answer.read()

    def close(self):
        self._to.close()


class Visitor:
    """A client of one door, whatever it is: ``http``, ``https``, or one of the ways to read over root://.

    Args:
        caching: What it visits.
        how: ``http``, ``https``, ``read``, ``readv``, ``pgread``; ``root`` is the latter.
    """

    def __init__(self, caching, how):
        self.caching, self.how = caching, "pgread" if how == "root" else how
        self._client = Client(caching, how if how == "https" else "http")
        self._wire = None
        self.told = ""
        """The text of the last error."""

    async def wire(self):
        if self._wire is None:
            self._wire = await self.caching.dial()
        return self._wire

    async def close(self):
        self._client.close()
        if self._wire is not None:
            await self._wire.close()

    @property
    def web(self):
        return self.how.startswith("http")

    async def read(self, path, start, stop):
        """The bytes, or the number of the error: of HTTP, of root://, or 0 for an answer that breaks off."""
        if self.web:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_WAITING, self._get, path, f"bytes={start}-{stop - 1}")
        handle = await self.open(path)
        if isinstance(handle, int):
            return handle
        try:
            return await self.take(handle, start, stop)
        finally:
            await self._wire.ask(Code.CLOSE, P_HANDLE.pack(handle))

    def _get(self, path, span):
        try:
            status, _, body = self._client.ask(f"/cache{path}", span)
        except http.client.IncompleteRead:
            self._client.close()
            return 0
        if status != 206:
            self.told = body.decode(errors="replace")
        return body if status == 206 else status

    async def open(self, path, options=Open.READ):
        """A handle of root://, or the number of the error."""
        wire = await self.wire()
        status, said = await wire.ask(Code.OPEN, P_OPEN.pack(0, options, 0), f"/cache{path}".encode())
        return said[:4] if status == Status.OK else self._number(said)

    def _number(self, said):
        number, self.told = number_and_text(said)
        return number

    async def take(self, handle, start, stop):
        """The bytes of an open file, or the number of the error."""
        code, body, data = Code.READ, P_READ.pack(handle, start, stop - start), bytes(8)
        if self.how == "pgread":
            code, data = Code.PGREAD, b"\0\0"
        elif self.how == "readv":
            code, body, data = Code.READV, bytes(16), SEGMENT.pack(handle, stop - start, start)
        mine, whole = self._wire.send(code, body, data), b""
        while True:
            stream, status, said = await asyncio.wait_for(self._wire.one(), 20)
            assert stream == mine
            if status == Status.ERROR:
                return self._number(said)
            if status == Status.STATUS:
                head = page_head(said)
                part, damaged = separated(head.offset, said[24:])
                assert not damaged
                whole += part
                if not head.kind:
                    return whole
            else:
                whole += said
                if status == Status.OK:
                    return whole[16:] if self.how == "readv" else whole

    async def size(self, path):
        """What a stat says, or the number of the error."""
        if self.web:
            status, headers, _ = self._client.ask(f"/cache{path}", method="HEAD")
            return int(headers["content-length"]) if status == 200 else -status
        status, said = await (await self.wire()).ask(
            Code.STAT, P_STAT.pack(0, bytes(4)), f"/cache{path}".encode()
        )
        return stat_line(said[:-1].decode()).size if status == Status.OK else -number_and_text(said)[0]

    async def adler32(self, path):
        if self.web:
            headers = self._client.ask(f"/cache{path}", method="HEAD", Want_Digest="adler32")[1]
            return headers["digest"].removeprefix("adler32=")
        query = f"/cache{path}?cks.type=adler32".encode()
        status, said = await (await self.wire()).ask(Code.QUERY, P_QUERY.pack(3, bytes(4)), query)
        assert status == Status.OK, said
        return said.rstrip(b"\0").decode().removeprefix("adler32 ")

    async def held(self, path):
        """Whether the whole could be read now without the origin."""
        if self.web:
            return self._client.ask(f"/cache{path}", Cache_Control="only-if-cached")[0] == 200
        status, said = await (await self.wire()).ask(Code.SET, NOTHING, f"cache cached /cache{path}".encode())
        assert status == Status.OK or number_and_text(said)[0] == 3035
        return status == Status.OK


@contextmanager
def serving():
    """A new origin behind a port of its own; its url is ``origin.url``."""
    held = Origin()
    with Server(("127.0.0.1", 0), Answers) as server:
        server.origin = held
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        held.url = f"http://127.0.0.1:{server.server_port}"
        yield held
        server.shutdown()
        thread.join(5)


@pytest.fixture(scope="module")
def origin():
    with serving() as one:
        yield one


@pytest.fixture(scope="module")
def caching(origin, tmp_path_factory):
    with Caching(tmp_path_factory.mktemp("caching"), origin, origin.url, scrub=1 << 30) as one:
        yield one


@pytest.fixture(scope="module")
def clients(caching):
    """A kept connection for each scheme."""
    made = {scheme: Client(caching, scheme) for scheme in ("http", "https")}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture(params=["http", "root"])
async def visitor(request, caching):
    """Somebody at each door; the origin is well again afterwards."""
    made = Visitor(caching, request.param)
    yield made
    caching.origin.up, caching.origin.stall, caching.origin.cut = True, None, None
    caching.clock.ahead += 60  # what failed is tried again
    await made.close()


def directory(path):
    """Harm: a folder stands where the file was."""
    path.unlink()
    (path / "below").mkdir(parents=True)


def grow(path):
    """Harm: the file is longer than anybody wrote it."""
    with path.open("ab") as file:
        file.write(b"more" * 5000)
