"""Reading inputs over HTTP: one version only, the token to its origin only, no private networks by query."""

import http.server
import re
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doma.columns import remote
from doma.columns.remote import RemoteFile, open_bytes
from doma.columns.source import _merged
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
        self.tokens: list[str | None] = []
        self.elsewhere = ""
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.tokens.append(self.headers.get("Authorization"))
                server.answer(self, self.path)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, h: http.server.BaseHTTPRequestHandler, path: str) -> None:
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


def test_only_http_is_spoken():
    for url in ("ftp://a/b", "root://a//b", "http:///x", "x"):
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
