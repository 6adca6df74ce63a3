"""One WebDAV request: who asks, on which path of which endpoint, and the ways to answer."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from doma.auth.model import Identity, Verb
from doma.core.errors import BadRequest, LimitExceeded, NotAllowed, PreconditionFailed, Refused
from doma.core.events import Event
from doma.core.paths import covers, encode
from doma.core.ranges import check_write
from doma.doors.endpoint import Endpoint, Site
from doma.net.problem import render
from doma.store.protocol import Stat

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOW = "OPTIONS, GET, HEAD, PUT, POST, DELETE, MKCOL, MOVE, COPY, PROPFIND, PROPPATCH"

FLUSH = 64 << 10
"""Bytes of a streamed answer that are gathered before they are sent."""


_QUOTES = {"'": "&#39;", '"': "&quot;"}
_ODD = re.compile(r"[^A-Za-z0-9/._~-]").search


@dataclass(slots=True)
class Call:
    """A request whose path is canonical and whose token, if there is one, is verified."""

    site: Site
    endpoint: Endpoint
    path: str
    """Within the endpoint."""
    identity: Identity | None
    scope: Scope
    headers: Mapping[str, str]
    """Names in lower case; repeated ones joined by commas."""
    receive: Receive
    send: Send

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def shown(self) -> str:
        """The path as the client knows it, decoded: ``/site/a b``."""
        return shown(self.endpoint, self.path)

    def allow(self, verb: Verb, path: str | None = None, *, is_dir: bool = True) -> None:
        """Raise unless the identity may do this.

        Before the store was asked nothing is known of the path: it is then taken for a directory, which
        more scopes cover, and asked again as a file where it turns out to be one (T13).
        """
        self.endpoint.gate.decide(self.identity, verb, self.path if path is None else path, is_dir)

    def must_be_writable(self, endpoint: Endpoint | None = None) -> None:
        """Raise NotAllowed for an endpoint that nobody can change."""
        place = endpoint or self.endpoint
        if not place.writable:
            raise NotAllowed(f"{self.shown}: {self.method} is not possible: {place.name!r} is read-only")

    def must_not_hold_an_area(self, path: str, endpoint: Endpoint | None = None) -> None:
        """Raise Refused for the top of an endpoint or of an issuer's area, and for what lies above one."""
        place = endpoint or self.endpoint
        if path == "/" or any(covers(path, area) for area in place.gate.areas):
            raise Refused(
                f"{shown(place, path)}: {self.method} is not possible on the top of an endpoint"
                " or of an issuer's area; name what is in it"
            )

    def must_be_whole(self, stat: Stat) -> None:
        """Raise BadRequest for a DELETE or MOVE of less than a whole collection (RFC 4918 §9.6.1, §9.9.2)."""
        depth = self.headers.get("depth", "infinity").strip().lower()
        if stat.is_dir and depth != "infinity":
            raise BadRequest(
                f"{self.shown}: {self.method} takes a collection whole; leave Depth out or say infinity"
            )

    async def found(self, verb: Verb) -> Stat:
        """What the path is, for an identity that may do ``verb`` on it; nobody else learns anything."""
        self.allow(verb)
        stat = await self.endpoint.store.stat(self.path)
        if not stat.is_dir:
            self.allow(verb, is_dir=False)
        return stat

    def tell(self, kind: str, endpoint: Endpoint, path: str, **data: Any) -> None:
        """Emit what has happened."""
        who = self.identity
        owner = f"{who.issuer}#{who.subject}" if who else ""
        self.site.emit(Event(kind, shown(endpoint, path), {"endpoint": endpoint.name, **data}, owner))

    async def body(self, limit: int) -> bytes:
        """The whole body of the request.

        Raises:
            LimitExceeded: it is longer than ``limit`` bytes.
            BadRequest: the client went away in the middle.
        """
        data = bytearray()
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise BadRequest(f"{self.shown}: the body of the request ended early")
            data += message.get("body", b"")
            if len(data) > limit:
                raise LimitExceeded(f"{self.shown}: the body may have at most {limit} bytes")
            if not message.get("more_body"):
                return bytes(data)

    async def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send a whole answer."""
        await answer(self.send, self.method, status, headers or {}, body)

    async def stream(self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[str]) -> None:
        """Send an answer of unknown length in bounded memory; a short one whole, with its length.

        What fails before the first :data:`FLUSH` bytes are made fails cleanly: the status is not sent yet.
        """
        if self.method == "HEAD":
            await self.answer(status, headers)
            return
        gathered: list[str] = []
        size, begun = 0, False
        async for piece in pieces:
            gathered.append(piece)
            size += len(piece)
            if size >= FLUSH:
                if not begun:
                    start = {"type": "http.response.start", "status": status, "headers": _raw(headers)}
                    await self.send(start)
                    begun = True
                await self.send(_part("".join(gathered), more=True))
                gathered, size = [], 0
                await asyncio.sleep(0)  # a store in memory never waits, and others want to be served
        if begun:
            await self.send(_part("".join(gathered), more=False))
        else:
            await self.answer(status, headers, "".join(gathered).encode())


def shown(endpoint: Endpoint, path: str) -> str:
    """The URL path of a path within an endpoint, decoded."""
    return f"/{endpoint.name}" + (path if path != "/" else "/")


def href(endpoint: Endpoint, path: str, *, is_dir: bool) -> str:
    """The absolute, percent-encoded URL path; a collection's ends in ``/``."""
    whole = f"/{quote(endpoint.name)}{encode(path)}"
    return whole + "/" if is_dir and not whole.endswith("/") else whole


def links(endpoint: Endpoint) -> Callable[[Stat], str]:
    """What gives the address of each of many entries, ready to stand in XML or HTML."""
    top = escape(f"/{quote(endpoint.name)}", _QUOTES)

    def link(entry: Stat) -> str:
        path = entry.path
        if _ODD(path):
            path = escape(encode(path), _QUOTES)
        return f"{top}{path}/" if entry.is_dir and path != "/" else top + path

    return link


def check_conditions(call: Call, stat: Stat | None) -> None:
    """Apply the conditions of a request to what is there (RFC 9110 §13.2.2).

    Raises:
        PreconditionFailed: one does not hold, or it is about locks (RFC 4918 §10.4), which nobody holds.
    """
    if "if" in call.headers:
        raise PreconditionFailed(f"{call.shown}: locks are not offered, so no If holds; use If-Match")
    version, modified = (stat.version, stat.modified) if stat is not None else (None, None)
    check_write(call.headers, call.shown, version, modified)


async def answer(send: Send, method: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a whole answer; HEAD gets its length and no body."""
    sent = dict(headers)
    if status != 204 and not (method == "HEAD" and not body):
        sent["Content-Length"] = str(len(body))
    await send({"type": "http.response.start", "status": status, "headers": _raw(sent)})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


async def refuse(send: Send, method: str, error: Any, accept: str, realm: str) -> None:
    """Answer an error."""
    status, headers, body = render(error, accept, realm)
    if status == 405:
        headers["Allow"] = ALLOW
    await answer(send, method, status, headers, body)


def _part(text: str, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
