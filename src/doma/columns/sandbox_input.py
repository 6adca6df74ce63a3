"""The granted input as a small HTTP server in the network of one run; and the other end that has the bytes.

The server inside knows one name. Each range becomes a frame of sixteen bytes to the worker process outside
(start, stop), which answers from the opened input: a length and that many bytes, or -1. The frames come from
a process that hostile code may have taken over: the worker checks them, and drops the run for a wrong one.
"""

import contextlib
import http.server
import queue
import re
import socket
import struct
import threading

from doma.columns.remote import Bytes
from doma.core.errors import DomaError

ASK = struct.Struct("<QQ")
GIVE = struct.Struct("<q")
MOST = 4 << 20
"""Bytes of one answer."""


def serve(listener: socket.socket, name: str, size: int, links: list[socket.socket]) -> None:
    """Serve the input in threads of this process, from now on.

    Args:
        listener: A listening socket.
        name: The only path there is, without its slash.
        size: Bytes of the input.
        links: Sockets to the worker, used by one request at a time each.
    """
    free: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
    for link in links:
        free.put(link)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 600

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def _answer(self, body: bool) -> None:
            if self.path != f"/{name}":
                return self.send_error(404)
            found = span(self.headers.get("Range", ""), size)
            if found is None:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            start, stop, partial = found
            self.send_response(206 if partial else 200)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if body:
                self._body(start, stop)
            return None

        def _body(self, start: int, stop: int) -> None:
            link = free.get()
            try:
                for at in range(start, stop, MOST):
                    self.wfile.write(_asked(link, at, min(stop, at + MOST)))
            except OSError:
                self.close_connection = True
            finally:
                free.put(link)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away is no event."""

    server = Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = "localhost", listener.getsockname()[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()


def span(header: str, size: int) -> tuple[int, int, bool] | None:
    """Start, stop and whether a part was asked for; several ranges get the whole; None: beyond the end.

    >>> span("bytes=2-5", 10), span("bytes=-3", 10), span("", 10), span("bytes=10-", 10)
    ((2, 6, True), (7, 10, True), (0, 10, False), None)
    """
    match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", header.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size, False
    if not match[1]:
        return (max(0, size - int(match[2])), size, True) if int(match[2]) and size else None
    start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    return (start, stop, True) if start < stop else None


def _asked(link: socket.socket, start: int, stop: int) -> bytes:
    link.sendall(ASK.pack(start, stop))
    (length,) = GIVE.unpack(exactly(link, GIVE.size))
    if length != stop - start:
        raise ConnectionError("the input cannot be read")
    return exactly(link, length)


def exactly(link: socket.socket, size: int) -> bytes:
    """So many bytes. Raises ConnectionError when there are fewer."""
    data = bytearray()
    while len(data) < size:
        more = link.recv(min(1 << 20, size - len(data)))
        if not more:
            raise ConnectionError("the peer is gone")
        data += more
    return bytes(data)


class Giver:
    """The worker's end: answers ranges of one input on some sockets, in threads, until they close.

    Attributes:
        failure: The first error of the input; it, not what the function made of it, is the file's reason.
    """

    def __init__(self, data: Bytes, links: list[socket.socket]) -> None:
        self._data, self._links = data, links
        self.failure: DomaError | None = None
        self._threads = [threading.Thread(target=self._give, args=(x,), daemon=True) for x in links]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop answering."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.close()

    def _give(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                start, stop = ASK.unpack(exactly(link, ASK.size))
                if not 0 <= start < stop <= self._data.size or stop - start > MOST:
                    link.shutdown(socket.SHUT_RDWR)
                    return
                try:
                    piece = self._data.read(start, stop)
                except DomaError as e:
                    self.failure = self.failure or e
                    link.sendall(GIVE.pack(-1))
                else:
                    link.sendall(GIVE.pack(len(piece)))
                    link.sendall(piece)
