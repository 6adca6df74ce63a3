"""Load over root://: a client of raw sockets that costs little, for any server; runs alone too.

    python tests/bench/cache/root_load.py root://127.0.0.1:1094//file [--what read,readv,pgread]
        [--size 65536] [--parts 16] [--connections 8] [--count 5000] [--token FILE] [--pid PID] [--check FILE]

It prints the rate, latencies and, with the server's pid, CPU of its whole process tree per request. With
``--check`` every byte is compared with a local copy of the file (and every page sum of pgread).

Source: xrootd contract §1-§7; the layouts are those of XRootD's XProtocol.hh.
"""

import argparse
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from crc32c import crc32c

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.bench.dataplane_load import percentile
from tests.bench.storage_sites import cpu_of

OK, MORE, ATTN, ERROR, WAIT, STATUS = 0, 4000, 4001, 4003, 4005, 4007
READ, READV, PGREAD = 3013, 3025, 3030
PAGE = 4096
Piece = tuple[int, bytes]
"""Offset of bytes in the file, and they."""


@dataclass
class Connection:
    """A session with one open file.

    Args:
        url: ``root://host:port//path``.
        token: Sent as ``authz`` with the open.
    """

    url: str
    token: str = ""
    size: int = 0
    sock: socket.socket = field(init=False)
    handle: bytes = field(init=False)

    def __post_init__(self) -> None:
        place = urlsplit(self.url)
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.connect((place.hostname or "127.0.0.1", place.port or 1094))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))
        hello = struct.pack(">5i", 0, 0, 0, 4, 2012)
        self.sock.sendall(hello + request(3006, struct.pack(">iBB10x", 0x520, 0, 3)))
        assert len(self.answer()) == 8, "hello"
        self.answer()
        login = struct.pack(">i8sBBBx", 1, b"bench", 0, 0, 5)
        assert len(self.ask(3007, login)) == 16, "this server wants to see a credential"
        path = place.path.removeprefix("/") if place.path.startswith("//") else place.path
        if self.token:
            path += "?authz=" + quote(f"Bearer {self.token}")
        opened = self.ask(3010, struct.pack(">HHH6x4s", 0, 0x0410, 0, b""), path.encode())
        self.handle = opened[:4]
        self.size = int(opened[12:].split()[1])

    def ask(self, code: int, body: bytes, data: bytes = b"") -> bytes:
        self.sock.sendall(request(code, body, data))
        return self.answer()

    def answer(self) -> bytes:
        """One whole answer that is not of the data requests."""
        while True:
            status, length = self.head()
            body = self.exactly(length)
            if status == OK:
                return body
            assert status == ATTN, (status, body)

    def head(self) -> tuple[int, int]:
        """Status and length of what comes next."""
        frame = self.exactly(8)
        return int.from_bytes(frame[2:4]), int.from_bytes(frame[4:])

    def exactly(self, count: int) -> bytes:
        data = self.sock.recv(count, socket.MSG_WAITALL) if count else b""
        assert len(data) == count, f"the server closed the connection, {len(data)} of {count} bytes came"
        return data

    def forget(self, count: int) -> None:
        while count:
            got = self.sock.recv_into(_SINK, min(count, len(_SINK)), socket.MSG_TRUNC)
            assert got, "the server closed the connection"
            count -= got

    def close(self) -> None:
        self.sock.close()

    def swallow(self) -> int:
        """Receive the answer to a data request and forget it; its length without the frames."""
        total = 0
        while True:
            status, length = self.head()
            if status == STATUS:
                rest = self.exactly(length)
                length = int.from_bytes(rest[12:16])
                status = MORE if rest[7] == 1 else OK
            elif status not in {OK, MORE}:
                raise AssertionError((status, self.exactly(length)))
            self.forget(length)
            total += length
            if status == OK:
                return total

    def pieces(self, what: int, start: int) -> Iterator[Piece]:
        """Receive the answer to a data request and check its sums: what it holds of the file."""
        while True:
            status, length = self.head()
            assert status in {OK, MORE, STATUS}, (status, self.exactly(length))
            if status == STATUS:
                rest = self.exactly(length)
                assert crc32c(rest[4:]) == int.from_bytes(rest[:4]), "sum of the status"
                length, offset = struct.unpack_from(">iq", rest, 12)
                status = MORE if rest[7] == 1 else OK
                yield from _pages(offset, self.exactly(length))
            elif what == READV:
                data = self.exactly(length)
                while data:
                    _, count, offset = struct.unpack_from(">4siq", data)
                    yield offset, data[16 : 16 + count]
                    data = data[16 + count :]
            else:
                yield start, self.exactly(length)
                start += length
            if status == OK:
                return


