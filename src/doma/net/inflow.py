"""A request's body: as it comes from the socket, and on its way into a sink.

Bytes go straight from the shared read buffer into the sink while it takes them; what it cannot take at
once is copied, reading stops, and a task writes it.

Source: dataplane.md §3.3, §3.9, traps T13, T21, T24; storage.md W5, W22, W30.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from doma.net.exchange import PIECE, Answer, Request, Sink

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Body:
    """The bytes of one request that have come and were not used yet.

    Args:
        request: Its head.
    """

    __slots__ = (
        "_waiters",
        "broken",
        "chunks",
        "complete",
        "continued",
        "feeder",
        "ignored",
        "lost",
        "received",
        "request",
        "size",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.chunks: deque[bytes] = deque()
        self.size = 0
        """Bytes in ``chunks``."""
        self.received = 0
        self.complete = False
        self.broken = ""
        """Why the body will not be whole, though the client may still read."""
        self.lost = False
        """The connection is gone."""
        self.continued = False
        self.ignored = False
        self.feeder: Callable[[memoryview], bool] | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def full(self) -> bool:
        """Whether reading should stop until somebody takes what is here."""
        return self.size >= PIECE or (self.feeder is not None and self.size > 0)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.complete or self.lost or bool(self.broken)

    def put(self, data: memoryview) -> None:
        """Bytes have come; the view is not kept."""
        self.received += len(data)
        if self.ignored or (self.feeder is not None and not self.chunks and self.feeder(data)):
            return
        self.chunks.append(bytes(data))
        self.size += len(data)
        self.wake()

    def look(self) -> bytes:
        """All bytes that are here."""
        if len(self.chunks) != 1:
            self.chunks = deque((b"".join(self.chunks),))
        return self.chunks[0]

    def take(self) -> bytes:
        """All bytes that are here, and forget them."""
        data = self.look()
        self.chunks.clear()
        self.size = 0
        return data

    def finish(self) -> None:
        """The last byte has come."""
        self.complete = True
        self.wake()

    def break_off(self, why: str) -> None:
        """No more will come, but the answer may still be read."""
        if not self.complete:
            self.broken = why
        self.wake()

    def lose(self) -> None:
        """The connection is gone."""
        self.lost = True
        self.wake()

    def discard(self) -> None:
        """Nobody wants the rest."""
        self.ignored, self.feeder = True, None
        self.take()

    def wake(self) -> None:
        """Something has changed for whoever waits."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        """Wait for bytes, the end, a loss, or room to write; several may wait."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Line(Protocol):
    """What a worker needs of its connection."""

    transport: asyncio.Transport
    blocked: bool

    def go_on_reading(self) -> None: ...

    def answer_body(self, answer: Answer, body: Body) -> None: ...


class Inflow:
    """One body on its way into a sink."""

    __slots__ = ("_body", "_line", "_sink")

    def __init__(self, line: Line, body: Body, sink: Sink) -> None:
        self._line, self._body, self._sink = line, body, sink

    async def run(self) -> None:
        """From the head to the answer; a sink that was opened ends in a commit or an abort."""
        body, sink, line = self._body, self._sink, self._line
        answer = await sink.open()
        if answer is None:
            try:
                if body.request.expect and not body.received and not body.over:
                    line.transport.write(CONTINUE)
                    body.continued = True
                answer = await self._fill()
            except BaseException:  # a cancellation, too: undone, and raised on
                await sink.abort("the server is stopping")
                raise
        if not body.lost:
            line.answer_body(answer, body)

    async def _fill(self) -> Answer:
        body, sink = self._body, self._sink
        while True:
            if body.chunks:
                data = body.take()
                if not sink.feed(memoryview(data)):
                    refused = await sink.write(data)
                    if refused is not None:
                        return refused
            elif body.complete:
                return await sink.commit()
            elif body.over:
                return await sink.abort(body.broken or "the client went away before the body was whole")
            else:
                body.feeder = sink.feed
                self._line.go_on_reading()
                await body.change()
                body.feeder = None
