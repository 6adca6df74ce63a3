"""One root:// connection, the client's side: many requests in flight, answers in any order.

Everything is received into one buffer and taken apart there; the rest of a large plain read goes straight
from the socket into the caller's memory. A caller that gives up leaves its stream behind: what still comes
for it is dropped, and the caller's memory is not touched again.

Source: §1, §2 and §7 of the project's root:// contract.
"""

import asyncio
import ssl
from itertools import count
from typing import Any, NamedTuple, cast

from doma.core.errors import DomaError, OriginFailed, StorageUnavailable, TimedOut
from doma.net.xroot_frames import (
    ANSWER,
    GREETING,
    HELLO,
    NOTHING,
    AnswerHead,
    Status,
    answer_head,
    deferred,
    number_and_text,
    request,
)
from doma.net.xroot_pages import FINAL, STATUS, page_head
from doma.net.xroot_sinks import SMALL, Drop, Fill, Gather, Pages, Sink

BUFFER = 512 << 10
"""Bytes received at once at most."""
DIRECT = 32 << 10
"""Bytes of a body that are still to come from which on they bypass the buffer."""
LEFT = 1000
"""Streams that callers may have left behind before the connection is given up."""


class Answer(NamedTuple):
    """The last part of an answer; what came before is in the sink."""

    status: int
    body: bytes


class Call:
    """A request whose answer is awaited."""

    __slots__ = ("done", "heard", "patience", "sink", "stream")

    def __init__(self, stream: int, sink: Sink, patience: float, done: "asyncio.Future[Answer]") -> None:
        self.stream = stream
        self.sink = sink
        self.patience = patience
        self.done = done
        self.heard = asyncio.get_running_loop().time()


