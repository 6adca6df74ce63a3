"""The connection against any bytes, cut anywhere: no socket, a transport that only writes down."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doma.net.http1 import HttpProtocol
from doma.net.hub import Hub


class Record:
    """The transport: what was written, and whether it is still open."""

    def __init__(self):
        self.out, self.closed = bytearray(), False

    def write(self, data):
        assert not self.closed
        self.out += data

    def writelines(self, parts):
        for part in parts:
            self.write(part)

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def nothing(self, *_):
        pass

    pause_reading = resume_reading = write_eof = set_write_buffer_limits = nothing

    def get_write_buffer_size(self):
        return 0


async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            break
        body += message["body"]
        if not message["more_body"]:
            break
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    )
    await send({"type": "http.response.body", "body": body})


def talk(pieces):
    """Feed the pieces one by one; the transport and what went wrong."""
    trouble = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: trouble.append(context))
        hub = Hub(app, None, head=10, idle=10, body=10)
        transport = Record()
        protocol = HttpProtocol(hub, loop, ("127.0.0.1", 1), ("127.0.0.1", 2), tls=False)
        protocol.connection_made(transport)
        for piece in pieces:
            if transport.closed:
                break
            protocol.get_buffer(-1)[: len(piece)] = piece
            protocol.buffer_updated(len(piece))
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        if not transport.closed:
            protocol.eof_received()
        protocol.connection_lost(None)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not hub.tasks
        return transport

    return asyncio.run(main()), trouble


def cut(data, places):
    at = sorted({p % (len(data) + 1) for p in places})
    ends = [*at, len(data)]
    return [data[a:b] for a, b in zip([0, *at], ends, strict=True) if b > a]


TOKENS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"GET * HTTP/1.0\r\n",
        b"OPTIONS http://a/b HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"Range: bytes=0-1\r\n",
        b"\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\0",
        b"\xff",
        b":",
        b" ",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(TOKENS | st.binary(max_size=12), max_size=14), st.lists(st.integers(0, 400), max_size=6))
def test_no_bytes_make_a_connection_fail(tokens, places):
    transport, trouble = talk(cut(b"".join(tokens), places))
    assert not trouble
    assert b"500 Internal" not in transport.out


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=30), min_size=1, max_size=5),
    st.lists(st.integers(0, 999), max_size=9),
    st.data(),
)
def test_requests_are_understood_however_they_are_cut(bodies, places, data):
    wire = b""
    for body in bodies:
        if data.draw(st.booleans()):
            wire += b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        else:
            chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            wire += b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n" % chunk
    transport, trouble = talk(cut(wire, places))
    assert not trouble
    expected = b"".join(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(b), b) for b in bodies)
    assert bytes(transport.out) == expected


@pytest.mark.parametrize("size", [70_000, 200_000, 1 << 20])
def test_a_long_head_in_small_pieces_is_cut_off(size):
    pieces = [b"GET / HTTP/1.1\r\nHost: a\r\nX: "] + [b"a" * 4096] * (size // 4096)
    transport, trouble = talk(pieces)
    assert not trouble
    assert transport.out.startswith(b"HTTP/1.1 431")
    assert len(transport.out) < 500
