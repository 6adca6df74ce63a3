"""Load for the storage benchmark: curl for large bodies, prepared requests for small ones.

The same program works on both kinds of server and its own cost is not counted. Every answer is checked.
"""

import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

Prepared = Callable[[int], bytes]


class Curl:
    """Runs curl with a token and a CA."""

    def __init__(self, token: str, ca: Path, folder: Path) -> None:
        self._token, self._ca, self._folder = token, ca, folder

    def _lines(self, url: str, more: Sequence[str]) -> list[str]:
        return [
            f'url = "{url}"', f'header = "Authorization: Bearer {self._token}"', f'cacert = "{self._ca}"',
            "silent", "show-error", *more,
        ]  # fmt: skip

    def _run(self, lines: Sequence[str], *options: str) -> str:
        """Everything goes in by a file: no token shows up in the list of processes."""
        file = self._folder / "curl.cfg"
        file.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["curl", *options, "-K", str(file)], capture_output=True, text=True, errors="replace", check=False
        )
        assert done.returncode == 0, (done.returncode, done.stderr[-500:], done.stdout[-500:])
        return done.stdout

    def get(self, url: str) -> None:
        """Read a file and forget it."""
        self._run(self._lines(url, ['output = "/dev/null"', "fail"]))

    def put(self, file: Path, url: str) -> None:
        """Upload a file."""
        self._run(self._lines(url, [f'upload-file = "{file}"', "fail"]))

    def delete(self, url: str) -> None:
        """Delete a file."""
        self._run(self._lines(url, ['request = "DELETE"', "fail", 'output = "/dev/null"']))

    def text(self, url: str, method: str, *headers: str) -> str:
        """The body of an answer."""
        more = [f'request = "{method}"', *(f'header = "{header}"' for header in headers), "fail"]
        return self._run(self._lines(url, more))

    def copies(self, pairs: Sequence[tuple[str, str, str]]) -> None:
        """Third-party copies, all at once: target, ``Source`` or ``Destination``, and the other side."""
        blocks = []
        for number, (target, word, other) in enumerate(pairs):
            more = [
                'request = "COPY"', f'header = "{word}: {other}"', "fail", "no-buffer",
                f'header = "TransferHeaderAuthorization: Bearer {self._token}"',
                f'output = "{self._folder / f"copy.{number}"}"',
            ]  # fmt: skip
            blocks.append("\n".join(self._lines(target, more)))
        many = ("--parallel", "--parallel-immediate", "--parallel-max", str(len(pairs)))
        self._run(["\nnext\n".join(blocks)], *(many if len(pairs) > 1 else ()))
        for number in range(len(pairs)):
            answer = (self._folder / f"copy.{number}").read_text()
            assert "success" in answer.lower().splitlines()[-1], answer[-400:]


class Wire:
    """Small requests over kept TLS connections, one at a time on each."""

    def __init__(self, url: str, token: str, ca: Path, connections: int = 8) -> None:
        place = urlsplit(url)
        self.path = place.path
        self._head = f"Host: {place.netloc}\r\nAuthorization: Bearer {token}\r\nUser-Agent: bench\r\n"
        context = ssl.create_default_context(cafile=str(ca))
        self._socks = []
        for _ in range(connections):
            sock = socket.create_connection((str(place.hostname), place.port or 443), timeout=60)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks.append(context.wrap_socket(sock, server_hostname=place.hostname))

    def request(self, method: str, path: str, more: str = "", body: bytes = b"") -> bytes:
        """The bytes of a request."""
        if body:
            more += f"Content-Length: {len(body)}\r\n"
        head = f"{method} {self.path}{path} HTTP/1.1\r\n{self._head}{more}Connection: Keep-Alive\r\n\r\n"
        return head.encode() + body

    def run(self, make: Prepared, count: int, good: Sequence[int]) -> float:
        """Send ``make(0)`` to ``make(count - 1)``; seconds."""
        begun, number = time.perf_counter(), len(self._socks)
        for turn in range(min(number, count)):
            self._socks[turn].sendall(make(turn))
        for turn in range(count):
            sock = self._socks[turn % number]
            status = _answer(sock)
            assert status in good, (status, make(turn)[:200])
            if turn + number < count:
                sock.sendall(make(turn + number))
        return time.perf_counter() - begun

    def race(self, make: Prepared, count: int, good: Sequence[int]) -> float:
        """The same, but no connection waits for another one: for servers of several processes.

        Whichever is free takes the next request: the kernel deals connections to processes by chance, and a
        share fixed before would measure that.
        """
        turns = iter(range(count))

        def one(sock: ssl.SSLSocket) -> None:
            for turn in turns:
                sock.sendall(make(turn))
                status = _answer(sock)
                assert status in good, (status, make(turn)[:200])

        begun = time.perf_counter()
        with ThreadPoolExecutor(len(self._socks)) as pool:
            for done in [pool.submit(one, sock) for sock in self._socks]:
                done.result()
        return time.perf_counter() - begun

    def close(self) -> None:
        """Close the connections."""
        for sock in self._socks:
            sock.close()


def _answer(sock: ssl.SSLSocket) -> int:
    """Read one whole answer; its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    status, lower = int(head[9:12]), head.lower()
    if status == 100:
        return _answer(sock)
    if b"transfer-encoding: chunked" in lower:
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(sock)
    elif status != 204:
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        while len(body) < length:
            body += _more(sock)
    return status


def _more(sock: ssl.SSLSocket) -> bytes:
    piece = sock.recv(1 << 18)
    assert piece, "the server closed the connection"
    return piece
