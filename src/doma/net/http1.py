"""HTTP/1.1 on one connection: parse, order, answer, and keep every limit.

Hot requests are answered inside the read callback by the door's fast side. Everything else becomes an
:class:`Exchange` that runs in a task, one at a time, in order; later requests wait parsed. A body with a
length bypasses the parser. All connections of a loop share one read buffer, so nothing that was read may
be kept beyond the callback.

Source: RFC 9112; dataplane.md §3.3-§3.10, traps T1, T13, T16-T19 of the project's contracts.
"""

import asyncio
import logging
import re
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

import httptools

from doma.net.bridge import App, Cycle
from doma.net.exchange import PIECE, SMALL, Address, Answer, Fast, Request, text_answer
from doma.net.inflow import Body, Inflow
from doma.net.outflow import Outflow

log = logging.getLogger(__name__)

HEAD = 64 << 10
"""Bytes of a request's head."""
QUEUE = 64
"""Parsed requests that may wait before reading stops …"""
FLOOD = 4096
"""… and beyond which the connection is cut, since one read may hold many."""
DRAIN = 64 << 10
"""Bytes of a refused body that are read away to keep the connection."""

_RANGE_LINE = re.compile(rb"\r\nrange: *", re.IGNORECASE)
_RANGE = re.compile(rb"bytes=[0-9, -]{1,40000}")


