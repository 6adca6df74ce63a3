"""What the parts of the root:// door share: one client's session, one request, how a request is answered.

A *handler* takes a :class:`Call` and gives the body of an ``ok`` answer, or an async iterator of bodies, all
but the last of which go out as ``oksofar``. What it raises is answered as an error with the code of
:func:`doma.net.xroot_errors.code_of`; :class:`doma.core.errors.TooManyRequests` as ``wait``.

Source: §2-§9 of the project's root:// contract.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from struct import Struct
from time import time
from typing import Any, Protocol
from urllib.parse import parse_qsl

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, Verb, bearer
from doma.core.errors import BadRequest, DomaError, TooManyRequests, Unauthenticated
from doma.core.paths import checked
from doma.doors.endpoint import Endpoint, Site
from doma.monitor.opens import Client, Observer
from doma.net.xroot_errors import FILE_NOT_OPEN, NO_MEMORY, code_of, refusal
from doma.net.xroot_frames import ANSWER, Status, with_text
from doma.store.protocol import Buffer, Stat

MOST_PATH = 16 << 10
"""Bytes of a path with its CGI."""
MOST_FILES = 4096
"""Open files of one session."""
MOST_SAID = 2000
"""Characters of an error's text."""
_OVER_HTTP = "send it as 'Authorization: Bearer ...'"
_OVER_ROOT = "set BEARER_TOKEN_FILE and use roots://, or append ?authz=Bearer%20..."
_HANDLE = Struct(">I")


class OpenFile(Protocol):
    """An open file of a session."""

    @property
    def target(self) -> "Target": ...

    @property
    def stat(self) -> Stat: ...

    async def close(self) -> None:
        """Finish: what was written is published. Raises DomaError."""

    async def drop(self) -> None:
        """Give up: the client is gone. Never raises."""


@dataclass(slots=True, eq=False)
class Session:
    """One login: its control connection and the streams bound to it."""

    id: bytes
    """16 unguessable bytes; whoever knows them may bind a stream."""
    number: int
    """Counts this server's sessions."""
    host: str
    local: tuple[str, int]
    """The address of this server that the client reached."""
    tls: bool
    name: str = ""
    """Local user name that the client states."""
    pid: int = 0
    app: str = ""
    release: str = ""
    info: str = ""
    authenticated: bool = False
    identity: Identity | None = None
    """From ztn or the login's CGI; a path's own token wins over it."""
    token: str = ""
    """Its token, for an origin to take."""
    epoch: int = 0
    """The verifier's, when it last accepted the token."""
    ipv6: bool = False
    files: dict[bytes, OpenFile] = field(default_factory=dict)
    """Open files by their 4-byte handle: :mod:`doma.doors.root_read`, :mod:`doma.doors.root_write`."""
    streams: dict[int, Any] = field(default_factory=dict)
    """Connections on which answers are taken, by path id; 0 is the control connection."""
    observer: Observer | None = None
    """Is told of open files."""
    last: int = 0
    """Handles given so far."""

    def put(self, file: OpenFile) -> bytes:
        """The handle of a file that was opened.

        Raises:
            StorageUnavailable: there are too many (3008); the file is the caller's to drop.
        """
        if len(self.files) >= MOST_FILES:
            raise refusal(NO_MEMORY, f"open: {MOST_FILES} files are open; close some first")
        self.last = self.last % 0x7FFFFFFF + 1
        while (handle := _HANDLE.pack(self.last)) in self.files:
            self.last = self.last % 0x7FFFFFFF + 1
        self.files[handle] = file
        return handle

    def client(self, identity: Identity | None) -> Client:
        """Who opens a file on it, for the record of that file."""
        who = identity
        return Client(
            "xroot", self.host, self.number, self.name, self.pid, self.app, self.release, self.info,
            issuer=who.issuer if who else "", subject=who.subject if who else "", vo=who.vo if who else "",
            groups=who.groups if who else (), ipv6=self.ipv6, token=who.jti if who else "",
        )  # fmt: skip


@dataclass(slots=True)
class Target:
    """Where a request points, and who asks for that."""

    endpoint: Endpoint
    path: str
    """Canonical, within the endpoint."""
    shown: str
    """With the endpoint's name in front."""
    identity: Identity | None
    cgi: Mapping[str, str]
    """What stood behind the ``?``, without credentials."""
    token: str = field(default="", repr=False)
    """Of the identity; never shown."""


