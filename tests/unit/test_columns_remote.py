"""Reading inputs over HTTP: one version only, the token to its origin only, no private networks by query."""

import http.server
import re
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns import remote
from doma.columns.fetch import merged as _merged
from doma.columns.model import Task
from doma.columns.remote import open_bytes, open_input
from doma.columns.remote_http import RemoteFile
from doma.core.errors import (
    BadRequest,
    CorruptFile,
    Forbidden,
    InvalidToken,
    NotFound,
    OriginFailed,
    StorageUnavailable,
)

DATA = bytes(range(256)) * 4096


class Server:
    """A small HTTP server whose behaviour follows from the path."""

    def __init__(self) -> None:
        self.etag = '"1"'
        self.digest = ""
        self.dead = 0
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        self.open: list[socket.socket] = []
        self.tokens: list[str | None] = []
        self.elsewhere = ""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append((self.command, self.path))
                server.tokens.append(self.headers.get("Authorization"))
                server.answer(self, self.path)

            def do_HEAD(self) -> None:
                server.asked.append((self.command, self.path))
                told = {"ETag": server.etag, "Content-Length": str(len(DATA)), "Digest": server.digest}
                refused = 405 if self.path == "/nohead" else 200
                self.send_response(int(self.path[1:]) if self.path[1:].isdigit() else refused)
                for key, value in told.items():
                    if value:
                        self.send_header(key, value)
                self.end_headers()

            def setup(self) -> None:
                server.connections += 1
                super().setup()
                server.open.append(self.connection)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, h: http.server.BaseHTTPRequestHandler, path: str) -> None:
        path = path.partition("?")[0]
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", h.headers["Range"])
        assert match
        start, stop = int(match[1]), min(int(match[2]) + 1, len(DATA))
        headers, status, body = {"ETag": self.etag}, 206, DATA[start:stop]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(DATA)}"
        if path == "/redirect":
            headers, status, body = {"Location": self.elsewhere}, 302, b""
        elif path == "/loop":
            headers, status, body = {"Location": "/loop"}, 302, b""
        elif path == "/away":
            headers, status, body = {"Location": "file:///etc/passwd"}, 302, b""
        elif path == "/whole":
            headers, status, body = {}, 200, DATA
        elif self.dead:
            headers, status, body = {}, self.dead, b""
        elif path == "/short":
            body = body[:-1]
        elif path == "/nowhere":
            del headers["Content-Range"]
        elif path[1:].isdigit():
            headers, status, body = {}, int(path[1:]), b"because\n"
        h.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            h.send_header(key, value)
        h.end_headers()
        h.wfile.write(body)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def well() -> None:
    remote._sick.clear()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def opened(server: Server, path: str, token: str = "secret") -> RemoteFile:
    data = open_bytes(server.origin + path, token, allow=(server.origin,))
    assert isinstance(data, RemoteFile)
    return data


def test_any_range_is_exactly_the_files_bytes(server):
    for path in ("/file", "/whole"):
        data = opened(server, path)
        assert data.size == len(DATA)
        for start, stop in ((0, 10), (5, 5), (remote.BLOCK - 3, remote.BLOCK + 3), (7, 900_000)):
            assert data.read(start, stop) == DATA[start:stop]
        with pytest.raises(CorruptFile, match="beyond its end"):
            data.read(0, len(DATA) + 1)
        data.close()


def test_a_file_that_changes_while_it_is_read_fails_instead_of_mixing(server):
    data = opened(server, "/file")
    server.etag = '"2"'
    with pytest.raises(OriginFailed, match="changed"):
        data.read(500_000, 500_010)
    data.close()


def test_the_token_does_not_follow_a_redirect_to_another_origin(server):
    other = Server()
    try:
        server.elsewhere = f"{other.origin}/file"
        data = open_bytes(f"{server.origin}/redirect", "secret", allow=(server.origin, other.origin))
        assert data.read(0, 4) == DATA[:4]
        assert (set(server.tokens), set(other.tokens)) == ({"Bearer secret"}, {None})
        data.close()
        with pytest.raises(Forbidden, match="private network"):
            open_bytes(f"{server.origin}/redirect", "secret", allow=(server.origin,))
    finally:
        other.close()


def test_a_version_is_learnt_without_reading_a_byte(server):
    task = Task(f"{server.origin}/file", "", "", known=("1",), allow=(server.origin,))
    data = open_input(task)
    assert (data.version, data.size, data.taken) == ("1", len(DATA), 0)
    assert server.asked == [("HEAD", "/file")]
    assert data.read(5, 9) == DATA[5:9]
    data.close()


def test_a_server_that_refuses_head_is_asked_for_the_first_block(server):
    task = Task(f"{server.origin}/nohead", "", "", known=("1",), allow=(server.origin,))
    data = open_input(task)
    assert (data.version, data.size) == ("1", len(DATA))
    assert 0 < data.taken <= remote.BLOCK
    data.close()


def test_a_server_without_ranges_is_read_whole_after_its_head(server):
    server.etag = ""
    task = Task(f"{server.origin}/whole", "", "", known=("1",), allow=(server.origin,))
    data = open_input(task)
    assert data.taken == 0
    assert data.read(200_000, 500_000) == DATA[200_000:500_000]
    data.close()


def test_files_of_one_server_share_connections(server):
    before = server.connections
    for i in range(20):
        data = opened(server, f"/file?{i}")
        assert data.read(300_000, 600_000) == DATA[300_000:600_000]
        data.close()
    assert server.connections - before <= 1


