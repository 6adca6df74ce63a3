"""From an address to a logged-in root:// connection: hello, TLS, login, token.

TLS comes in place, after the first answer. A token leaves this process over TLS only: as a ``ztn`` credential
where the server asks for one, else behind the ``?`` of each path.

Source: §1 and §3-§5 of the project's root:// contract.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from doma.core.errors import DomaError, Forbidden, OriginFailed, StorageUnavailable, TimedOut, Unauthenticated
from doma.core.url import Origin
from doma.net.xroot_errors import error_of
from doma.net.xroot_frames import (
    ABILITY,
    CAPABLE,
    EXPECT_LOGIN,
    P_AUTH,
    P_LOGIN,
    P_PROTOCOL,
    VERSION,
    Ask,
    Code,
    Server,
    Status,
    number_and_text,
)
from doma.net.xroot_text import authz, protocols, ztn
from doma.net.xroot_wire import Answer, Connection

Allow = Callable[[str, str], bool]
"""Whether one may connect: host name and address, ``("se.cern.ch", "192.0.2.7")``."""

_VERSION_AND_FLAGS = Struct(">iI")
_MUST_TLS = Server.TLS_DATA | Server.TLS_LOGIN | Server.TLS_SESSION
SESSION_ID = 16
"""Bytes in front of what a login answer says."""


@dataclass(frozen=True, slots=True)
class Times:
    """What a client grants a server, in seconds."""

    connect: float = 10
    answer: float = 60
    """For which nothing may come."""
    wait: float = 300
    """For which a server may put off one request altogether."""
    keep: float = 30
    """Life of an unused connection."""


@dataclass(slots=True)
class Session:
    """A connection on which requests may be made."""

    origin: Origin
    connection: Connection
    pages: bool
    """Whether the server knows pgread and pgwrite."""
    cgi: str
    """To stand behind every path: the token, if it was not given at login."""
    token: str | None
    files: int = 0
    """Open ones."""
    since: float = 0.0
    """When it was used last, in the loop's time."""

    @property
    def name(self) -> str:
        return self.connection.name


async def connect(
    origin: Origin, context: ssl.SSLContext, token: str | None, times: Times, allow: Allow | None
) -> Session:
    """Connect and log in.

    Args:
        origin: ``roots``: TLS or nothing. ``root``: TLS if the server wants it, or if there is a token to
            tell and the server can.
        context: For TLS.
        token: Of the user; not sent where there is no TLS.
        times: Limits.
        allow: Judges each address before it is connected.

    Raises:
        StorageUnavailable, TimedOut, OriginFailed, Unauthenticated, Forbidden.
    """
    name = str(origin)
    connection: Connection | None = None
    try:
        async with asyncio.timeout(times.connect):
            connection = await _reach(origin, allow)
            return await _begin(connection, origin, context, token, times)
    except TimeoutError as e:
        error: DomaError = StorageUnavailable(
            f"{name}: no login within {times.connect:g} s; is the server up?"
        )
        raise _given_up(connection, error) from e
    except ssl.SSLCertVerificationError as e:
        error = StorageUnavailable(
            f"{name}: its certificate is not trusted ({e.verify_message}); give the right CA file"
        )
        raise _given_up(connection, error) from e
    except (OSError, ssl.SSLError) as e:
        why = e.strerror or str(e) or type(e).__name__
        error = StorageUnavailable(f"{name}: cannot be connected ({why}); is the server up?")
        raise _given_up(connection, error) from e
    except BaseException as e:  # a cancellation, too: the connection goes, and it is raised on
        _given_up(connection, e if isinstance(e, DomaError) else StorageUnavailable(f"{name}: given up"))
        raise


def _given_up(connection: Connection | None, error: DomaError) -> DomaError:
    if connection is not None:
        connection.fail(error)
    return error


