"""The pooled HTTP/1.1 client for bytes: ranges, streams, uploads.

Keep-alive connections by origin, TLS verified, redirects that carry a credential only within one origin and
never from https to http. The caller chooses where a body goes: into a buffer (received without a copy), to a
function, or through a bounded queue. Control calls that need more than this use httpx.

Source: RFC 9110 (ranges §14, redirects §15.4, expect §10.1.1), RFC 9112; dataplane.md §5.
"""

import asyncio
import re
import ssl as tls
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from doma.core.errors import BadRequest, DomaError, OriginFailed
from doma.core.url import Origin, https, origin_of, redacted
from doma.net.byteranges import collect, content_range
from doma.net.pool import Allow, Limits, Pool
from doma.net.sinks import Fill, Head, Piece, Sink
from doma.net.wire import NEVER, Address, Connection, OnHead, Queue

Done = asyncio.Future[DomaError | None]
Connected = Callable[[Address, Address], None]
"""Told this end of a connection and the peer's."""
Body = bytes | AsyncIterator[Piece]

_REDIRECTS = {301, 302, 303, 307, 308}
_REPEATABLE = {"GET", "HEAD", "OPTIONS", "PROPFIND"}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_KEPT = "/:@!$&'()*+,;=~-._%?[]|"


class Response:
    """An answer whose head is there. Read the body to its end or close it: ``async with`` does."""

    def __init__(
        self, connection: Connection, head: Head, sink: Sink, done: Done, url: str, reused: bool = False
    ) -> None:
        self._connection = connection
        self._sink = sink
        self._done = done
        self.status = head.status
        self.head = head
        self.url = url
        """Where the answer came from, after redirects."""
        self.reused = reused
        """Whether the connection had served before."""

    def get(self, name: str, default: str = "") -> str:
        """A header by its lower-case name."""
        return self.head.get(name, default)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            OriginFailed: it ended early. TimedOut: it stood still.
        """
        assert isinstance(self._sink, Queue)
        while piece := await self._sink.get():
            yield piece

    async def read(self, limit: int = 1 << 20) -> bytes:
        """The whole body. Raises OriginFailed when it is longer than ``limit`` bytes."""
        parts, size = [], 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit:
                self.close()
                raise OriginFailed(f"{redacted(self.url)}: the answer is longer than {limit} bytes")
            parts.append(piece)
        return b"".join(parts)

    async def finished(self) -> None:
        """Wait until the whole body is in the sink that ``on_head`` chose. Raises as :meth:`pieces`."""
        try:
            error = await asyncio.shield(self._done)
        except asyncio.CancelledError:
            self.close()  # Nobody owns the sink any more.
            raise
        if error is not None:
            raise error

    def close(self) -> None:
        """Give up what has not come yet. Idempotent."""
        if not self._done.done():
            self._connection.abort()

    async def __aenter__(self) -> "Response":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class RangeClient:
    """A pool of connections for one event loop.

    Args:
        ssl: Context for https; None: the system's authorities, made at first use.
        limits: Times and counts.
        allow: Judges each address before it is connected to (host, address); False is refused.
    """

    def __init__(
        self, ssl: tls.SSLContext | None = None, limits: Limits | None = None, allow: Allow | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._pool = Pool(ssl, self._limits, allow)

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        *,
        expect: bool = False,
        on_head: OnHead | None = None,
        first_byte: float | None = None,
        follow: bool = True,
        connected: Connected | None = None,
        fresh: bool = False,
    ) -> Response:
        """Send a request and wait for the head of its answer, whatever its status.

        Args:
            method: In capitals.
            url: ``http`` or ``https``.
            headers: A body that is an iterator needs its ``Content-Length`` here, else it goes out chunked.
            body: An iterator is asked for its first piece only when the server is ready for it.
            expect: Ask for ``100 Continue`` before the body.
            on_head: Chooses the sink of the body; None, or None from it: a queue.
            first_byte: Seconds until the head must be there, counted from the end of the request.
            follow: Whether redirects are followed.
            connected: Told the two ends of each connection that the request goes over.
            fresh: Over no connection that has served before.

        Raises:
            StorageUnavailable: no connection, or it was lost before an answer.
            TimedOut: no answer in time.
            OriginFailed: the answer is no HTTP, or a redirect leads nowhere good.
            BadRequest: the URL or a header cannot be sent.
            Forbidden: the address is not allowed.
        """
        url, fields = https(url), dict(headers or {})
        home = _server(url)
        stream = _Stream(body, fields)
        judge = _only_final(on_head) if follow else on_head
        wait = self._limits.first_byte if first_byte is None else first_byte
        how = _How(expect, wait, judge, connected, fresh)
        for _ in range(self._limits.redirects + 1):
            if _server(url) != home:  # A credential is for the origin it was meant for, and for no other.
                fields = {k: v for k, v in fields.items() if k.lower() not in {"authorization", "cookie"}}
            response = await self._once(method, url, fields, stream, how)
            place = response.get("location")
            if not follow or response.status not in _REDIRECTS or not place:
                return response
            response.close()
            method, url = _next(method, url, place, response.status, stream)
        at = redacted(url)
        raise OriginFailed(f"{at}: more than {self._limits.redirects} redirects; its set-up is circular")

    async def read_range(
        self,
        url: str,
        start: int,
        stop: int,
        into: memoryview,
        headers: Mapping[str, str] | None = None,
        *,
        follow: bool = True,
    ) -> Response:
        """Read exactly the bytes ``[start, stop)`` of a file into a buffer of that size.

        Returns:
            The answer: with status 206 (or 200 for the whole file) the buffer is full; with any other the
            caller judges, the body is in its queue.

        Raises:
            OriginFailed: other bytes than those asked for, or fewer; what :meth:`request` raises.
        """
        sink, at = Fill(into), redacted(url)

        def judge(head: Head) -> Fill | None:
            if head.status == 206:
                found = content_range(head.get("content-range"))
                if found is None or found[:2] != (start, stop):
                    got = head.get("content-range", "none")
                    raise OriginFailed(f"{at}: asked for bytes {start}-{stop - 1}, Content-Range is {got!r}")
            if head.status in {200, 206}:
                if head.length not in {None, stop - start}:
                    got = f"{head.length} with status {head.status}"
                    raise OriginFailed(f"{at}: asked for {stop - start} bytes from {start}, got {got}")
                return sink
            return None

        fields = {**(headers or {}), "Range": f"bytes={start}-{stop - 1}"}
        response = await self.request("GET", url, fields, on_head=judge, follow=follow)
        if response.status in {200, 206}:
            await response.finished()
            if (got := sink.got) != stop - start:
                raise OriginFailed(f"{at}: {got} bytes came where {stop - start} were due")
        return response

    async def read_ranges(
        self, url: str, ranges: Sequence[tuple[int, int]], headers: Mapping[str, str] | None = None
    ) -> tuple[Response, list[memoryview]]:
        """Read several ranges with one request; they are held in memory, so keep their sum small.

        Returns:
            The answer and, with status 206, the bytes of each range in the order asked. A server that answers
            200 does not do this: read them one by one.

        Raises:
            OriginFailed: not the bytes asked for; what :meth:`request` raises.
        """
        wanted = ",".join(f"{start}-{stop - 1}" for start, stop in ranges)
        response = await self.request("GET", url, {**(headers or {}), "Range": f"bytes={wanted}"})
        if response.status != 206:
            return response, []
        limit = sum(stop - start for start, stop in ranges) + 1024 * (len(ranges) + 1)
        async with response:
            return response, collect(response.head, await response.read(limit), ranges, url)

    async def close(self) -> None:
        """Close all connections, running ones too. Idempotent."""
        await self._pool.close()

    async def _once(
        self, method: str, url: str, fields: Mapping[str, str], stream: "_Stream", how: "_How"
    ) -> Response:
        """One request without redirects, sent again if a kept connection was dead already."""
        origin = _server(url)
        repeatable = method in _REPEATABLE
        head = _request_head(method, url, origin, fields, stream, how.expect)
        fresh = how.fresh
        while True:
            connection = await self._pool.take(origin, repeatable=repeatable, fresh=fresh)
            reused = connection.answered > 0
            wait = min(how.first_byte, self._limits.first_again) if reused and repeatable else how.first_byte
            connection.begin(method, how.on_head, self._pool.give, wait if reused and repeatable else None)
            if how.connected is not None and (ends := connection.ends()) is not None:
                how.connected(*ends)
            done = connection.done  # Ours now; once the answer is over, the connection serves others.
            sender: asyncio.Task[None] | None = None
            try:
                connection.deadline = asyncio.get_running_loop().time() + wait
                if isinstance(stream.body, bytes):
                    connection.write(head + stream.body)
                else:
                    connection.write(head)
                if stream.is_iterator:
                    connection.upload_done = False
                    sender = asyncio.create_task(self._send(connection, stream, how))
                    both: set[asyncio.Future[Any]] = {sender, connection.head}
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    if not connection.head.done():
                        await sender
                answer = await connection.head
            except BaseException:  # a cancellation, too: undone, and raised on
                connection.abort()
                raise
            finally:
                if sender is not None:
                    sender.cancel()  # Without effect when it is done; an answer tells more than its error.
                    await asyncio.wait({sender})
                    _ = sender.cancelled() or sender.exception()  # looked at: nothing is logged
            if answer is not None:
                return Response(connection, *answer, done, url, reused=reused)
            fresh = True
            if not (connection.stale and repeatable):
                raise connection.error or OriginFailed(f"{origin}: gave no answer")

    async def _send(self, connection: Connection, stream: "_Stream", how: "_How") -> None:
        """Send an iterator's pieces, once the server is ready; its clock runs only while we wait."""
        loop = asyncio.get_running_loop()
        if how.expect:
            await asyncio.wait({connection.go_on}, timeout=self._limits.go_on)
            if connection.head.done():
                return
        connection.deadline = NEVER
        async for piece in stream.pieces():
            connection.write(piece)
            connection.deadline = loop.time() + self._limits.idle
            await connection.drain()
            if connection.head.done():
                return
            connection.deadline = NEVER
        connection.write(stream.end)
        connection.upload_done = True
        connection.deadline = loop.time() + how.first_byte


