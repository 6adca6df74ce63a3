"""A load generator that costs little: raw sockets, prepared requests, whole answers in one call.

All answers of one kind have the same length (offsets with the same number of digits), so an answer is
received with one ``recv`` over plain TCP. Every status is asserted: an error answer is fast.
"""

import os
import random
import socket
import ssl
import struct
import time
from collections.abc import Sequence

BASE = 100_000_000
"""Offsets start here: nine digits each."""


class Target:
    """One server as the generator sees it.

    Args:
        name: For the table.
        plain, tls: Ports on loopback.
        path: Of the 1 GiB file.
        put: Path to upload to.
        headers: Lines that every request carries.
    """

    def __init__(self, name: str, plain: int, tls: int, path: str, put: str, headers: str) -> None:
        self.name, self.plain, self.tls = name, plain, tls
        self.path, self.put, self.headers = path, put, headers

    def dial(self, *, tls: bool) -> socket.socket:
        sock = socket.socket()
        # A window larger than an answer: else each one stalls on a delayed ACK, 40 ms long.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.connect(("127.0.0.1", self.tls if tls else self.plain))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A kernel-side limit: an answer of another length fails here instead of waiting for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
        if not tls:
            return sock
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(sock, server_hostname="localhost")

    def cipher(self) -> str:
        """What a TLS connection negotiates."""
        with self.dial(tls=True) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            return " ".join(str(part) for part in sock.cipher() or ())

    def request(self, more: str = "", method: str = "GET", path: str = "") -> bytes:
        first = f"{method} {path or self.path} HTTP/1.1\r\nHost: localhost\r\n"
        return f"{first}{self.headers}{more}\r\n".encode()


def head_of(sock: socket.socket) -> tuple[bytes, bytes]:
    """The head of an answer and what came of its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[int(len(values) * share)]


def length_of(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


def swallow(sock: socket.socket, count: int, buffer: memoryview) -> None:
    """Receive and forget."""
    if isinstance(sock, ssl.SSLSocket):
        while count:
            got = sock.recv_into(buffer, min(count, len(buffer)))
            assert got
            count -= got
        return
    while count:
        got = sock.recv_into(buffer, min(count, len(buffer)), socket.MSG_TRUNC)
        assert got
        count -= got


def exactly(sock: socket.socket, count: int, buffer: memoryview) -> None:
    """Receive into the buffer."""
    if not isinstance(sock, ssl.SSLSocket):
        got = sock.recv_into(buffer, count, socket.MSG_WAITALL)
        assert got == count, (got, count, bytes(buffer[:200]))
        return
    at = 0
    while at < count:
        got = sock.recv_into(buffer[at:count])
        assert got
        at += got


def ranges(target: Target, size: int, count: int, parts: int, whole: int) -> list[bytes]:
    """Prepared requests for random spans of ``size`` bytes, ``parts`` in each."""
    rng = random.Random(7)
    prepared = []
    for _ in range(count):
        starts = [rng.randrange(BASE, min(whole, 999_000_000) - size) for _ in range(parts)]
        text = ", ".join(f"{s}-{s + size - 1}" for s in sorted(starts))
        prepared.append(target.request(f"Range: bytes={text}\r\n"))
    return prepared


def run_ranges(
    target: Target, *, tls: bool, size: int, parts: int, connections: int, count: int, whole: int
) -> float:
    """Send ``count`` range requests over several connections, one at a time on each; seconds."""
    prepared = ranges(target, size, 64, parts, whole)
    socks = [target.dial(tls=tls) for _ in range(connections)]
    buffer = memoryview(bytearray(size * parts + parts * 400 + 65536))
    total = 0
    for sock in socks:  # the first answer tells the length, and warms what a connection remembers
        for turn in range(3):
            sock.sendall(prepared[turn])
            head, rest = head_of(sock)
            assert head.startswith(b"HTTP/1.1 206"), head
            total = len(head) + length_of(head)
            swallow(sock, length_of(head) - len(rest), buffer)
    begun = time.perf_counter()
    for turn in range(connections):
        socks[turn].sendall(prepared[turn % 64])
    for turn in range(count):
        sock = socks[turn % connections]
        exactly(sock, total, buffer)
        assert bytes(buffer[:12]) == b"HTTP/1.1 206", bytes(buffer[:200])
        if turn + connections < count:
            sock.sendall(prepared[turn % 64])
    spent = time.perf_counter() - begun
    for sock in socks:
        sock.close()
    return spent


def run_get(target: Target, *, tls: bool) -> float:
    """Read the whole file once; seconds."""
    buffer = memoryview(bytearray(1 << 20))
    with target.dial(tls=tls) as sock:
        begun = time.perf_counter()
        sock.sendall(target.request())
        head, rest = head_of(sock)
        assert head.startswith(b"HTTP/1.1 200"), head
        swallow(sock, length_of(head) - len(rest), buffer)
        return time.perf_counter() - begun


def run_put(target: Target, *, tls: bool, size: int) -> float:
    """Upload ``size`` bytes; seconds."""
    piece = os.urandom(1 << 20)
    with target.dial(tls=tls) as sock:
        begun = time.perf_counter()
        more = f"Content-Length: {size}\r\nContent-Type: application/octet-stream\r\n"
        sock.sendall(target.request(more, "PUT", target.put))
        for _ in range(size >> 20):
            sock.sendall(piece)
        head, _ = head_of(sock)
        assert head.startswith((b"HTTP/1.1 201", b"HTTP/1.1 204")), head
        return time.perf_counter() - begun


def run_tiny(target: Target, path: str, seconds: float) -> list[float]:
    """Latencies of a tiny request, one after the other, about 300 a second."""
    latencies = []
    request = target.request(path=path)
    with target.dial(tls=False) as sock:
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            sock.sendall(request)
            head, _ = head_of(sock)
            assert head.startswith(b"HTTP/1.1 200"), head
            latencies.append(time.perf_counter() - begun)
            time.sleep(0.003)
    return latencies


def run_idle(target: Target, path: str, count: int, *, tls: bool) -> list[socket.socket]:
    """Open connections that have made one request each and wait."""
    socks = []
    request = target.request(path=path)
    for _ in range(count):
        sock = target.dial(tls=tls)
        sock.sendall(request)
        head, _ = head_of(sock)
        assert head.startswith(b"HTTP/1.1 200"), head
        socks.append(sock)
    return socks