class Connection(asyncio.BufferedProtocol):
    """A connection to a server.

    Args:
        name: ``root://host:port`` for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: DomaError | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = 0.0
        """When bytes came last, in the loop's time."""
        self._loop = asyncio.get_running_loop()
        self._view = memoryview(bytearray(BUFFER))
        self._have = 0
        self._calls: dict[int, Call] = {}
        self._left: set[int] = set()
        self._numbers = count(1)
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._writable: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The body that is being received:
        self._head = AnswerHead(0, 0, 0)
        self._rest = 0
        self._sink: Sink | None = None
        self._small: Gather | None = None
        self._direct = False

    # --- for the session ---

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and self.error is None

    @property
    def busy(self) -> bool:
        return bool(self._calls)

    async def greet(self, patience: float) -> bytes:
        """Say hello; what the server answers: version and role."""
        self._send(HELLO.pack(*GREETING))
        gather = Gather()
        await self.finish(self._begin(0, gather, patience))
        return bytes(gather.data)

    async def ask(
        self,
        code: int,
        body: bytes = NOTHING,
        data: bytes = b"",
        sink: Sink | None = None,
        patience: float = 60,
    ) -> Answer:
        """Send a request and wait for the end of its answer.

        Args:
            code: Of the request.
            body: Its 16 bytes.
            data: What follows.
            sink: Takes the bytes of ``ok`` answers; None: they come as ``Answer.body``, at most 64 KiB.
            patience: Seconds for which nothing may come.

        Raises:
            StorageUnavailable: the connection is lost; the request may have been done.
            OriginFailed: the server broke the protocol. TimedOut: nothing came.
        """
        gather = Gather() if sink is None else None
        call = self.start(code, body, data, sink or cast("Gather", gather), patience)
        last = await self.finish(call)
        return Answer(last.status, bytes(gather.data)) if gather and last.status == Status.OK else last

    def start(self, code: int, body: bytes, data: bytes, sink: Sink, patience: float) -> Call:
        """Send a request whose answer is awaited later, by :meth:`finish`; or not, after :meth:`leave`.

        Raises:
            StorageUnavailable, OriginFailed, TimedOut: the connection is lost; nothing was sent.
        """
        if self.error is not None or self._transport is None:
            raise self._why()
        call = self._begin(self._free(), sink, patience)
        self._send(request(call.stream, code, body, data))
        return call

    async def finish(self, call: Call) -> Answer:
        """Wait for the end of an answer. Raises as :meth:`ask`."""
        try:
            if self._writable is not None and not call.done.done():
                either: list[asyncio.Future[Any]] = [self._writable, call.done]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return await call.done
        except asyncio.CancelledError:
            self.leave(call)
            raise

    def leave(self, call: Call) -> None:
        """Nobody waits for this any more: drop what still comes. Idempotent."""
        if call.done.done() and not call.done.cancelled():
            call.done.exception()  # Nobody wants to know.
        if self._calls.pop(call.stream, None) is not call:
            return
        self._left.add(call.stream)
        if self._sink is call.sink:
            self._sink = Drop()
        if len(self._left) > LEFT:
            self.fail(StorageUnavailable(f"{self.name}: the server leaves too many requests unanswered"))

    async def upgrade(self, context: ssl.SSLContext, host: str) -> None:
        """Go on in TLS on the same connection. Raises OSError, ssl.SSLError, OriginFailed, why it is over."""
        if self.error is not None or self._transport is None:
            raise self._why()
        if self._have or self._calls:
            raise OriginFailed(f"{self.name}: the server spoke in the clear where TLS was agreed")
        self._transport = cast(
            "asyncio.Transport",
            await self._loop.start_tls(self._transport, self, context, server_hostname=host),
        )

    def fail(self, error: DomaError) -> None:
        """End the connection; whoever waits gets the error. Idempotent."""
        if self.error is None:
            self.error = error
        if self._transport is not None:
            self._transport.abort()
        self._over()

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
        sink = self._sink
        if self._rest >= DIRECT and not self._have and self._small is None and type(sink) is Fill:
            self._direct = True
            return sink.target[sink.got : sink.got + self._rest]
        self._direct = False
        return self._view[self._have :]

    def buffer_updated(self, nbytes: int) -> None:
        self.heard = self._loop.time()
        try:
            if self._direct:
                cast("Fill", self._sink).got += nbytes
                self._rest -= nbytes
                if not self._rest:
                    self._part_over()
                return
            self._have += nbytes
            used = self._take(self._view[: self._have])
            rest = self._have - used
            if rest and used:
                self._view[:rest] = self._view[used : self._have]
            self._have = rest
        except DomaError as e:
            self.fail(type(e)(f"{self.name}: {e.message}"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.error is None:
            why = f" ({exc})" if exc else ""
            self.error = StorageUnavailable(f"{self.name}: the server closed the connection{why}; try again")
        self._over()
        self.resume_writing()
        if not self.closed.done():
            self.closed.set_result(None)

    # --- receiving ---

    def _take(self, data: memoryview) -> int:
        """Take apart what is whole; how many bytes were used."""
        at, stop = 0, len(data)
        while True:
            if self._rest:
                sink: Sink = self._small or self._sink or Drop()
                used = sink.feed(data[at : min(stop, at + self._rest)])
                at += used
                self._rest -= used
                if self._rest:
                    return at
                self._part_over()
            elif stop - at >= ANSWER.size:
                self._part(answer_head(data, at))
                at += ANSWER.size
            else:
                return at

    def _part(self, head: AnswerHead) -> None:
        """The head of a part is there: where does its body go?"""
        self._head, self._rest = head, head.length
        call = self._calls.get(head.stream)
        if call is None and head.status != Status.ATTN and head.stream not in self._left:
            raise OriginFailed("an answer to a request that nobody made")
        if call is not None:
            call.heard = self.heard
        self._sink = call.sink if call is not None else Drop()
        self._small = None
        if head.status in {Status.OK, Status.OKSOFAR}:
            self._sink.begin(head.length)
        elif head.length > SMALL:
            raise OriginFailed(f"an answer of {head.length} bytes with status {head.status}")
        else:
            self._small = Gather()
        if not self._rest:
            self._part_over()

    def _part_over(self) -> None:
        """A part is complete; the next bytes begin another one."""
        head, small = self._head, self._small
        self._small = None
        if head.status == Status.OKSOFAR:
            return
        if head.status == Status.ATTN:
            self._news(bytes(small.data) if small else b"")
        elif head.status == Status.STATUS and small is not None:
            self._pages(bytes(small.data))
        elif head.status == Status.WAITRESP:
            seconds, _ = number_and_text(bytes(small.data) if small else b"")
            if (call := self._calls.get(head.stream)) is not None:
                call.patience = max(call.patience, min(seconds, 3600))
        else:
            self._finish(head.stream, Answer(head.status, bytes(small.data) if small else b""))

    def _pages(self, body: bytes) -> None:
        """The second head, of an answer with pages: they follow."""
        if len(body) < STATUS.size:
            raise OriginFailed(f"a head of pages of {len(body)} bytes")
        page = page_head(body)
        if page.stream != self._head.stream:
            raise OriginFailed("a head of pages that belongs to another request")
        sink = self._sink
        if isinstance(sink, Pages):
            sink.pages.begin(page.offset, page.length)
        elif sink is not None:
            sink.begin(page.length)
        self._rest = page.length
        # Whatever its kind was, a part now only has to be counted; the last one ends the answer.
        self._head = AnswerHead(page.stream, Status.OK if page.kind == FINAL else Status.OKSOFAR, page.length)
        if not self._rest:
            self._part_over()

    def _news(self, body: bytes) -> None:
        """Something that was not asked for, or the answer that was put off."""
        found = deferred(body)
        if found is None:
            return
        head, rest = found
        call = self._calls.get(head.stream)
        if call is None:
            self._left.discard(head.stream)
            return
        if head.status == Status.OK:
            call.sink.begin(len(rest))
            if call.sink.feed(memoryview(rest)) != len(rest):
                raise OriginFailed("a deferred answer that is not whole")
            rest = b""
        elif head.status not in {Status.ERROR, Status.REDIRECT, Status.WAIT}:
            raise OriginFailed(f"a deferred answer with status {head.status}")
        self._finish(head.stream, Answer(head.status, rest))

    def _finish(self, stream: int, answer: Answer) -> None:
        self._left.discard(stream)
        call = self._calls.pop(stream, None)
        if call is not None and not call.done.done():
            call.done.set_result(answer)

    # --- waiting ---

    def _free(self) -> int:
        """A stream number that is not in use; 0 is for the greeting."""
        if len(self._calls) + len(self._left) >= 0xF000:
            raise StorageUnavailable(f"{self.name}: too many requests wait for this server; try later")
        while True:
            stream = next(self._numbers) & 0xFFFF
            if stream and stream not in self._calls and stream not in self._left:
                return stream

    def _send(self, data: bytes) -> None:
        """Write at the end of this turn of the loop: requests made together go in one segment."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _begin(self, stream: int, sink: Sink, patience: float) -> Call:
        call = self._calls[stream] = Call(stream, sink, patience, self._loop.create_future())
        if self._timer is None:
            self._timer = self._loop.call_later(min(1.0, patience / 4), self._look)
        return call

    def _look(self) -> None:
        """Give up what has waited too long; if nothing at all came meanwhile, the connection too."""
        self._timer = None
        now = self._loop.time()
        for call in self._calls.values():
            if self._rest and call.sink is self._sink:
                call.heard = self.heard
        for call in [call for call in self._calls.values() if now - call.heard > call.patience]:
            error = TimedOut(
                f"{self.name}: nothing came for {call.patience:g} s; the server or the network stands still"
            )
            if self.heard <= call.heard:
                self.fail(error)
                return
            self.leave(call)
            if not call.done.done():
                call.done.set_exception(error)
        if self._calls:
            soonest = min(call.patience for call in self._calls.values())
            self._timer = self._loop.call_later(min(1.0, soonest / 4), self._look)

    def _over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done.done():
                call.done.set_exception(self._why())

    def _why(self) -> DomaError:
        """Why the connection is over; a new object for everybody, since each collects a traceback."""
        if self.error is None:
            return StorageUnavailable(f"{self.name}: the connection is closed; try again")
        return type(self.error)(self.error.message)
