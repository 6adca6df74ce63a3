"""The bridge to ASGI applications: one request, its ``receive`` and its ``send``.

Source: ASGI 3 specification, HTTP 2.3; dataplane.md §3.9, storage.md W22, W30 of the project's contracts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

from doma.core.errors import DomaError
from doma.net.exchange import SMALL, Buffer, Request, status_line, text_answer
from doma.net.inflow import CONTINUE, Body

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Line(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport
    blocked: bool

    def go_on_reading(self) -> None: ...

    def persists(self, body: Body, *, reading: bool = False) -> bool: ...

    def tail(self, request: Request, keep: bool) -> bytes: ...

    def finished(self, keep: bool) -> None: ...

    def cut(self) -> None: ...


def scope_of(request: Request) -> Scope:
    """The ASGI scope of a request."""
    target = request.target
    if not target.startswith(b"/") and b"://" in target[:10]:
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]  # absolute form, RFC 9112 §3.2.2
    raw_path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method.decode("ascii"),
        "scheme": "https" if request.tls else "http",
        "path": unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query.partition(b"#")[0],
        "root_path": "",
        "headers": request.headers,
        "client": request.client,
        "server": request.server,
        "state": {},
        "extensions": {"http.response.trailers": {}} if request.version == "1.1" else {},
    }


class Cycle:
    """One request in the hands of the application.

    Args:
        line: The connection.
        body: The request's body.
        request: Its head.
        app: The application.
    """

    __slots__ = (
        "_app",
        "_bodiless",
        "_body",
        "_chunked",
        "_done",
        "_head",
        "_keep",
        "_left",
        "_line",
        "_reading",
        "_request",
        "_started",
        "_trailing",
    )

    def __init__(self, line: Line, body: Body, request: Request, app: App) -> None:
        self._line, self._body, self._request, self._app = line, body, request, app
        self._head: bytes | None = None
        """Status line and fields, held until the first piece of the body."""
        self._started = self._done = self._chunked = self._bodiless = self._trailing = False
        self._reading = False
        """The application has asked for the body."""
        self._keep = False
        self._left = 0
        """Bytes of an announced length that were not sent yet; -1 when none was announced."""

    async def run(self) -> None:
        """Call the application and see that exactly one whole answer goes out, or none."""
        body, line = self._body, self._line
        try:
            await self._app(scope_of(self._request), self._receive, self._send)
        except DomaError as e:
            if self._started:  # too late for a problem answer; the client sees the connection cut
                log.warning("%s was cut short: %s", self._what(), e)
            else:
                log.exception("%s failed", self._what())
        except Exception as e:  # the outermost loop of a request: whatever the app did, others go on
            if not (body.lost and isinstance(e, OSError)):
                log.exception("%s failed", self._what())
        if body.lost:
            return
        if not self._started:
            if self._head is None:
                log.error("%s was not answered by the application", self._what())
            await self._bare()
        elif not self._done:
            line.cut()
            return
        if not body.complete:
            self._keep = self._keep and line.persists(body)
            body.discard()
            line.go_on_reading()
        line.finished(self._keep)

    def _what(self) -> str:
        return f"{self._request.method.decode()} {self._request.target.partition(b'?')[0][:200]!r}"

    async def _bare(self) -> None:
        answer = text_answer(500, "internal", "internal error; the server's log has the cause")
        self._keep = self._line.persists(self._body)
        tail = self._line.tail(self._request, self._keep)
        self._line.transport.writelines(
            (answer.head, tail, *([] if self._request.method == b"HEAD" else answer.parts))
        )
        self._started = self._done = True

    async def _receive(self) -> Message:
        body, line = self._body, self._line
        self._reading = True
        if self._request.expect and not body.continued and not self._started:
            body.continued = True
            if not body.received and not body.over:
                line.transport.write(CONTINUE)
        while not body.chunks and not body.over and not self._done:
            line.go_on_reading()
            await body.change()
        if body.chunks and not body.ignored:
            data = body.take()
            if body.complete:
                body.ignored = True  # the end is told once; then only a disconnect can come
            elif not body.over:
                line.go_on_reading()
            return {"type": "http.request", "body": data, "more_body": not body.complete}
        if body.complete and not body.lost and not body.ignored:
            body.ignored = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while not (body.lost or body.broken or self._done):
            await body.change()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._body.lost:
            raise ConnectionResetError("the client went away")
        if kind == "http.response.start":
            if self._head is not None or self._started:
                raise RuntimeError("the answer has begun already")
            self._begin(message["status"], message.get("headers", ()))
            self._trailing = self._chunked and message.get("trailers", False)
        elif kind == "http.response.body":
            if self._head is None and not self._started:
                raise RuntimeError("a body before the head")
            if not self._done:
                await self._piece(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.trailers" and self._trailing and self._started and not self._done:
            fields = [_field(name, value) for name, value in message.get("headers", ())]
            self._line.transport.writelines((b"0\r\n", *fields, b"\r\n"))
            self._done = True
            self._body.wake()

    def _begin(self, status: int, headers: Any) -> None:
        lines, length = [status_line(status)], -1
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                length = int(value)
            elif lower in {b"transfer-encoding", b"connection", b"date"}:
                continue
            lines.append(_field(name, value))
        self._bodiless = self._request.method == b"HEAD" or status in {204, 304} or status < 200
        self._keep = self._line.persists(self._body, reading=self._reading)
        if not self._bodiless and length < 0:
            if self._request.version == "1.1":
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self._keep = self._request.keep_alive = False
        self._left = length
        lines.append(self._line.tail(self._request, self._keep))
        self._head = b"".join(lines)

    async def _piece(self, data: Buffer, *, more: bool) -> None:
        line = self._line
        out: list[Buffer] = []
        if self._head is not None:
            out.append(self._head)
            self._head, self._started = None, True
        if self._bodiless:
            data = b""
        elif self._chunked:
            if data:
                out.append(b"%x\r\n" % len(data))
        elif self._left >= 0:
            if len(data) > self._left or (not more and len(data) < self._left):
                line.cut()
                raise RuntimeError(
                    f"the body is not as long as its Content-Length: {self._left - len(data)} left"
                )
            self._left -= len(data)
        for at in range(0, len(data), SMALL):
            out.append(data if len(data) <= SMALL else memoryview(data)[at : at + SMALL])
            if at + SMALL < len(data):
                line.transport.writelines(out)
                out = []
                await self._room()
        last = not more and not self._trailing  # else the trailers end it
        if self._chunked:
            out.append((b"\r\n" if data else b"") + (b"0\r\n\r\n" if last else b""))
        if out:
            line.transport.writelines(out)
        if not last:
            await self._room()
        else:
            self._done = True
            self._body.wake()

    async def _room(self) -> None:
        """Wait while the transport is full."""
        while self._line.blocked:
            await self._body.change()
            if self._body.lost:
                raise ConnectionResetError("the client went away")


def _field(name: bytes, value: bytes) -> bytes:
    if b"\n" in name or b"\n" in value or b"\r" in name or b"\r" in value or b"\0" in value:
        raise RuntimeError(f"a header of the answer holds a line end: {name.lower()!r}")
    return b"%s: %s\r\n" % (name, value)