@dataclass(slots=True)
class Call:
    """One request."""

    site: Site
    session: Session
    stream: int
    code: int
    body: bytes
    """16 bytes of parameters."""
    data: Buffer
    """More than 64 KiB come as a memoryview, which is the handler's own."""
    targets: list[Target] = field(default_factory=list)
    """What :meth:`target` gave: an error's path gets its endpoint's name from there."""

    def file(self, handle: bytes) -> OpenFile:
        """An open file of the session. Raises (3004) if there is none."""
        found = self.session.files.get(handle)
        if found is None:
            raise refusal(FILE_NOT_OPEN, "handle: no such file is open; open it again")
        self.targets.append(found.target)
        return found

    async def about(self, handle: bytes) -> Target:
        """What an open file is, to ask or change more than its bytes: the token must count as for a path.

        Raises:
            Unauthenticated, InvalidToken: it no longer does. And as :meth:`file`.
        """
        target = self.file(handle).target
        if target.identity is not None:
            must_last(target.identity, target.shown)
            if target.token:
                await self.site.verifier.verify(target.token, macaroons=True)
        return target

    async def caller(self, shown: str) -> Identity | None:
        """Who has logged in; None: nobody.

        Args:
            shown: What is asked for, for the message.

        Raises:
            Unauthenticated, InvalidToken: the session's token has expired, or was revoked.
        """
        session, verifier = self.session, self.site.verifier
        identity, token, epoch = session.identity, session.token, verifier.epoch
        if identity is not None:
            must_last(identity, shown)
            if session.epoch != epoch:
                await verifier.verify(token, macaroons=True)
                if session.token == token:
                    session.epoch = epoch
        return identity

    async def target(self, raw: bytes | None = None) -> Target:
        """The path of a request, resolved and with its identity; the verb is for the handler to decide.

        A token in the path's CGI wins over the session's; it becomes the caller's own for an origin.

        Args:
            raw: Path with CGI as it came; None: all of the data.

        Raises:
            BadRequest: no absolute path, ``..``, not UTF-8, too long. NotFound: no such endpoint.
            BadCredential, InvalidToken: a token that is no good.
        """
        text, cgi, secret = split(bytes(self.data) if raw is None else raw)
        endpoint, path = self.site.find(text)
        try:
            identity, token = await self._who(secret, text)
        except Unauthenticated:
            if not endpoint.gate.may(None, Verb.READ, path):
                raise
            identity, token = None, ""  # it opens nothing, and what is public needs no token
        bearer.set(token if identity is not None and not identity.only else None)
        self.targets.append(found := Target(endpoint, path, text, identity, cgi, token))
        return found

    async def _who(self, secret: str, shown: str) -> tuple[Identity | None, str]:
        """Who asks, and the token that says so: the path's own, else the session's."""
        own = bearer_of(None, secret, access_token=True) if secret else None
        if own is not None:
            return await self.site.verifier.verify(own, macaroons=True), own
        token = self.session.token
        return await self.caller(shown), token


def must_last(identity: Identity, shown: str) -> None:
    """Raise Unauthenticated if a token has expired."""
    if time() >= identity.expires:
        raise Unauthenticated(f"{shown}: the token of {identity} has expired; log in with a new one")


class Framed(bytes):
    """A whole answer with its head, sent as it is."""

    __slots__ = ()


Handler = Callable[[Call], Awaitable["bytes | AsyncIterator[bytes]"]]

_SECRET = frozenset({"authz", "access_token", "xrd.ztn"})


def split(raw: bytes) -> tuple[str, dict[str, str], str]:
    """A path as it came: canonical, its CGI without credentials, and these as a query string.

    Raises:
        BadRequest: no absolute path, ``..``, not UTF-8, too long.
    """
    raw = raw.partition(b"\0")[0]
    if len(raw) > MOST_PATH:
        raise BadRequest(f"path: {len(raw)} bytes; at most {MOST_PATH} are taken")
    name, _, query = raw.partition(b"?")
    try:
        text, words = name.decode(), query.decode()
    except UnicodeDecodeError:
        raise BadRequest("path: is not UTF-8") from None
    pairs = parse_qsl(words.replace("?", "&"), keep_blank_values=True)
    public = {key: value for key, value in pairs if key not in _SECRET}
    secret = "&".join(
        part for part in words.replace("?", "&").split("&") if part.partition("=")[0] in _SECRET
    )
    return checked(text), public, secret


def said(error: DomaError, targets: Sequence[Target]) -> tuple[int, bytes]:
    """Status and body with which an error is answered.

    Args:
        error: Its path gets the name of its endpoint in front, as its client knows it.
        targets: What the request was about.
    """
    text = error.message.replace(_OVER_HTTP, _OVER_ROOT)
    for target in targets:
        if text.startswith(f"{target.path}:"):
            text = f"/{target.endpoint.name}{text}"
            break
    text = text.encode("utf-8", "replace").decode()[:MOST_SAID]
    if isinstance(error, TooManyRequests):
        return Status.WAIT, with_text(max(1, min(60, int(error.retry_after or 5))), text)
    return Status.ERROR, with_text(code_of(error), text)


class Line(Protocol):
    """The connection that an answer leaves by."""

    closing: bool

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Hand over buffers, which stay unchanged."""

    async def room(self) -> None:
        """Wait until it takes more."""


async def send(line: Line, call: Call, made: "bytes | AsyncIterator[bytes]") -> None:
    """Send what a handler made, in parts if it comes in parts."""
    if isinstance(made, Framed):
        line.write([made])
        return
    last = made if isinstance(made, bytes) else b""
    if not isinstance(made, bytes):
        first = True
        async for part in made:
            if not first:
                await line.room()
                line.write([ANSWER.pack(call.stream, Status.OKSOFAR, len(last)), last])
            first, last = False, part
            if line.closing:
                return
        await line.room()
    line.write([ANSWER.pack(call.stream, Status.OK, len(last)), last])