async def _reach(origin: Origin, allow: Allow | None) -> Connection:
    """Connect to the first address that answers. Resolved once: what was judged is what is connected."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    good = [address for address in addresses if allow is None or allow(origin.host, address)]
    if not good:
        raise Forbidden(f"{origin}: its address is not allowed here; the operator can allow it")
    for last, address in enumerate(good, 1 - len(good)):
        try:
            return (await loop.create_connection(lambda: Connection(str(origin)), address, origin.port))[1]
        except OSError:
            if not last:
                raise
    raise AssertionError(good)


async def _begin(
    connection: Connection, origin: Origin, context: ssl.SSLContext, token: str | None, times: Times
) -> Session:
    must = origin.scheme == "roots"
    ask = Ask.ABLE_TLS | (Ask.WANT_TLS if must or token else Ask(0))
    # Both in one segment, as every client sends them.
    greeting = asyncio.ensure_future(connection.greet(times.answer))
    try:
        await asyncio.sleep(0)
        flags = await _agree(connection, ask, times)
    except BaseException:  # a cancellation, too: nobody waits for the greeting any more
        greeting.cancel()
        raise
    finally:
        greeted = await asyncio.gather(greeting, return_exceptions=True)
    if isinstance(greeted[0], BaseException) or len(greeted[0]) < _VERSION_AND_FLAGS.size:
        raise OriginFailed(f"{connection.name}: this is no root:// server")
    if flags & _MUST_TLS and not flags & Server.GOTO_TLS:
        flags = await _agree(connection, ask | Ask.WANT_TLS, times)
    secure = bool(flags & Server.GOTO_TLS)
    if secure:
        await connection.upgrade(context, origin.host)
    elif must:
        raise OriginFailed(f"{connection.name}: the server has no TLS; use root:// or another server")
    known = token if secure else None
    cgi = await _log_in(connection, known, times)
    return Session(origin, connection, bool(flags & Server.PAGES), cgi, known)


async def _agree(connection: Connection, ask: Ask, times: Times) -> Server:
    answer = await connection.ask(
        Code.PROTOCOL, P_PROTOCOL.pack(VERSION, ask, EXPECT_LOGIN), patience=times.answer
    )
    body = _good(connection, answer, "protocol")
    if len(body) < _VERSION_AND_FLAGS.size:
        raise OriginFailed(f"{connection.name}: the server says too little about itself")
    return Server(_VERSION_AND_FLAGS.unpack_from(body)[1])


async def _log_in(connection: Connection, token: str | None, times: Times) -> str:
    """Log in, with the token if it is wanted here; what is to stand behind every path."""
    head = P_LOGIN.pack(os.getpid() & 0x7FFFFFFF, b"doma", 0, ABILITY, CAPABLE)
    answer = await connection.ask(Code.LOGIN, head, b"xrd.appname=doma", patience=times.answer)
    body = _good(connection, answer, "login")
    if body and len(body) < SESSION_ID:
        raise OriginFailed(f"{connection.name}: a login answer of {len(body)} bytes")
    offered = protocols(body[SESSION_ID:].partition(b"\0")[0].decode("latin-1"))
    if not offered:
        return authz(token) if token else ""
    if "ztn" not in offered or token is None:
        ways = ", ".join(offered)
        what = "get a token and use roots://" if "ztn" in offered else "this client has tokens only"
        raise Unauthenticated(f"{connection.name}: the server wants one of {ways}; {what}")
    answer = await connection.ask(Code.AUTH, P_AUTH.pack(b"ztn\0"), ztn(token), patience=times.answer)
    if answer.status == Status.ERROR:
        code, text = number_and_text(answer.body)
        raise Unauthenticated(error_of(code, text, f"{connection.name}: login", token).message)
    _good(connection, answer, "auth")
    return ""


def _good(connection: Connection, answer: Answer, what: str) -> bytes:
    """The body of an answer that has to be ok."""
    if answer.status == Status.OK:
        return answer.body
    if answer.status == Status.ERROR:
        raise error_of(*number_and_text(answer.body), f"{connection.name}: {what}")
    if answer.status == Status.WAIT:
        raise TimedOut(f"{connection.name}: the server is busy; try later", retry_after=10)
    raise OriginFailed(f"{connection.name}: {what} was answered with status {answer.status}")
