"""What the listener and the doors hand each other: a request's head, a ready answer, a sink for a body.

A door that implements :class:`Fast` answers hot requests without a task, a scope or a coroutine; whatever
it does not know it leaves to the ASGI application. Everything here runs on the event loop's thread.

Source: dataplane.md §3.5, §3.6 of the project's contracts.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from doma.core.errors import DomaError

Buffer = bytes | bytearray | memoryview

SMALL = 256 << 10
"""Answers up to this many bytes are written at once; larger ones go out in pieces."""
PIECE = 1 << 20
"""Bytes that a body gives or takes in one step at most."""

Address = tuple[str, int]


class Request:
    """The head of one request, as the parser saw it."""

    __slots__ = (
        "chunked",
        "client",
        "expect",
        "fields",
        "headers",
        "keep_alive",
        "length",
        "memo",
        "method",
        "server",
        "target",
        "tls",
        "version",
    )

    def __init__(self, memo: dict[str, Any], *, tls: bool, client: Address, server: Address) -> None:
        self.memo = memo
        """What a door remembers of this connection."""
        self.tls = tls
        self.client = client
        self.server = server
        self.method = b""
        self.target = b""
        """Path and query as on the wire."""
        self.headers: list[tuple[bytes, bytes]] = []
        """All fields in order, names in lower case."""
        self.fields: dict[bytes, bytes] = {}
        """The same by name; the last of repeated ones."""
        self.version = "1.1"
        self.keep_alive = True
        self.length = 0
        """Announced bytes of the body; 0 too when it is chunked."""
        self.chunked = False
        self.expect = False
        """The client waits for ``100 Continue``."""

    @property
    def has_body(self) -> bool:
        """Whether bytes follow the head."""
        return self.chunked or self.length > 0

    @property
    def repeats(self) -> bool:
        """Whether a field name occurs more than once."""
        return len(self.fields) != len(self.headers)


class Source(Protocol):
    """Where the bytes of a large answer come from; see ``doma.store.protocol.Hot``."""

    def view(self, start: int, stop: int) -> memoryview | None: ...

    def fileno(self, start: int, stop: int) -> int | None: ...


@runtime_checkable
class CanLoad(Protocol):
    """A source that keeps its version, whatever becomes of the file while it is sent."""

    async def load(self, start: int, stop: int) -> Buffer | None:
        """Bytes that are not hot, from where they are kept; None: not all of them are."""


class Span:
    """Bytes ``[start, stop)`` of a source, sent in pieces.

    Args:
        source: Gives hot bytes at once.
        start: First byte.
        stop: One beyond the last.
        cold: Reads bytes that are not hot, at most :data:`PIECE`; the listener asks. Where it fails and the
            source cannot load them, the connection is cut, since the length is announced already.
        ready: The source's descriptor for the first :data:`PIECE`, if it gave one.
    """

    __slots__ = ("_cold", "ready", "source", "start", "stop")

    def __init__(
        self,
        source: Source,
        start: int,
        stop: int,
        cold: Callable[[int, int], Awaitable[Buffer]],
        ready: int | None = None,
    ) -> None:
        self.source = source
        self.start = start
        self.stop = stop
        self._cold = cold
        self.ready = ready

    async def cold(self, start: int, stop: int) -> Buffer:
        """Bytes that are not hot. Raises DomaError: nobody can give them."""
        try:
            return await self._cold(start, stop)
        except DomaError:
            data = await self.source.load(start, stop) if isinstance(self.source, CanLoad) else None
            if data is None:
                raise
            return data


class Answer:
    """A whole answer.

    Args:
        head: Status line and fields, each ended by CRLF, without ``Date``, ``Connection`` and the empty line.
        parts: The body as buffers that stay unchanged.
        span: The body as a part of a file, instead of ``parts``.
        again: Answers the same request with another ``Range`` value (digits, commas, blanks and minus
            signs), or None; lets the listener skip the parser for repeated requests.
        size: Bytes of the body, where the door counts them.
    """

    __slots__ = ("again", "head", "parts", "size", "span")

    def __init__(
        self,
        head: bytes,
        parts: Sequence[Buffer] = (),
        span: Span | None = None,
        again: "Callable[[bytes], Answer | None] | None" = None,
        size: int = 0,
    ) -> None:
        self.head = head
        self.parts = parts
        self.span = span
        self.again = again
        self.size = size


class Sink(Protocol):
    """Takes a request's body as it comes from the socket."""

    async def open(self) -> Answer | None:
        """Prepare; an answer refuses the body. ``100 Continue`` goes out only after None."""

    def feed(self, data: memoryview) -> bool:
        """Take the bytes without waiting; False: nothing was taken, ``write`` comes. The view is not kept."""

    async def write(self, data: Buffer) -> Answer | None:
        """Take the bytes; an answer ends it, nothing was kept then."""

    async def commit(self) -> Answer:
        """The body is whole: the answer."""

    async def abort(self, reason: str) -> Answer:
        """The body will not come whole: leave no trace. The answer may find no reader."""


class Fast(Protocol):
    """The quick side of a door."""

    def head(self, request: Request) -> Answer | Sink | None:
        """The answer, a sink for the body, or None: the application shall answer. Never raises."""

    def whole(self, request: Request, body: Buffer) -> Answer | None:
        """The answer to a request that came whole, without waiting; None: nothing was done, ask ``head``."""


REASONS: Mapping[int, str] = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    207: "Multi-Status", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict",
    412: "Precondition Failed", 413: "Content Too Large", 414: "URI Too Long", 415: "Unsupported Media Type",
    416: "Range Not Satisfiable", 422: "Unprocessable Content", 423: "Locked", 426: "Upgrade Required",
    429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
    507: "Insufficient Storage",
}  # fmt: skip


def status_line(status: int) -> bytes:
    r"""The first line of an answer.

    >>> status_line(206)
    b'HTTP/1.1 206 Partial Content\r\n'
    """
    return _LINES.get(status) or f"HTTP/1.1 {status} Status\r\n".encode()


_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n".encode() for status, reason in REASONS.items()}


def text_answer(status: int, code: str, text: str) -> Answer:
    """A short plain-text answer of the listener itself."""
    body = text.encode() + b"\n"
    head = b"%sX-Error-Code: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n" % (
        status_line(status),
        code.encode(),
        len(body),
    )
    return Answer(head, (body,))
