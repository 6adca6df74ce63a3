"""HTTP/1.1 on one connection: order, answers, closing, and what stands still.

Hot requests are answered inside the read callback by the door's fast side. Everything else becomes an
:class:`Exchange` that runs in a task, one at a time, in order; later requests wait parsed.

Source: RFC 9112; dataplane.md §3.5-§3.10, traps T16, T17 of the project's contracts.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Coroutine
from typing import Any

from doma.net.bridge import Cycle
from doma.net.exchange import PIECE, SMALL, Address, Answer, Buffer, Request, Sink, text_answer
from doma.net.hub import Hub
from doma.net.inflow import Body, Inflow
from doma.net.outflow import Outflow, send_at_once
from doma.net.reading import Exchange, Flood, Reading
from doma.net.repeat import HEAD

QUEUE = 64
"""Parsed requests that may wait before reading stops …"""
FLOOD = 4096
"""… and beyond which the connection is cut, since one read may hold many."""
RECORD = 8 << 10
"""Bytes of a body that share a TLS record with their head."""
DRAIN = 64 << 10
"""Bytes of a refused body that are read away to keep the connection."""


class HttpProtocol(Reading):
    """One connection."""

    __slots__ = ("_outflow", "_queue", "_reader", "_sock", "_waiting_size", "blocked", "current", "eof")

    def __init__(
        self, hub: Hub, loop: asyncio.AbstractEventLoop, peer: Address, server: Address, *, tls: bool
    ) -> None:
        super().__init__(hub, loop, peer, server, tls=tls)
        self.current: Exchange | None = None
        self.blocked = False
        """The transport asked to pause."""
        self.eof = False
        self._queue: deque[Exchange] = deque()
        self._outflow: Outflow | None = None
        self._reader: asyncio.Task[None] | None = None
        """Answers a GET, which nobody needs to be brought to its end."""
        self._sock: socket.socket | None = None
        self._waiting_size = 0

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.hub.connections.add(self)

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
        self._parser = self._request = None
        self._repeat.forget()
        self._frame.forget()
        if self._outflow is not None:
            self._outflow.stop()
            self._outflow = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        for exchange in (self.current, self._incoming):
            if exchange is not None:
                exchange.body.lose()
        if self._reader is not None:
            self._reader.cancel()  # it may be waiting for bytes that only this client wanted
            self._reader = None
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

    # Order.

    def enter(self, exchange: Exchange) -> None:
        if self.closing:
            return
        if self.current is None and not self._queue and not self.blocked:
            self._start(exchange, self.hub.buffer[: min(self._alone, HEAD)])
            return
        self._queue.append(exchange)
        if len(self._queue) >= QUEUE:
            self.hold_reading()
            if len(self._queue) > FLOOD:
                raise Flood

    def body_over(self) -> None:
        if len(self._queue) < QUEUE:
            self.go_on_reading()

    def answer_at_once(self, request: Request) -> Answer | None:
        fast = self.hub.fast
        if not self._free() or fast is None or request.method == b"PUT" or request.repeats:
            return None
        answer = fast.head(request)
        if answer is not None:
            assert isinstance(answer, Answer)
            self._answer(answer, request.keep_alive, request)
        return answer

    def answer_repeated(self, data: memoryview) -> bool:
        if self._incoming is not None or not self._free():
            return False
        answer = self._repeat.answer(data)
        if answer is None:
            found, fast = self._frame.match(data), self.hub.fast
            if found is None or fast is None:
                return False
            answer = fast.whole(*found)
            if answer is None:
                return False
        self._answer(answer, True)
        return True

    def _free(self) -> bool:
        """Whether a request that comes now is answered before any other."""
        return self.current is None and not self._queue and not self.blocked and not self.closing

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

    def _start(self, exchange: Exchange, raw: Buffer = b"") -> None:
        """Begin to work on a request, of which ``raw`` are the first bytes if they are still at hand."""
        if exchange.refusal is not None:
            self._answer(exchange.refusal, False)
            return
        request, fast = exchange.request, self.hub.fast
        put = request.method == b"PUT"
        if fast is not None and not request.repeats and (put or not request.has_body):
            found = fast.head(request)
            if isinstance(found, Answer):
                self._answer(found, request.keep_alive, request)
                return
            if found is not None:
                self.current = exchange
                if 0 < request.length <= SMALL and not request.expect:
                    # the body may be here by then
                    self.loop.call_soon(self._take_in, exchange, found, bytes(raw))
                else:
                    self._inflow(exchange, found)
                return
        self.current = exchange
        exchange.worker = Cycle(self, exchange.body, request, self.hub.app)
        task = self.hub.spawn(self.loop, exchange.worker.run())
        self._reader = task if request.method == b"GET" else None

    def _take_in(self, exchange: Exchange, sink: Sink, raw: bytes) -> None:
        """Answer a small upload at once if it is all here, else let it come; ``raw`` is as for _start."""
        body, fast = exchange.body, self.hub.fast
        answer = fast.whole(exchange.request, body.look()) if body.complete and fast is not None else None
        if answer is None:
            self._inflow(exchange, sink)
        elif not body.lost:
            body.discard()
            self._frame.learn(raw, exchange.request)
            self.answer_body(answer, body)

    def _inflow(self, exchange: Exchange, sink: Sink) -> None:
        exchange.worker = Inflow(self, exchange.body, sink)
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
            self.loop.call_soon(self._next) if self._queue else self._next()

    def _answer(self, answer: Answer, keep: bool, request: Request | None = None) -> None:
        """Send; afterwards the connection serves the next request or closes."""
        keep = keep and not self.hub.draining
        if request is not None:
            tail = self.tail(request, keep)
        else:
            tail = self.hub.tail if keep else self.hub.tail_close
        span, head = answer.span, answer.head + tail
        if span is None:
            parts = answer.parts
            if len(parts) <= 1 or not self.tls:
                # Over TLS each buffer is a record of its own: one for the head, or for all that is small.
                if parts and self.tls and len(parts[0]) <= RECORD:
                    self.transport.write(b"".join((answer.head, tail, parts[0])))
                elif parts:
                    self.transport.writelines((head, *parts))
                else:
                    self.transport.write(head)
                if not keep:
                    self.close_softly()
                return
        elif (
            span.ready is not None
            and span.stop - span.start <= PIECE
            and not self.tls
            and not self.transport.get_write_buffer_size()
        ):
            left = send_at_once(self._sock or self.duplicate(), head, span)
            if left is None:
                if not keep:
                    self.close_softly()
                return
            head = left
        outflow = Outflow(self, head, span or answer.parts)
        if outflow.start():
            if not keep:
                self.close_softly()
            return
        exchange = Exchange(request or self.blank())
        exchange.body.complete = True
        exchange.request.keep_alive = keep
        self.current = exchange
        self._outflow = outflow

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