@dataclass(frozen=True, slots=True)
class _How:
    """The choices of one request that travel to the bottom."""

    expect: bool
    first_byte: float
    on_head: OnHead | None
    connected: Connected | None
    fresh: bool


class _Stream:
    """A request body and whether it has been touched: a redirect can repeat only what has not."""

    def __init__(self, body: Body | None, headers: Mapping[str, str]) -> None:
        self.body = body
        self.is_iterator = body is not None and not isinstance(body, bytes)
        self.begun = False
        self._chunked = self.is_iterator and not any(k.lower() == "content-length" for k in headers)
        self.end = b"0\r\n\r\n" if self._chunked else b""

    @property
    def framing(self) -> dict[str, str]:
        """The header that says how long the body is."""
        if self._chunked:
            return {"Transfer-Encoding": "chunked"}
        return {"Content-Length": str(len(self.body))} if isinstance(self.body, bytes) else {}

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces as they go over the wire."""
        self.begun = True
        assert self.body is not None
        assert not isinstance(self.body, bytes)
        async for piece in self.body:
            if self._chunked and piece:
                yield b"".join((b"%x\r\n" % len(piece), piece, b"\r\n"))
            elif piece:
                yield piece


@lru_cache(maxsize=1024)  # the same file is asked for again and again: 25 µs each time
def _server(url: str) -> Origin:
    origin = origin_of(url)
    if origin.scheme not in {"http", "https"}:
        raise BadRequest(f"{redacted(url)}: this client speaks http and https only")
    return origin


@lru_cache(maxsize=1024)
def _target(url: str) -> str:
    parts = urlsplit(url)
    query = f"?{quote(parts.query, safe=_KEPT)}" if parts.query else ""
    return quote(parts.path or "/", safe=_KEPT) + query


def _request_head(
    method: str, url: str, origin: Origin, fields: Mapping[str, str], stream: _Stream, expect: bool
) -> bytes:
    target = _target(url)
    every = {
        "Host": str(origin).partition("://")[2],
        "User-Agent": "doma",
        "Accept-Encoding": "identity",
        **fields,
    }
    every |= stream.framing
    if expect and stream.is_iterator:
        every["Expect"] = "100-continue"
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in every.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadRequest(f"{origin}: the header {name[:50]!r} holds characters that cannot be sent")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _next(method: str, url: str, place: str, status: int, stream: _Stream) -> tuple[str, str]:
    """Method and URL after a redirect."""
    at = redacted(url)
    try:
        new = urljoin(url, place)
        target, old = _server(new), _server(url)
    except (BadRequest, ValueError) as e:
        raise OriginFailed(f"{at}: redirects to something that is no http(s) URL; its set-up is wrong") from e
    if old.scheme == "https" and target.scheme == "http":
        raise OriginFailed(f"{at}: redirects from https to {target}; that is refused")
    if stream.begun or (status == 303 and stream.body is not None):
        raise OriginFailed(f"{at}: redirects after it took the body (status {status}); send to {target}")
    return ("GET" if status == 303 and method != "HEAD" else method), new


def _only_final(on_head: OnHead | None) -> OnHead | None:
    """The choice of a sink, asked only about answers that are no redirects to be followed."""
    if on_head is None:
        return None

    def judge(head: Head) -> Sink | None:
        return None if head.status in _REDIRECTS and head.get("location") else on_head(head)

    return judge
