"""What the parts of the root:// door share: one client's session, one request, how a request is answered.

A *handler* takes a :class:`Call` and gives the body of an ``ok`` answer, or an async iterator of bodies, all
but the last of which go out as ``oksofar``. What it raises is answered as an error with the code of
:func:`doma.net.xroot_errors.code_of`; :class:`doma.core.errors.TooManyRequests` as ``wait``.

Source: §2-§9 of the project's root:// contract.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity, bearer
from doma.core.errors import BadRequest
from doma.core.paths import checked
from doma.doors.endpoint import Endpoint, Site

MOST_PATH = 16 << 10
"""Bytes of a path with its CGI."""


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
    files: dict[bytes, Any] = field(default_factory=dict)
    """Open files by their 4-byte handle: :mod:`doma.doors.root_read`, :mod:`doma.doors.root_write`."""


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


@dataclass(slots=True)
class Call:
    """One request."""

    site: Site
    session: Session
    stream: int
    code: int
    body: bytes
    """16 bytes of parameters."""
    data: bytes

    async def target(self, raw: bytes | None = None) -> Target:
        """The path of a request, resolved and with its identity; the verb is for the handler to decide.

        A token in the path's CGI wins over the session's; it becomes the caller's own for an origin.

        Args:
            raw: Path with CGI as it came; None: all of the data.

        Raises:
            BadRequest: no absolute path, ``..``, not UTF-8, too long. NotFound: no such endpoint.
            BadCredential, InvalidToken: a token that is no good.
        """
        text, cgi, secret = split(self.data if raw is None else raw)
        identity = self.session.identity
        bearer.set(self.session.token or None)
        if secret:
            identity = await self.site.identify(None, secret)
        endpoint, path = self.site.find(text)
        return Target(endpoint, path, text, identity, cgi)


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
