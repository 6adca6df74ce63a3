"""One HTTP/1.1 connection to a server, the client's side: one request at a time, never trusting the peer.

The head goes through llhttp. A body of known length bypasses it: what arrives is counted and handed to the
sink, and a sink that is a buffer is received into directly, without a copy. Chunked bodies and those that
end with the connection go through the parser. The head is bounded; a body is bounded by what its sink holds.

Source: RFC 9112; dataplane.md §3.3-3.4 and T1, T13, T17-T19 of the project's contracts.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from doma.core.errors import DomaError, OriginFailed, StorageUnavailable
from doma.net.sinks import Fill, Flow, Head, Piece, Sink

HEAD_LIMIT = 64 << 10
"""Bytes of a response head, with all its header fields."""
INTERIM = 8
"""``1xx`` answers before the real one at most."""
HIGH = 1 << 20
"""Bytes that wait for a slow consumer before reading pauses."""

NEVER = float("inf")


class Queue:
    """Keeps pieces for an awaiting consumer, and pauses the connection when that is slow."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self._error: DomaError | None = None

    def feed(self, data: Piece) -> None:
        self._pieces.append(bytes(data))
        self._size += len(data)
        if self._size > HIGH:
            self._connection.pause()
        self._wake()

    def end(self, error: DomaError | None) -> None:
        """No more comes, because of an error or because that was all."""
        self._over, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> bytes:
        """The next piece; empty at the end. Raises what broke the connection."""
        while not self._pieces:
            if self._over:
                if self._error is not None:
                    raise self._error
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        piece = self._pieces.popleft()
        self._size -= len(piece)
        if self._size <= HIGH // 2:
            self._connection.resume(self)
        return piece


Address = tuple[str, int]
"""Literal IP address and port."""

OnHead = Callable[[Head], Sink | None]
"""Chooses where a body goes when its head is there; None: a queue."""