def test_a_kept_connection_that_the_server_closed_is_made_again(server):
    opened(server, "/file").close()
    for connection in server.open:
        connection.shutdown(socket.SHUT_RDWR)
    data = opened(server, "/file")
    assert data.read(0, 3) == DATA[:3]
    data.close()


def replicas(*urls: str, known: tuple[str, ...] = ()) -> Task:
    allow = tuple({"/".join(u.split("/")[:3]) for u in urls})
    return Task(urls[0], "", "", replicas=tuple((u, "") for u in urls[1:]), allow=allow, known=known)


def test_the_next_replica_is_read_where_the_first_does_not_open(server):
    data = open_input(replicas("http://127.0.0.1:9/gone", f"{server.origin}/404", f"{server.origin}/file"))
    assert data.url == f"{server.origin}/file"
    assert data.read(0, 8) == DATA[:8]
    data.close()


def test_what_is_wrong_with_every_replica_is_said(server):
    with pytest.raises(StorageUnavailable) as caught:
        open_input(replicas(f"{server.origin}/404", f"{server.origin}/500"))
    assert "/404" in caught.value.message
    assert "/500" in caught.value.message


@pytest.mark.parametrize("same", ["digest", "version"])
def test_another_replica_takes_over_in_the_middle_if_its_content_is_the_same(server, same):
    other = Server()
    try:
        if same == "digest":
            server.digest = other.digest = "adler32=01020304"
            other.etag = '"other"'
        data = open_input(replicas(f"{server.origin}/a", f"{other.origin}/b", known=("x",)))
        assert data.read(0, 300_000) == DATA[:300_000]
        server.dead = 404
        assert data.read(400_000, 800_000) == DATA[400_000:800_000]
        assert data.url == f"{other.origin}/b"
        assert data.taken == 700_000
        # Else a server that knows another file's size, digest and version could pass its own bytes off as
        # that file's, and a result of them would be everybody's.
        assert data.version == ""
        data.close()
    finally:
        other.close()


@pytest.mark.parametrize("status", [503, 404])
def test_a_replica_of_other_content_never_takes_over_in_the_middle(server, status):
    other = Server()
    other.etag = '"other"'
    try:
        task = replicas(f"{server.origin}/a", f"{other.origin}/b")
        data = open_input(task)
        data.read(0, 300_000)
        server.dead = status
        with pytest.raises(StorageUnavailable):
            data.read(400_000, 800_000)
        data.close()
        again = open_input(task)  # the next attempt begins with the one that is well
        assert again.url == f"{other.origin}/b"
        again.close()
    finally:
        other.close()


def test_tokens_in_a_url_are_not_in_messages(server):
    with pytest.raises(NotFound) as caught:
        opened(server, "/404?authz=hush")
    assert "hush" not in caught.value.message


def test_an_object_of_a_bucket_is_read_by_its_signed_url_which_no_message_tells(server):
    signed = f"{server.origin}/file?X-Amz-Signature=hush"
    data = open_bytes("s3://b/k", signed, allow=(server.origin,))
    assert data.read(1, 5) == DATA[1:5]
    assert data.url == "s3://b/k"
    data.close()
    with pytest.raises(Forbidden) as caught:
        open_bytes("s3://b/k", f"{server.origin}/403?X-Amz-Signature=hush", allow=(server.origin,))
    assert "hush" not in caught.value.message
    with pytest.raises(Forbidden, match="objects of this bucket are not read"):
        open_bytes("s3://b/k")


def test_where_a_redirect_led_to_may_be_gone_later(server):
    first, second = Server(), Server()
    try:
        server.elsewhere = f"{first.origin}/file"
        allow = (server.origin, first.origin, second.origin)
        data = open_bytes(f"{server.origin}/redirect", "secret", allow=allow)
        first.dead, server.elsewhere = 503, f"{second.origin}/file"
        assert data.read(200_000, 500_000) == DATA[200_000:500_000]
        assert set(second.tokens) == {None}
        first.dead = second.dead = 503
        with pytest.raises(StorageUnavailable):
            data.read(500_000, 900_000)
        data.close()
    finally:
        first.close()
        second.close()


REFUSED = {
    "/401": InvalidToken,
    "/403": Forbidden,
    "/404": NotFound,
    "/500": StorageUnavailable,
    "/418": OriginFailed,
    "/loop": OriginFailed,
    "/away": OriginFailed,
    "/short": OriginFailed,
    "/nowhere": OriginFailed,
}


@pytest.mark.parametrize(("path", "kind"), REFUSED.items())
def test_what_the_server_says_becomes_one_clear_error(server, path, kind):
    with pytest.raises(kind) as caught:
        opened(server, path)
    assert path in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/a", "http://localhost/a", "http://[::1]/a", "http://169.254.169.254/", "http://0/"],
)
def test_private_addresses_are_not_contacted(url):
    with pytest.raises(Forbidden, match="private network"):
        open_bytes(url)


def test_only_known_schemes_are_spoken():
    for url in (
        "ftp://a/b",
        "http:///x",
        "x",
        "https://me:pw@a/b",
        "https://a/b c",
        "gopher://x",
        "root:///b",
    ):
        with pytest.raises(BadRequest):
            open_bytes(url)
    with pytest.raises(Forbidden):
        open_bytes("file:///etc/passwd")


@given(
    st.lists(
        st.tuples(st.integers(0, 10**8), st.integers(1, 10**6)).map(lambda t: (t[0], sum(t))), max_size=30
    )
)
def test_merged_ranges_hold_every_range_whole(ranges):
    merged = _merged(ranges)
    assert all(any(a <= x and y <= b for a, b in merged) for x, y in ranges)
    assert len(merged) <= max(len(ranges), 1)