class Hub:
    """What the connections of one loop share."""

    def __init__(self, app: App, fast: Fast | None, *, head: float, idle: float, body: float) -> None:
        self.app = app
        self.fast = fast
        self.head_timeout = head
        self.idle_timeout = idle
        self.body_timeout = body
        self.buffer = memoryview(bytearray(PIECE))
        self.connections: set[HttpProtocol] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.draining = False
        self.tail = b"\r\n"
        """``Date`` and the empty line that end every head."""
        self.tail_close = b"Connection: close\r\n\r\n"

    def tick(self, date: str) -> None:
        """Set the date that answers carry."""
        self.tail = f"Date: {date}\r\n\r\n".encode()
        self.tail_close = f"Date: {date}\r\nConnection: close\r\n\r\n".encode()

    def spawn(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a coroutine; the hub holds the task and logs what it raises."""
        task = loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a request's task failed", exc_info=error)


class Exchange:
    """A request that is not answered at once: its body as it comes, and who works on it."""

    __slots__ = ("body", "refusal", "request", "worker")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.body = Body(request)
        self.worker: Cycle | Inflow | None = None
        self.refusal: Answer | None = None
        """The listener's own answer: the head was not understood."""


class HttpProtocol(asyncio.BufferedProtocol):
    """One connection."""

    __slots__ = (
        "_again",
        "_alone",
        "_fed",
        "_heads",
        "_incoming",
        "_last_target",
        "_outflow",
        "_parser",
        "_peer",
        "_prefix",
        "_queue",
        "_reading",
        "_remaining",
        "_request",
        "_sock",
        "_stamp",
        "_started",
        "_suffix",
        "_waiting_size",
        "blocked",
        "closing",
        "current",
        "eof",
        "hub",
        "lingering",
        "loop",
        "memo",
        "server",
        "tls",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(
        self, hub: Hub, loop: asyncio.AbstractEventLoop, peer: Address, server: Address, *, tls: bool
    ) -> None:
        self.hub = hub
        self.loop = loop
        self.tls = tls
        self._peer = peer
        self.server = server
        self.memo: dict[str, Any] = {}
        self.current: Exchange | None = None
        self.blocked = False
        self.closing = False
        self.eof = False
        self.lingering = 0
        """Bytes that may still be read away after the last answer; 0: not lingering."""
        self._queue: deque[Exchange] = deque()
        self._incoming: Exchange | None = None
        self._remaining = 0
        self._request: Request | None = None
        self._heads = 0
        self._fed = 0
        self._alone = 0
        """Bytes of the read buffer when they began with a request, else 0."""
        self._started = False
        self._reading = True
        self._parser: Any = None
        self._outflow: Outflow | None = None
        self._sock: socket.socket | None = None
        self._stamp = 0.0
        self._waiting_size = 0
        self._prefix = self._suffix = self._last_target = b""
        self._again: Callable[[bytes], Answer | None] | None = None

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(SMALL, 0)
        self._parser = httptools.HttpRequestParser(self)
        self._stamp = self.loop.time()
        self.hub.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.hub.buffer

    def buffer_updated(self, count: int) -> None:
        self._stamp = self.loop.time()
        data = self.hub.buffer[:count]
        first = True
        if self._remaining:
            first = False
            body = data[: self._remaining]
            self._remaining -= len(body)
            self._take(body)
            if self._remaining:
                return
            self._body_complete()
            # The parser still stands before this body: a new one costs less than feeding it.
            self._parser = httptools.HttpRequestParser(self)
            data = data[len(body) :]
            if not data:
                return
        if self.lingering:
            self.lingering -= count
            if self.lingering <= 0:
                self.transport.abort()
        elif self._again is None or not first or not self._repeated(data):
            self._feed(data, alone=first)

    def eof_received(self) -> bool:
        """Half-close: the client has said everything and still wants its answers (T16)."""
        self.eof = True
        if self._incoming is not None:
            self._incoming.body.break_off("the connection ended before the body did")
            self._incoming = None
            self._remaining = 0
        return not self.tls and not self.lingering and (self.current is not None or bool(self._queue))

    def connection_lost(self, exc: Exception | None) -> None:
        self.hub.connections.discard(self)
        self.closing = True
        self._parser = self._request = self._again = None
        if self._outflow is not None:
            self._outflow.stop()
            self._outflow = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        for exchange in (self.current, self._incoming):
            if exchange is not None:
                exchange.body.lose()
        self._queue.clear()

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self._stamp = self.loop.time()
        if self._outflow is not None:
            self._outflow.wake()
        elif self.current is not None:
            self.current.body.wake()
        elif self._queue:
            self.loop.call_soon(self._next)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self._request = self._blank()
        self._started = True

    def on_url(self, part: bytes) -> None:
        assert self._request is not None
        self._request.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is not None:  # else a trailer, which nobody asked for
            self._request.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        fields = request.fields = dict(request.headers)
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        if (
            self._fed > HEAD
            and sum(len(n) + len(v) + 4 for n, v in request.headers) + len(request.target) > HEAD
        ):
            raise _HeadTooLarge
        if b"connection" in fields or b"host" not in fields:
            request.version = self._parser.get_http_version()
            if b"host" not in fields and request.version == "1.1":
                raise _NoHost
        length = fields.get(b"content-length")
        if length is not None:
            request.length = int(length)
        if b"transfer-encoding" in fields:
            request.chunked = True
        if not request.has_body:
            return
        request.expect = fields.get(b"expect", b"").lower() == b"100-continue"
        self._request = None
        self._started = False
        self._heads = 0
        exchange = self._incoming = Exchange(request)
        self._enter(exchange)

    def on_body(self, data: bytes) -> None:
        self._heads = -len(data)
        self._take(memoryview(data))

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        self._started = False
        self._heads = 0
        if request is None:
            incoming = self._incoming
            if incoming is not None and (
                incoming.request.length > incoming.body.received
                or (incoming.request.chunked and self._parser.should_upgrade())
            ):
                return  # the parser skips the body of an upgrade; see _plain_instead
            self._body_complete()
            return
        if self.current is None and not self._queue and not self.blocked and not self.closing:
            fast = self.hub.fast
            if fast is not None and request.method != b"PUT" and not request.repeats:
                answer = fast.head(request)
                if answer is not None:
                    assert isinstance(answer, Answer)
                    self._remember(request, answer)
                    self._answer(answer, request.keep_alive)
                    return
        exchange = Exchange(request)
        exchange.body.complete = True
        self._enter(exchange)

    def _blank(self) -> Request:
        return Request(self.memo, tls=self.tls, client=self._peer, server=self.server)

    # Bytes in.

    def _feed(self, data: memoryview, *, alone: bool = False) -> None:
        self._fed = self._heads + len(data)
        self._alone = len(data) if alone and not self._started else 0
        incoming = self._incoming
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._plain_instead(data[e.args[0] :])
            return
        except httptools.HttpParserError as e:
            self._bad(e)
            return
        if self._incoming is not None and self._incoming.request.length:
            self._remaining = self._incoming.request.length - self._incoming.body.received
        if self._started or (incoming is not None and incoming is self._incoming):
            # Within a head, or between the chunks of a body: what brings nothing is limited (T1).
            self._heads += len(data)
            if self._heads > HEAD:
                self._bad(_HeadTooLarge())

    def _plain_instead(self, rest: memoryview) -> None:
        """An upgrade is not offered; the request was answered as a plain one, the rest is HTTP again."""
        incoming = self._incoming
        self._parser = httptools.HttpRequestParser(self)
        if incoming is not None:
            if incoming.request.chunked:
                self._bad(httptools.HttpParserError("an upgrade with a chunked body"))
                return
            body = rest[: incoming.request.length]
            self._remaining = incoming.request.length - len(body)
            self._take(body)
            if self._remaining:
                return
            self._body_complete()
            rest = rest[len(body) :]
        if rest:
            self._feed(rest)

    def _take(self, data: memoryview) -> None:
        if self._incoming is not None:
            self._incoming.body.put(data)
            if self._incoming.body.full:
                self.hold_reading()

    def _body_complete(self) -> None:
        exchange, self._incoming = self._incoming, None
        if exchange is not None:
            exchange.body.finish()
        if self._reading is False and len(self._queue) < QUEUE:
            self.go_on_reading()

    def hold_reading(self) -> None:
        """Read no more for now: somebody has enough."""
        if self._reading and not self.closing:
            self._reading = False
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        """Read again."""
        if not self._reading and not self.closing and not self.transport.is_closing():
            self._reading = True
            self._stamp = self.loop.time()
            self.transport.resume_reading()

    def _repeated(self, data: memoryview) -> bool:
        """Answer a request that differs from the last one in its range only, without parsing it.

        The bytes before and after the range value are those of a request that was parsed, and the value
        holds nothing that could end a line, so a parser would find the same.
        """
        raw = bytes(data)
        if not (raw.startswith(self._prefix) and raw.endswith(self._suffix)) or self._started:
            return False
        value = raw[len(self._prefix) : len(raw) - len(self._suffix)]
        if self.current or self._incoming or self._queue or self.blocked or self.closing:
            return False
        if _RANGE.fullmatch(value) is None:
            return False
        answer = self._again(value) if self._again is not None else None
        if answer is None:
            return False
        self._answer(answer, True)
        return True

    def _remember(self, request: Request, answer: Answer) -> None:
        """Keep the frame of a request when it came alone, and the second time for one target."""
        if request.target != self._last_target:
            self._last_target, self._again = request.target, None
        elif answer.again is not None and request.keep_alive and b"connection" not in request.fields:
            raw = bytes(self.hub.buffer[: self._alone])
            found = _RANGE_LINE.findall(raw)
            value = request.fields.get(b"range", b"")
            if len(found) == 1 and value and raw.count(b"\r\n\r\n") == 1 and raw.endswith(b"\r\n\r\n"):
                before, line, after = raw.partition(found[0])
                if after.startswith(value + b"\r\n"):
                    self._prefix, self._suffix = before + line, after[len(value) :]
                    self._again = answer.again

    def _bad(self, error: Exception) -> None:
        """Answer what cannot be understood, after everything that was understood, and close."""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, _Flood):
            self.transport.abort()
            return
        if isinstance(cause, _HeadTooLarge):
            answer = text_answer(
                431, "head-too-large", f"the request's head is larger than {HEAD} bytes; send less"
            )
        elif isinstance(cause, _NoHost):
            answer = text_answer(400, "bad-request", "HTTP/1.1 needs the field Host; send it")
        elif isinstance(cause, httptools.HttpParserError | ValueError):
            answer = text_answer(400, "bad-request", f"this is not HTTP/1.1: {cause}; check the client")
        else:
            log.error("reading a request failed", exc_info=cause)
            answer = text_answer(500, "internal", "internal error; the server's log has the cause")
        self._started = False
        self.hold_reading()
        if self._incoming is not None:
            self._incoming.body.break_off("the body is not well-formed")
            self._incoming.request.keep_alive = False
            self._incoming = None
            return
        exchange = Exchange(self._blank())
        exchange.request.keep_alive = False
        exchange.refusal = answer
        self._enter(exchange)

    # Order.

    def _enter(self, exchange: Exchange) -> None:
        if self.closing:
            return
        if self.current is None and not self._queue and not self.blocked:
            self._start(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= QUEUE:
            self.hold_reading()
            if len(self._queue) > FLOOD:
                raise _Flood

    def _next(self) -> None:
        if self.closing:
            return
        while self._queue and self.current is None and not self.blocked and not self.closing:
            self._start(self._queue.popleft())
        if not self._queue and self.current is None:
            if self.eof:
                self.transport.close()
            elif self._incoming is None or not self._incoming.body.full:
                self.go_on_reading()

    def _start(self, exchange: Exchange) -> None:
        if exchange.refusal is not None:
            self._answer(exchange.refusal, False)
            return
        request, fast = exchange.request, self.hub.fast
        put = request.method == b"PUT"
        if fast is not None and not request.repeats and (put or not request.has_body):
            found = fast.head(request)
            if isinstance(found, Answer):
                self._answer(found, request.keep_alive)
                return
            if found is not None:
                self.current = exchange
                exchange.worker = Inflow(self, exchange.body, found)
                self.spawn(exchange.worker.run())
                return
        self.current = exchange
        exchange.worker = Cycle(self, exchange.body, request, self.hub.app)
        self.spawn(exchange.worker.run())

    # Bytes out.

    def persists(self, body: Body, *, reading: bool = False) -> bool:
        """Whether the connection is kept after the answer; decided when its head goes out.

        Args:
            body: What came of the request's body.
            reading: Somebody is at it and may yet read it to its end.
        """
        request = body.request
        if not request.keep_alive or self.hub.draining or body.broken or (self.eof and not self._queue):
            request.keep_alive = False
        elif not body.complete and not reading:
            rest = request.length - body.received
            waits = request.expect and not body.continued and not body.received
            request.keep_alive = not request.chunked and rest <= DRAIN and not waits
        return request.keep_alive

    def tail(self, request: Request, keep: bool) -> bytes:
        """What ends a head: ``Date``, ``Connection`` where it is needed, the empty line."""
        if not keep:
            return self.hub.tail_close
        return b"Connection: keep-alive\r\n" + self.hub.tail if request.version == "1.0" else self.hub.tail

    def answer_body(self, answer: Answer, body: Body) -> None:
        """Send the answer of a request with a body (its exchange is the current one)."""
        self.current = None
        keep = self.persists(body)
        if not body.complete:
            body.discard()
            self.go_on_reading()
        self._answer(answer, keep, body.request)
        if self.current is None:
            self.loop.call_soon(self._next)

    def _answer(self, answer: Answer, keep: bool, request: Request | None = None) -> None:
        """Send; afterwards the connection serves the next request or closes."""
        keep = keep and not self.hub.draining
        if request is not None:
            tail = self.tail(request, keep)
        else:
            tail = self.hub.tail if keep else self.hub.tail_close
        if answer.span is None:
            parts = answer.parts
            if len(parts) <= 1 or not self.tls:
                # Over TLS each buffer is a record of its own: one for the whole head.
                self.transport.writelines((answer.head + tail, *parts))
                if not keep:
                    self.close_softly()
                return
        exchange = Exchange(request or self._blank())
        exchange.body.complete = True
        exchange.request.keep_alive = keep
        self.current = exchange
        self._outflow = Outflow(self, answer.head + tail, answer.span or answer.parts)
        self._outflow.start()

    def sent(self) -> None:
        """The outflow is done."""
        self._outflow = None
        exchange = self.current
        self.finished(exchange.request.keep_alive if exchange is not None else False)

    def finished(self, keep: bool) -> None:
        """The current exchange is over."""
        self.current = None
        self._stamp = self.loop.time()
        if not keep or (self.hub.draining and not self._queue):
            self.close_softly()
        else:
            self.loop.call_soon(self._next) if self._queue else self._next()

    def close_softly(self) -> None:
        """Close after what was written; first read away what the client still sends, else it sees a reset."""
        if self.closing:
            return
        unread = self._incoming is not None or not self._reading
        self.closing = True
        self._queue.clear()
        if not unread or self.eof or self.tls or self.transport.is_closing():
            # Over TLS the closing handshake reads what still comes; without it nothing is left to read.
            if not self._reading and not self.transport.is_closing():
                self.transport.resume_reading()
            self.transport.close()
            return
        self.lingering = 64 << 20
        self._remaining = 0
        self._incoming = None
        self._stamp = self.loop.time()
        self.transport.write_eof()
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    # What exchanges and outflows ask for.

    def duplicate(self) -> socket.socket:
        if self._sock is None:
            own = self.transport.get_extra_info("socket")
            self._sock = socket.socket(fileno=socket.dup(own.fileno()))
            self._sock.setblocking(False)
        return self._sock

    def alive(self) -> None:
        self._stamp = self.loop.time()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.hub.spawn(self.loop, work)

    def cut(self) -> None:
        self.closing = True
        self.transport.abort()

    # Limits.

    def sweep(self, now: float) -> None:
        """Close what stands still; called about once a second."""
        still = now - self._stamp
        if still < 1:
            return
        hub = self.hub
        if self.lingering:
            if still > 2:
                self.transport.abort()
            return
        waiting = self.transport.get_write_buffer_size()
        if waiting or self._outflow is not None:
            if waiting != self._waiting_size:
                self._waiting_size, self._stamp = waiting, now
            elif still > hub.body_timeout:
                self.cut()
        elif self._incoming is not None:
            if self._reading and still > hub.body_timeout:
                self._incoming.body.break_off(f"nothing came for {hub.body_timeout:.0f} s")
                self._incoming.request.keep_alive = False
                self.cut()
        elif self.current is None:
            if self._started and still > hub.head_timeout:
                self._answer(
                    text_answer(408, "timed-out", f"the head was not complete after {still:.0f} s"), False
                )
            elif still > hub.idle_timeout:
                self.transport.close()

    def quiet(self) -> bool:
        """Whether nothing is under way, so that a stop may close it at once."""
        return self.current is None and not self._queue and not self._started


class _HeadTooLarge(Exception):
    """More head than is read."""


class _NoHost(Exception):
    """HTTP/1.1 without Host."""


class _Flood(Exception):
    """More pipelined requests than anybody sends."""