_SINK = bytearray(1 << 20)


def _pages(offset: int, data: bytes) -> Iterator[Piece]:
    at = 0
    while at < len(data):
        page = data[at + 4 : at + 4 + PAGE - offset % PAGE]
        assert crc32c(page) == int.from_bytes(data[at : at + 4]), f"sum of the page at {offset}"
        yield offset, page
        at, offset = at + 4 + len(page), offset + len(page)


def request(code: int, body: bytes, data: bytes = b"") -> bytes:
    """A request; there is never more than one under way, so every stream id is the same."""
    return struct.pack(">2sH16si", b"\0\1", code, body, len(data)) + data


def prepared(what: int, handle: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """The request for spans ``(start, length)``; one alone unless it is a readv."""
    if what == READV:
        return request(what, b"", b"".join(struct.pack(">4siq", handle, n, at) for at, n in spans))
    [(at, count)] = spans
    return request(what, struct.pack(">4sqi", handle, at, count), b"\0\0" if what == PGREAD else b"\0" * 8)


def run(
    connections: Sequence[Connection],
    what: int,
    count: int,
    size: int,
    parts: int = 1,
    *,
    ordered: bool = False,
    copy: Path | None = None,
    seed: int = 7,
) -> list[float]:
    """Send ``count`` requests, one at a time on each connection; the seconds that each took.

    Args:
        connections: Sessions with open files of one length.
        what: READ, READV or PGREAD.
        count: Requests in all.
        size: Bytes of each span.
        parts: Spans of each readv.
        ordered: One after the other through the file instead of at random.
        copy: Compare with this file.
        seed: Of the offsets.
    """
    rng, whole = random.Random(seed), connections[0].size
    number, parts = len(connections), parts if what == READV else 1
    assert whole >= size, "the file is too small"
    local = copy.open("rb") if copy else None
    began, taken = [0.0] * number, []
    asked: list[list[tuple[int, int]]] = [[] for _ in connections]

    def send(turn: int) -> None:
        slot = turn % number
        if ordered:
            at = turn * size % (whole - whole % size)
            asked[slot] = [(at, size)]
        else:
            asked[slot] = [(rng.randrange(whole - size + 1), size) for _ in range(parts)]
        began[slot] = time.perf_counter()
        connections[slot].sock.sendall(prepared(what, connections[slot].handle, asked[slot]))

    for turn in range(min(number, count)):
        send(turn)
    for turn in range(count):
        slot = turn % number
        spans, length = asked[slot], 0
        if local is None:
            length = connections[slot].swallow()
        else:
            for offset, data in connections[slot].pieces(what, spans[0][0]):
                local.seek(offset)
                assert data == local.read(len(data)), f"other bytes at {offset}"
                length += len(data)
        assert length >= size * parts, (length, size, parts)
        taken.append(time.perf_counter() - began[slot])
        if turn + number < count:
            send(turn + number)
    if local is not None:
        local.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--what", default="read,readv,pgread")
    parser.add_argument("--size", type=int, default=65536)
    parser.add_argument("--parts", type=int, default=16, help="of a readv, a fourth of --size each")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--ordered", action="store_true", help="through the file instead of at random")
    parser.add_argument("--token", type=Path, help="file with a token")
    parser.add_argument("--pid", type=int, default=0, help="of the server")
    parser.add_argument("--check", type=Path, help="a local copy of the file")
    asked = parser.parse_args()
    token = asked.token.read_text().strip() if asked.token else ""
    connections = [Connection(asked.url, token) for _ in range(asked.connections)]
    for name in asked.what.split(","):
        what = {"read": READ, "readv": READV, "pgread": PGREAD}[name]
        size = asked.size // 4 if what == READV else asked.size
        for turn, count in enumerate((min(asked.count, 500), asked.count)):  # the first ones warm
            before, began = cpu_of(asked.pid) if asked.pid else 0.0, time.perf_counter()
            taken = run(connections, what, count, size, asked.parts, ordered=asked.ordered, copy=asked.check)
            seconds = time.perf_counter() - began
            if turn:
                used = f"CPU {(cpu_of(asked.pid) - before) / count * 1e6:7.1f} us" if asked.pid else ""
                half, worst = percentile(taken, 0.5) * 1e3, percentile(taken, 0.99) * 1e3
                print(f"{name:7} {count / seconds:8.0f}/s  p50 {half:.2f} ms  p99 {worst:.2f} ms  {used}")
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