class Connection(asyncio.BufferedProtocol):
    """A connection of the pool.

    Args:
        name: ``https://host:port`` for messages.
        buffer: Read buffer, shared by all connections of the loop: bytes in it are used before the
            callback returns.
        idle: Seconds without progress that a body may take.
    """

    def __init__(self, name: str, buffer: memoryview, idle: float) -> None:
        self.name = name
        self.error: DomaError | None = None
        self.deadline = NEVER
        self.since = 0.0
        self.answered = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._buffer = buffer
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None
        self._busy = False
        self._paused = False

    # --- one exchange ---

    def begin(
        self,
        method: str,
        on_head: OnHead | None,
        over: Callable[["Connection"], None],
        first: float | None = None,
    ) -> None:
        """Get ready for the answer to a request that is about to be written.

        Args:
            method: Of the request.
            on_head: Chooses the sink.
            over: Called once, when the answer is complete or the connection lost.
            first: Seconds between the head and the first byte of the body, if fewer than of any other pause.
        """
        self._pause = self._idle if first is None else min(first, self._idle)
        self._over = over
        self.done: asyncio.Future[DomaError | None] = self._loop.create_future()
        self._busy = True
        self._method = method
        self._on_head = on_head
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        # RFC 9112 §2.2 lets a recipient take LF for a line's end; XRootD 5.5 sends it in answers to ranges.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._fed = False
        self._fields: list[tuple[str, str]] = []
        self._head_size = 0
        self._interim = 0
        self._seen = False
        self._left = 0
        self._ends_with_connection = False
        self._keep = False
        self._direct = False
        self._complete = False
        self._surplus = False
        self._sink: Sink | None = None
        self.upload_done = True
        self.head: asyncio.Future[tuple[Head, Sink] | None] = self._loop.create_future()
        self.go_on: asyncio.Future[None] = self._loop.create_future()

    def ends(self) -> tuple[Address, Address] | None:
        """Literal addresses and ports of this end and of the peer; None when the connection is gone."""
        if self._transport is None:
            return None
        own, peer = (self._transport.get_extra_info(name) for name in ("sockname", "peername"))
        return ((str(own[0]), int(own[1])), (str(peer[0]), int(peer[1]))) if own and peer else None

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing() and not self._busy

    def write(self, data: Piece) -> None:
        """Send; the data are copied or kept, never changed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the peer takes more; raises what broke the connection."""
        if self._writable is not None:
            await self._writable
        if self.error is not None:
            raise self.error

    def fail(self, error: DomaError) -> None:
        """End the connection; whoever waits for the answer gets the error."""
        if self._busy and self.error is None:
            self.error = error
        self.abort()

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._finish(keep=False)

    def pause(self) -> None:
        """Stop reading until :meth:`resume`; the peer's clock stops too."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self.deadline = NEVER
            self._transport.pause_reading()

    def resume(self, sink: Sink) -> None:
        """Read on, if the pause was for this sink."""
        if self._paused and self._sink is sink and self._transport is not None:
            self._paused = False
            self.deadline = self._loop.time() + self._pause
            self._transport.resume_reading()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._busy and self._left > 0 and isinstance(self._sink, Fill):
            self._direct = True
            return self._sink.target[self._sink.got : self._sink.got + self._left]
        self._direct = False
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._busy:
            self.abort()  # Nobody asked: it cannot be trusted to answer the next request.
            return
        self._seen = True
        if self.head.done():
            self._pause = self._idle
        if not self._paused:
            self.deadline = self._loop.time() + self._pause
        try:
            self._take(nbytes)
        except DomaError as e:
            self.fail(type(e)(f"{self.name}: {e.message}"))
        except httptools.HttpParserError as e:
            cause = e.__context__
            if self._complete:
                self._finish(keep=False)  # The answer was good; what came behind it is not ours.
            elif isinstance(cause, DomaError):
                self.fail(type(cause)(f"{self.name}: {cause.message}"))
            else:
                self.fail(OriginFailed(f"{self.name}: the answer is no valid HTTP/1.1 ({e})"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._busy:
            if self._ends_with_connection and exc is None:
                self._finish(keep=False)
            elif self.error is None:
                self.error = self._lost(exc)
        self._finish(keep=False)
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)

    # --- httptools ---

    def on_message_begin(self) -> None:
        self._surplus = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        head = Head(status, self._fields)
        self._fields = []
        if status < 200:
            self._between(status)
            return
        self._answer(head, self._parser.get_http_version())

    def on_body(self, body: bytes) -> None:
        if self._complete or self._sink is None:
            self._surplus = True  # A body where none may be.
            return
        if self._left > 0:
            self._left -= len(body)
        self._sink.feed(body)

    def on_message_complete(self) -> None:
        if self.head.done():  # else it was an interim answer
            self._complete = True

    # --- inside ---

    def _take(self, size: int) -> None:
        if self._left > 0:
            used = min(size, self._left)
            self._left -= used
            if self._direct:
                cast("Fill", self._sink).got += used
            else:
                assert self._sink is not None
                self._sink.feed(self._buffer[:used])
            if not self._left:
                self._finish(keep=self._keep and used == size)
            return
        data = self._buffer[:size]
        if not self.head.done():
            self._head_size += size
            if not self._fed:
                data = self._past_interim(data)
        parser = self._parser
        assert parser is not None
        parser.feed_data(data)
        if not self.head.done() and self._head_size > HEAD_LIMIT:
            raise OriginFailed(f"the head of the answer is longer than {HEAD_LIMIT} bytes")
        if self._complete:
            self._finish(keep=self._keep and not self._surplus)

    def _past_interim(self, data: memoryview) -> memoryview:
        """What follows whole ``1xx`` answers: XRootD 5.5 says "Connection: Close" there, a parser obeys."""
        while bytes(data[:10]) == b"HTTP/1.1 1" and (end := bytes(data).find(b"\r\n\r\n")) >= 0:
            self._between(int(bytes(data[9:12])) if bytes(data[9:12]).isdigit() else 101)
            data = data[end + 4 :]
        self._fed = len(data) > 0
        return data

    def _between(self, status: int) -> None:
        """An answer before the real one has come."""
        self._interim += 1
        if status == 101 or self._interim > INTERIM:
            raise OriginFailed(f"answered {status} where an answer was due")
        if not self.go_on.done():
            self.go_on.set_result(None)

    def _answer(self, head: Head, version: str) -> None:
        if sum(len(name) + len(value) for name, value in head.fields) > HEAD_LIMIT:
            raise OriginFailed(f"the head of the answer is longer than {HEAD_LIMIT} bytes")
        if (coding := head.get("content-encoding", "identity").lower()) != "identity":
            raise OriginFailed(f"the body is encoded as {coding!r}, which was not asked for")
        transfer, connection = head.get("transfer-encoding").lower(), head.get("connection").lower()
        if transfer not in {"", "chunked"}:
            raise OriginFailed(f"the transfer encoding {transfer!r} was not asked for")
        self._keep = "keep-alive" in connection if version == "1.0" else "close" not in connection
        length = head.length
        if self._method == "GET" and head.status == 200 and length == 0:
            self._keep = False  # XRootD 5.5 over TLS loses the next request after such an answer.
        if length is None and head.get("content-length"):
            raise OriginFailed("the Content-Length is no number")
        sink = self._sink = (self._on_head(head) if self._on_head else None) or Queue(self)
        self.deadline = self._loop.time() + self._pause
        if self._method == "HEAD" or head.status in {204, 304}:
            self._deliver(head, sink)
            self._complete = True
            return
        self._ends_with_connection = length is None and not transfer
        self._left = length or 0
        if isinstance(sink, Flow):
            sink.attach(self)
        self._deliver(head, sink)

    def _deliver(self, head: Head, sink: Sink) -> None:
        if not self.head.done():
            self.head.set_result((head, sink))

    def _finish(self, *, keep: bool) -> None:
        """The exchange is over, well or badly."""
        if not self._busy:
            return
        self._busy = False
        self._parser = None
        self._left = 0
        self.deadline = NEVER
        self.answered += 1
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        if not self.head.done():
            self.head.set_result(None)
        if not self.go_on.done():
            self.go_on.set_result(None)
        if not self.done.done():
            self.done.set_result(self.error)
        if isinstance(self._sink, Queue | Flow):
            self._sink.end(self.error)
        if not (keep and self.upload_done) and self._transport is not None:
            self._transport.abort()
        self._over(self)

    def _lost(self, exc: Exception | None) -> DomaError:
        why = f" ({exc})" if exc else ""
        if not self.head.done():
            return StorageUnavailable(
                f"{self.name}: closed the connection before it answered{why}; try again"
            )
        return OriginFailed(f"{self.name}: closed the connection in the middle of the body{why}")

    @property
    def stale(self) -> bool:
        """Whether the server may not have seen the request at all."""
        return self.answered > 1 and not self._seen
