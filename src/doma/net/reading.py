"""Reading HTTP/1.1: bytes become requests and bodies, and no peer gets more of us than the limits.

The parser sees heads and chunked bodies; a body with a length bypasses it. All connections of a loop share
one read buffer, so nothing that was read may be kept beyond the callback.

Source: RFC 9112; dataplane.md §3.3, §3.4, traps T1, T13, T17-T19 of the project's contracts.
"""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from typing import Any, cast

import httptools

from doma.net.bridge import Cycle
from doma.net.exchange import SMALL, Address, Answer, Buffer, Request, text_answer
from doma.net.hub import Hub
from doma.net.inflow import Body, Inflow
from doma.net.repeat import Frame, Repeat

log = logging.getLogger(__name__)

HEAD = 64 << 10
"""Bytes of a request's head."""

_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n")
"""A request line, RFC 9112 §3."""


class Exchange:
    """A request that is not answered at once: its body as it comes, and who works on it."""

    __slots__ = ("body", "refusal", "request", "worker")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.body = Body(request)
        self.worker: Cycle | Inflow | None = None
        self.refusal: Answer | None = None
        """The listener's own answer: the head was not understood."""


class Reading(asyncio.BufferedProtocol, ABC):
    """The reading half of a connection; the other half decides what is done with a request."""

    __slots__ = (
        "_alone",
        "_begun",
        "_fed",
        "_frame",
        "_heads",
        "_incoming",
        "_parser",
        "_peer",
        "_reading",
        "_remaining",
        "_repeat",
        "_request",
        "_stamp",
        "_started",
        "closing",
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
        self.closing = False
        self.lingering = 0
        """Bytes that may still be read away after the last answer; 0: not lingering."""
        self._incoming: Exchange | None = None
        """Its body is being read."""
        self._remaining = 0
        """Bytes of that body that bypass the parser."""
        self._request: Request | None = None
        """Its head is being read."""
        self._heads = 0
        """Bytes of the head, or between chunks, before this read."""
        self._fed = 0
        self._alone = 0
        """Bytes of the read buffer while its first request is read, from the first byte on, else 0."""
        self._begun = False
        """A request has begun in the bytes being read."""
        self._started = False
        self._reading = True
        self._parser: Any = None
        self._repeat, self._frame = Repeat(), Frame()
        self._stamp = 0.0
        """When something last moved, on the loop's clock."""

    # What the other half does.

    @abstractmethod
    def enter(self, exchange: Exchange) -> None:
        """A request has come; its body may follow.

        Raises:
            Flood: more are waiting than anybody sends.
        """

    @abstractmethod
    def answer_at_once(self, request: Request) -> Answer | None:
        """Answer a request without a body now, if its turn has come and the door knows the answer."""

    @abstractmethod
    def answer_repeated(self, data: memoryview) -> bool:
        """The same for what may be the last request with another range or target, unparsed."""

    @abstractmethod
    def body_over(self) -> None:
        """The body that was read is whole."""

    # The transport's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(SMALL, 0)
        self._parser = httptools.HttpRequestParser(self)
        self._stamp = self.loop.time()

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
        elif not first or self._started or not self.answer_repeated(data):
            self._feed(data, alone=first)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        self._request = self.blank()
        self._started = True
        if self._begun:
            self._alone = 0
        self._begun = True

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
            if b"host" not in fields and request.version != "1.0":
                raise _Faulty("HTTP/1.1 needs the field Host; send it")
        if request.repeats and [name for name, _ in request.headers].count(b"host") > 1:
            raise _Faulty("the field Host may stand there once; send one")
        length = fields.get(b"content-length")
        if length is not None:
            request.length = int(length)
        coding = fields.get(b"transfer-encoding")
        if coding is not None:
            if coding.strip().lower() != b"chunked":
                raise _UnknownCoding
            request.chunked = True
            # one before us may not know chunks, and read another end of the body (RFC 9112 §6.1)
            request.keep_alive = request.keep_alive and self._parser.get_http_version() != "1.0"
        if not request.has_body:
            return
        request.expect = fields.get(b"expect", b"").lower() == b"100-continue"
        self._request = None
        self._started = False
        self._heads = 0
        exchange = self._incoming = Exchange(request)
        self.enter(exchange)

    def on_body(self, data: bytes) -> None:
        # one piece of the wire may hold parts of several chunks: what each brings counts
        self._heads = min(self._heads, 0) - len(data)
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
        answer = self.answer_at_once(request)
        if answer is not None:
            read = self.hub.buffer[: self._alone]
            self._repeat.learn(read, request, answer)
            self._frame.learn(read, request)
            return
        exchange = Exchange(request)
        exchange.body.complete = True
        self.enter(exchange)

    def blank(self) -> Request:
        return Request(self.memo, tls=self.tls, client=self._peer, server=self.server)

    # Bytes in.

    def _feed(self, data: memoryview, *, alone: bool = False) -> None:
        self._fed = self._heads + len(data)
        self._alone = len(data) if alone and not self._started else 0
        self._begun = False
        incoming = self._incoming
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as e:
            self._plain_instead(data[e.args[0] :])
            return
        except httptools.HttpParserError as e:
            self._bad(e, data)
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
        self.body_over()

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

    def _bad(self, error: Exception, data: Buffer = b"") -> None:
        """Answer what cannot be understood, after everything that was understood, and close."""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, Flood):
            self.transport.abort()
            return
        if isinstance(cause, _HeadTooLarge):
            answer = text_answer(
                431, "head-too-large", f"the request's head is larger than {HEAD} bytes; send less"
            )
        elif isinstance(cause, _Faulty):
            answer = text_answer(400, "bad-request", str(cause))
        elif isinstance(cause, _UnknownCoding):
            answer = text_answer(
                501,
                "unsupported",
                "the one transfer coding known here is 'chunked'; send the body in no other",
            )
        elif _unknown_method(data):
            answer = text_answer(
                501, "unsupported", "this method is not known here; OPTIONS lists those that are"
            )
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
        exchange = Exchange(self.blank())
        exchange.request.keep_alive = False
        exchange.refusal = answer
        self.enter(exchange)


class _HeadTooLarge(Exception):
    """More head than is read."""


class _Faulty(Exception):
    """A head that breaks a rule of HTTP/1.1 which the parser does not check; the text says which."""


class _UnknownCoding(Exception):
    """A body in a transfer coding that nobody here undoes."""


class Flood(Exception):
    """More pipelined requests than anybody sends."""


def _unknown_method(data: Buffer) -> bool:
    """Whether bytes begin with a request that is well formed but for a method the parser does not know."""
    line = _LINE.match(data)
    if line is not None:
        try:
            httptools.HttpRequestParser(object()).feed_data(line[0])
        except httptools.HttpParserInvalidMethodError:
            return True
        except httptools.HttpParserError:
            pass
    return False
