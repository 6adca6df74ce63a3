"""The range client against loopback servers that behave, and against some that lie."""

import asyncio
import contextlib
import socket
import ssl
import struct
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from doma.core.errors import BadRequest, Forbidden, OriginFailed, StorageUnavailable, TimedOut
from doma.net.client import RangeClient
from doma.net.pool import Limits
from doma.net.sinks import Pour

DATA = bytes(range(256)) * 4096  # 1 MiB


CHUNKED = b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-4/10\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request head with what a function gives: raw bytes, to the letter."""

    def __init__(self, answer):
        self.answer = answer
        self.heads: list[bytes] = []
        self.connections = 0
        self.tasks = set()

    async def serve(self, reader, writer):
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError):
            await self.talk(reader, writer)
        writer.close()

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def talk(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                got = self.answer(head)
                if asyncio.iscoroutine(got):
                    got = await got
                if got is None:
                    break
                writer.write(got)
                await writer.drain()
                if b"onnection: close" in got[:2000]:
                    break


@contextlib.asynccontextmanager
async def serving(answer, **tls):
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, **tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


@contextlib.asynccontextmanager
async def client(**how):
    one = RangeClient(**how)
    try:
        yield one
    finally:
        await one.close()


def ranged(head: bytes) -> bytes:
    """A small honest server of DATA."""
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    if b"Range" not in fields:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA) + DATA
    spans = [tuple(map(int, s.split(b"-"))) for s in fields[b"Range"].removeprefix(b"bytes=").split(b",")]
    if len(spans) == 1:
        a, b = spans[0]
        what = b"Content-Range: bytes %d-%d/%d\r\n" % (a, b, len(DATA))
        return b"HTTP/1.1 206 P\r\n" + what + b"Content-Length: %d\r\n\r\n" % (b + 1 - a) + DATA[a : b + 1]
    body = b""
    for a, b in spans:
        part = b"Content-Type: x/y\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (a, b, len(DATA))
        body += b"\r\n--XX\r\n" + part + DATA[a : b + 1]
    body += b"\r\n--XX--\r\n"
    kind = b"Content-Type: multipart/byteranges; boundary=XX\r\n"
    return b"HTTP/1.1 206 P\r\n" + kind + b"Content-Length: %d\r\n\r\n" % len(body) + body


def plain(status: str, body: bytes = b"", **fields: str):
    head = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in fields.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body


async def test_ranges_fill_the_buffer_over_one_kept_connection():
    async with serving(ranged) as server, client() as http:
        for start, stop in [(0, 1), (5, 70_000), (len(DATA) - 1, len(DATA)), (0, len(DATA))]:
            into = bytearray(stop - start)
            answer = await http.read_range(f"{server.url}/f", start, stop, memoryview(into))
            assert answer.status == 206
            assert bytes(into) == DATA[start:stop]
        assert server.connections == 1


async def test_many_ranges_at_once_never_mix():
    async with serving(ranged) as server, client(limits=Limits(connections=4)) as http:

        async def one(i: int) -> None:
            into = bytearray(30_000 + i)
            await http.read_range(f"{server.url}/f", i * 1000, i * 1000 + len(into), memoryview(into))
            assert bytes(into) == DATA[i * 1000 : i * 1000 + len(into)]

        async with asyncio.TaskGroup() as group:
            for i in range(60):
                group.create_task(one(i))
        assert server.connections <= 4


async def test_several_ranges_come_with_one_request():
    ranges = [(0, 10), (500_000, 500_100), (7, 8), (100, 70_000)]
    async with serving(ranged) as server, client() as http:
        _, parts = await http.read_ranges(f"{server.url}/f", ranges)
        assert [bytes(p) for p in parts] == [DATA[a:b] for a, b in ranges]
        assert len(server.heads) == 1


async def test_a_body_streams_to_a_function_and_piece_by_piece():
    async with serving(ranged) as server, client() as http:
        got = bytearray()
        answer = await http.request("GET", server.url, on_head=lambda head: Pour(got.extend))
        await answer.finished()
        assert got == DATA
        parts = [piece async for piece in (await http.request("GET", server.url)).pieces()]
        assert b"".join(parts) == DATA


async def test_a_slow_consumer_holds_the_server_back():
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1
        writer.close()

    listener = await asyncio.start_server(flood, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with client() as http:
        answer = await http.request("GET", f"http://127.0.0.1:{port}/")
        seen = -1
        while seen != sent:  # until nothing moves any more
            seen = sent
            await asyncio.sleep(0.15)
        assert sent < 40
        assert sum([len(piece) async for piece in answer.pieces()]) == 64 << 20
    listener.close()


async def test_chunked_bodies_and_bodies_that_end_with_the_connection_are_read():
    def answer(head):
        if b"/chunked" in head:
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"

    async with serving(answer) as server, client() as http:
        for path in ("/chunked", "/close"):
            assert await (await http.request("GET", server.url + path)).read() == b"abcde"


async def test_head_204_and_304_have_no_body_and_keep_the_connection():
    def answer(head):
        if head.startswith(b"HEAD"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        if b"/204" in head:
            return b"HTTP/1.1 204 No\r\n\r\n"
        return b'HTTP/1.1 304 Not\r\nETag: "x"\r\nContent-Length: 1000\r\n\r\n'

    async with serving(answer) as server, client() as http:
        for method, path in (("HEAD", "/"), ("GET", "/204"), ("GET", "/304"), ("HEAD", "/")):
            response = await http.request(method, server.url + path)
            assert await response.read() == b""
        assert server.connections == 1


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nshort", "middle of the body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nab", "middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabcde", "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nabcde", "no valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", "gzip"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\nabcde", "gzip"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "no valid HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "valid|101"),
        (b"HTTP/1.1 103 Hint\r\n\r\n" * 20, "103"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n", "head"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "head"),
    ],
)
async def test_a_server_that_lies_gives_one_clear_error(raw, error):
    async with serving(lambda head: raw) as server, client() as http:
        with pytest.raises(OriginFailed, match=error) as caught:
            await (await http.request("GET", f"{server.url}/f")).read()
        assert server.url in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        plain("206 P", b"12345", Content_Range="bytes 1-5/10"),
        plain("206 P", b"12345", Content_Range="bytes 0-4/3"),
        plain("206 P", b"12345"),
        plain("206 P", b"1234", Content_Range="bytes 0-4/10"),
        plain("206 P", b"123456", Content_Range="bytes 0-4/10"),
        plain("200 OK", b"1234567890"),
        CHUNKED + b"6\r\n123456\r\n0\r\n\r\n",
        CHUNKED + b"4\r\n1234\r\n0\r\n\r\n",
    ],
)
async def test_bytes_that_were_not_asked_for_are_refused(raw):
    async with serving(lambda head: raw) as server, client() as http:
        with pytest.raises(OriginFailed):
            await http.read_range(f"{server.url}/f", 0, 5, memoryview(bytearray(5)))


@pytest.mark.parametrize(
    "body",
    [
        b"--XX\r\nContent-Range: bytes 0-4/10\r\n\r\n12345\r\n--XX--",
        b"--XX\r\nContent-Range: bytes 0-9/10\r\n\r\n12345\r\n--XX--",
        b"--XX\r\n\r\n12345\r\n--XX--",
        b"--XX\r\nContent-Range: bytes 0-4/10",
        b"nothing",
        b"",
    ],
)
async def test_a_broken_multipart_answer_is_refused(body):
    raw = plain("206 P", body, Content_Type="multipart/byteranges; boundary=XX")
    async with serving(lambda head: raw) as server, client() as http:
        with pytest.raises(OriginFailed):
            await http.read_ranges(f"{server.url}/f", [(0, 5), (6, 8)])


async def test_bytes_behind_an_answer_cost_only_the_connection():
    raw = plain("200 OK", b"ab") + b"HTTP/1.1 200 OK\r\n\r\nevil"
    async with serving(lambda head: raw) as server, client() as http:
        for _ in range(3):
            assert await (await http.request("GET", server.url)).read() == b"ab"
        assert server.connections == 3


async def test_a_connection_closed_while_unused_is_replaced_silently():
    count = 0

    def answer(head):
        nonlocal count
        count += 1
        return None if count == 2 else plain("200 OK", b"ok")

    async with serving(answer) as server, client() as http:
        for _ in range(2):
            assert await (await http.request("GET", server.url)).read() == b"ok"
        assert server.connections == 2


async def test_credentials_stay_with_their_origin():
    async with serving(lambda head: plain("200 OK", b"there")) as other:
        far = other.url.replace("127.0.0.1", "localhost") + "/x y"

        def answer(head):
            if b"/near" in head:
                return plain("307 T", b"body", Location="/far")
            return plain("302 F", Location=far)

        async with serving(answer) as server, client() as http:
            response = await http.request(
                "GET", f"{server.url}/near", {"Authorization": "Bearer t", "X": "y"}
            )
            assert await response.read() == b"there"
            assert response.url == far
            assert all(b"Bearer t" in head for head in server.heads)
            assert len(server.heads) == 2
        assert b"Authorization" not in other.heads[0]
        assert b"X: y" in other.heads[0]
        assert b"GET /x%20y " in other.heads[0]


@pytest.mark.parametrize("place", ["ftp://a/b", "http://user:pass@127.0.0.1/", "http://[bad", "//"])
async def test_a_redirect_to_nonsense_is_refused(place):
    async with serving(lambda head: plain("302 F", Location=place)) as server, client() as http:
        with pytest.raises(OriginFailed, match="redirects"):
            await http.request("GET", server.url)


async def test_a_circle_of_redirects_ends():
    async with serving(lambda head: plain("302 F", Location="/again")) as server, client() as http:
        with pytest.raises(OriginFailed, match="8 redirects"):
            await http.request("GET", server.url)
        assert len(server.heads) == 9


async def test_a_silent_server_times_out():
    async def never(head):
        await asyncio.sleep(30)

    async with serving(never) as server, client(limits=Limits(first_byte=0.2)) as http:
        with pytest.raises(TimedOut):
            await http.request("GET", server.url)


async def test_a_body_that_stands_still_times_out():
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with serving(lambda head: raw) as server, client(limits=Limits(idle=0.2)) as http:
        answer = await http.request("GET", server.url)
        with pytest.raises(TimedOut):
            await answer.read()


async def test_nobody_there_is_unavailable():
    async with serving(ranged) as server:
        url = server.url
    async with client() as http:
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1"):
            await http.request("GET", url)
        with pytest.raises(StorageUnavailable):
            await http.request("GET", "http://no-such-host.invalid/")


async def test_an_address_that_is_not_allowed_is_never_connected():
    async with serving(ranged) as server, client(allow=lambda host, address: False) as http:
        with pytest.raises(Forbidden):
            await http.request("GET", server.url)
        assert server.connections == 0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://a:b@c/", "http:///x", "http://h:99999/", "x"])
async def test_a_url_that_is_none_is_refused(url):
    async with client() as http:
        with pytest.raises(BadRequest):
            await http.request("GET", url)


async def test_headers_cannot_be_smuggled():
    async with client() as http:
        for fields in ({"X": "a\r\nEvil: b"}, {"X\r\nY": "a"}, {"X": "a\0"}):
            with pytest.raises(BadRequest):
                await http.request("GET", "http://127.0.0.1:1/", fields)


async def numbers(n: int):
    for i in range(n):
        yield b"%d" % (i % 10) * 1000


async def test_an_upload_waits_for_100_and_is_framed_as_told():
    async def take(reader, writer):
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Expect: 100-continue" in head
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if b"Content-Length: 30000" in head:
                body = await reader.readexactly(30_000)
            else:
                body = b""
                while size := int(await reader.readline(), 16):
                    body += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            writer.write(plain("201 Created", str(len(body)).encode()))
        writer.close()

    listener = await asyncio.start_server(take, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/f"
    async with client() as http:
        for fields in ({"Content-Length": "30000"}, {}):
            answer = await http.request("PUT", url, fields, numbers(30), expect=True)
            assert (answer.status, await answer.read()) == (201, b"30000")
    listener.close()


async def test_a_refused_upload_sends_no_body():
    asked = 0

    async def body():
        nonlocal asked
        asked += 1
        yield b"x"

    async with serving(lambda head: plain("403 No", b"why")) as server, client() as http:
        answer = await http.request("PUT", server.url, {"Content-Length": "1"}, body(), expect=True)
        assert (answer.status, await answer.read()) == (403, b"why")
        assert asked == 0


async def test_an_error_of_the_producer_ends_the_upload_and_reaches_the_caller():
    async def body():
        yield b"x" * 10
        raise KeyError("mine")

    async with serving(lambda head: b"HTTP/1.1 100 Continue\r\n\r\n") as server, client() as http:
        with pytest.raises(KeyError, match="mine"):
            await http.request("PUT", server.url, {"Content-Length": "20"}, body())


def certificate(tmp_path, name: str):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.PrivateFormat.PKCS8
    (tmp_path / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


async def test_tls_is_verified_and_ranges_arrive(tmp_path):
    served = certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with serving(ranged, ssl=served) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        async with client(ssl=trusting) as http:
            into = bytearray(300_000)
            await http.read_range(url, 17, 300_017, memoryview(into))
            assert bytes(into) == DATA[17:300_017]
            with pytest.raises(StorageUnavailable, match="not trusted"):
                await http.request("GET", server.url)  # the certificate is for localhost
        async with client() as http:
            with pytest.raises(StorageUnavailable, match="not trusted"):
                await http.request("GET", url)


@pytest.mark.parametrize("drops", [1, 3])
async def test_a_server_that_drops_one_connection_before_anything_was_asked_gets_another(tmp_path, drops):
    served = certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    met = 0

    def serve():
        nonlocal met
        while met < 2:
            sock, _ = listener.accept()
            met += 1
            if met <= drops:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()  # by a reset, as a busy XRootD does
                continue
            with served.wrap_socket(sock, server_side=True) as line:
                line.recv(65536)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}/f"
        listener.settimeout(20)
        async with client(ssl=trusting) as http, asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(serve))
            if drops == 1:
                async with await http.request("POST", url, {}, b"x") as answer:
                    assert await answer.read() == b"ok"
            else:
                with pytest.raises(StorageUnavailable, match="cannot be connected"):
                    await http.request("GET", url)
    assert met == 2


async def test_https_never_redirects_to_http(tmp_path):
    served = certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    raw = plain("302 F", Location="http://localhost:1/")
    async with serving(lambda head: raw, ssl=served) as server, client(ssl=trusting) as http:
        with pytest.raises(OriginFailed, match="from https to http"):
            await http.request("GET", server.url.replace("127.0.0.1", "localhost"))


async def test_a_cancelled_read_leaves_the_client_usable():
    async def slow(head):
        await asyncio.sleep(30)

    async with serving(slow) as server, client(limits=Limits(connections=1)) as http:
        task = asyncio.create_task(http.request("GET", server.url))
        while not server.heads:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.answer = ranged
        assert len(await (await http.request("GET", server.url)).read(2 << 20)) == len(DATA)
