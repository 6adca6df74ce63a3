"""Sending what is too large for one write: ``sendfile`` over plain connections, pieces over TLS.

Over plain TCP the bytes go from the page cache to a duplicate of the socket, since the transport owns the
original; it must be empty meanwhile. Over TLS, and where no descriptor can be had, views of at most
256 KiB are written while the transport takes them. Cold pieces are read aside and sent in their turn.

Source: dataplane.md §3.6, traps T3, T7, T8, T12, T26 of the project's contracts.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Protocol

from doma.core.errors import DomaError
from doma.net.exchange import PIECE, SMALL, Buffer, Span

log = logging.getLogger(__name__)


class Pipe(Protocol):
    """What an outflow needs of its connection."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    tls: bool
    blocked: bool
    """The transport asked to pause."""

    def duplicate(self) -> socket.socket:
        """A socket of our own on the same connection; the connection closes it."""

    def alive(self) -> None:
        """Bytes have gone out."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine and look after it."""

    def sent(self) -> None:
        """The answer is out (or with the transport)."""

    def cut(self) -> None:
        """Give up the connection."""


class Outflow:
    """One answer on its way.

    Args:
        pipe: The connection; its transport is told to resume through :meth:`wake`.
        head: Bytes before the body.
        body: A span of a file, or buffers that stay unchanged.
    """

    __slots__ = (
        "_at",
        "_batches",
        "_fd_open",
        "_head",
        "_pending",
        "_pipe",
        "_reading",
        "_sock",
        "_span",
        "_waits",
        "_watching",
    )

    def __init__(self, pipe: Pipe, head: bytes, body: Span | Sequence[Buffer]) -> None:
        self._pipe = pipe
        self._head: bytes = head
        self._span = body if isinstance(body, Span) else None
        self._at = self._span.start if self._span else 0
        self._batches: Iterator[list[Buffer]] = iter(()) if isinstance(body, Span) else _batches(body)
        self._pending: memoryview | None = None
        self._sock: socket.socket | None = None
        self._watching = False
        self._reading = False
        """A cold piece is being read, or the connection is gone: nothing is sent just now."""
        self._waits = False
        """The transport was told to call us only when it is empty."""

    def start(self) -> bool:
        """Send what can be sent at once. True: all; else the rest goes by itself, then ``pipe.sent()``."""
        span, pipe = self._span, self._pipe
        if span is None or pipe.tls or span.ready is None:
            return self._pump()
        if pipe.transport.get_write_buffer_size():
            # Earlier answers are still with the transport: it wakes us when it is empty.
            self._waits = True
            pipe.transport.set_write_buffer_limits(0)
            if not pipe.blocked:
                pipe.loop.call_soon(self._on_room)
            return False
        if self._waits:
            self._waits = False
            pipe.transport.set_write_buffer_limits(SMALL, 0)
        self._sock = pipe.duplicate()
        self._pending = memoryview(self._head)
        return self._flow()

    def wake(self) -> None:
        """The transport takes bytes again. Never writes inside the callback: uvloop may stall (T26)."""
        if self._sock is None and not self._reading:
            self._pipe.loop.call_soon(self._on_room)

    def _on_room(self) -> None:
        if self.start() if self._head else self._pump():
            self._pipe.sent()

    def stop(self) -> None:
        """The connection is gone."""
        self._unwatch()
        self._span, self._batches = None, iter(())
        self._reading = True

    # Over TLS or from memory: views into the transport.

    def _pump(self) -> bool:
        pipe, span = self._pipe, self._span
        while not pipe.blocked and not self._reading:
            if span is None:
                batch = next(self._batches, None)
                if batch is None:
                    return True
                self._write(batch)
                continue
            if self._at >= span.stop:
                return True
            # Up to the next multiple: a store that knows its bytes by blocks is then asked for whole ones.
            stop = min((self._at // SMALL + 1) * SMALL, span.stop)
            view = span.source.view(self._at, stop)
            if view is None:
                self._fetch(span)
                return False
            self._at = stop
            self._write([view])
        return False

    def _write(self, buffers: list[Buffer]) -> None:
        if self._head:
            buffers.insert(0, self._head)
            self._head = b""
        self._pipe.transport.writelines(buffers)
        self._pipe.alive()

    # Over plain TCP: sendfile on our own socket.

    def _flow(self) -> bool:
        """Send until the kernel is full or 1 MiB is out; then wait for the socket. True: all is out."""
        pipe, span, sock = self._pipe, self._span, self._sock
        try:
            if span is None or sock is None or self._reading:
                return False
            if self._pending is not None and not self._send_pending(sock, span):
                return False
            if self._at < span.stop:
                stop = min(self._at + PIECE, span.stop)
                fd = span.ready if self._at == span.start else span.source.fileno(self._at, stop)
                if fd is None:
                    self._fetch(span)
                    return False
                count = os.sendfile(sock.fileno(), fd, self._at, stop - self._at)
                if count == 0:
                    log.warning("a file got shorter while it was sent; connection cut")
                    pipe.cut()
                    return False
                self._at += count
            if self._at < span.stop:
                self._watch()
                return False
        except (BlockingIOError, InterruptedError):
            self._watch()
            return False
        except OSError:
            pipe.cut()
            return False
        except Exception:  # or the loop would call for ever (T3)
            log.exception("sending failed; connection cut")
            pipe.cut()
            return False
        self._unwatch()
        return True

    def _on_writable(self) -> None:
        """The socket takes bytes again."""
        self._pipe.alive()
        if self._flow():
            self._pipe.sent()

    def _send_pending(self, sock: socket.socket, span: Span) -> bool:
        assert self._pending is not None
        more = socket.MSG_MORE if self._at < span.stop else 0
        count = sock.send(self._pending, more)
        self._head = b""
        if count < len(self._pending):
            self._pending = self._pending[count:]
            self._watch()
            return False
        self._pending = None
        return True

    def _watch(self) -> None:
        if not self._watching and self._sock is not None:
            self._watching = True
            self._pipe.loop.add_writer(self._sock, self._on_writable)

    def _unwatch(self) -> None:
        if self._watching and self._sock is not None:
            self._watching = False
            self._pipe.loop.remove_writer(self._sock)

    # Cold pieces.

    def _fetch(self, span: Span) -> None:
        self._unwatch()
        self._reading = True
        self._pipe.spawn(self._read(span))

    async def _read(self, span: Span) -> None:
        piece = PIECE if self._sock else SMALL
        stop = min((self._at // piece + 1) * piece, span.stop)
        try:
            data = await span.cold(self._at, stop)
        except DomaError as e:
            log.warning("%s; connection cut, %d bytes of the answer are missing", e, span.stop - self._at)
            self._pipe.cut()
            return
        if self._span is None:
            return
        self._reading = False
        self._at = stop
        if self._sock is not None:
            self._pending = memoryview(data)
            done = self._flow()
        else:
            self._write([data])
            done = self._pump()
        if done:
            self._pipe.sent()


def send_at_once(sock: socket.socket, head: bytes, span: Span) -> bytes | None:
    """Send an answer of at most :data:`PIECE` without waiting; None: all is out.

    Else an outflow shall go on, with what is left of the span and of the head, which is returned. It meets
    any error again.

    Args:
        sock: Of a plain connection whose transport holds nothing.
        head: Bytes before the body.
        span: Has its descriptor ready.
    """
    assert span.ready is not None
    try:
        sent = sock.send(head, socket.MSG_MORE)
        head = head[sent:]
        if not head:
            span.start += os.sendfile(sock.fileno(), span.ready, span.start, span.stop - span.start)
    except OSError:
        return head
    return None if span.start == span.stop else head


def _batches(parts: Sequence[Buffer]) -> Iterator[list[Buffer]]:
    """Buffers in groups of about 256 KiB; a larger one alone is cut."""
    batch: list[Buffer] = []
    size = 0
    for part in parts:
        for at in range(0, len(part), SMALL):
            piece = part if len(part) <= SMALL else memoryview(part)[at : at + SMALL]
            batch.append(piece)
            size += len(piece)
            if size >= SMALL:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
