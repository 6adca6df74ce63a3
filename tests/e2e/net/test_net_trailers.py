"""How a transfer ended, told behind its bytes (Pelican's ``X-Transfer-Status``), over real sockets."""

import asyncio

from doma.auth.gate import Gate
from doma.auth.verifier import Verifier
from doma.core.errors import OriginFailed
from doma.doors import files
from doma.doors.endpoint import Endpoint, Site
from doma.store.memory import MemoryStore
from tests.e2e.net.conftest import Server

ASKED = "TE: trailers\r\nX-Transfer-Status: true\r\n"
SIZE = 3 << 20


class Breaking:
    """A reader whose origin goes away after 2 MiB."""

    def __init__(self, inner):
        self._inner, self.stat, self.close = inner, inner.stat, inner.close

    async def read(self, start, stop):
        if stop > 2 << 20:
            raise OriginFailed(f"{self.stat.path}: the origin\r\nis gone")
        return await self._inner.read(start, stop)


class Failing(MemoryStore):
    """Its files break off if their name says so."""

    async def open(self, path):
        reader = await super().open(path)
        return Breaking(reader) if "bad" in path else reader


def exchange(request):
    """What the server answers until it closes."""

    async def fill(store):
        for path in ("/good", "/bad"):
            upload = await store.create(path)
            await upload.write(bytes(SIZE))
            await upload.commit()

    store = Failing()
    asyncio.run(fill(store))
    gate = Gate({}, public=True, name="site")
    site = Site(Verifier([], []), {"site": Endpoint("site", store, gate)})
    with Server(files.app(site), None) as server:
        wire = server.dial()
        wire.sock.sendall(request.encode())
        got = b""
        while piece := wire.sock.recv(1 << 16):
            got += piece
        wire.sock.close()
        return got


def get(path, version="1.1", headers=ASKED):
    return f"GET {path} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n{headers}\r\n"


def test_a_whole_answer_ends_with_its_status():
    got = exchange(get("/site/good"))
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Trailer: X-Transfer-Status" in head
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    assert body.endswith(b"\r\n0\r\nX-Transfer-Status: 200: OK\r\n\r\n")


def test_an_answer_that_breaks_off_says_why_in_one_line():
    got = exchange(get("/site/bad"))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.endswith(b"0\r\nX-Transfer-Status: 502: /bad: the origin is gone\r\n\r\n")


def test_what_fails_before_the_first_byte_is_an_ordinary_error():
    assert b"Trailer" not in exchange(get("/site/none")).partition(b"\r\n\r\n")[0]


def test_an_old_client_gets_the_bytes_without_a_trailer():
    head, _, body = exchange(get("/site/good", version="1.0")).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == bytes(SIZE)


def test_who_did_not_ask_gets_a_length_and_no_trailer():
    head, _, body = exchange(get("/site/good", headers="")).partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % SIZE in head
    assert body == bytes(SIZE)
