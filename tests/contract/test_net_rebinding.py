"""A name whose address changes between two questions: what was judged is what is connected."""

import asyncio
import socket

import pytest

from doma.core.errors import Forbidden
from doma.store.http import HttpStore
from doma.store.http_trust import RemoteGuard
from doma.store.xrootd import XrootdStore
from tests.contract.store.test_xrootd_faults import Fake

OUTER, INNER = "127.0.0.2", "127.0.0.1"


async def web(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 10000\r\nETag: "v"\r\nConnection: close\r\n\r\n')
    writer.close()


@pytest.mark.parametrize(("kind", "serve", "engine"), [
    ("http", web, HttpStore), ("root", Fake().serve, XrootdStore),
])  # fmt: skip
async def test_the_address_that_was_judged_is_the_one_that_is_connected(monkeypatch, kind, serve, engine):
    asked, reached, real = [], [], socket.getaddrinfo

    def moving(host, *args, **more):
        if host != "moving.test":
            return real(host, *args, **more)
        asked.append(host)
        return real(OUTER if len(asked) % 2 else INNER, *args, **more)

    async def inner(reader, writer):
        reached.append(kind)
        writer.close()

    monkeypatch.setattr(socket, "getaddrinfo", moving)
    async with await asyncio.start_server(serve, OUTER, 0) as outside:
        port = outside.sockets[0].getsockname()[1]
        async with await asyncio.start_server(inner, INNER, port):
            guard = RemoteGuard([OUTER], plain=True)
            first, later = (engine(f"{kind}://moving.test:{port}//", allow=guard) for _ in range(2))
            assert (await first.stat("/f")).size == 10_000
            with pytest.raises(Forbidden, match="not allowed here"):
                await later.stat("/f")
            await first.close()
            await later.close()
    assert (len(asked), reached) == (2, [])
