"""How a root:// connection begins: what the server can do, TLS, login, token, further streams.

Source: §3-§5 and §9 (endsess) of the project's root:// contract.
"""

import asyncio
from collections.abc import Mapping
from itertools import count
from secrets import token_bytes
from urllib.parse import parse_qsl

from doma.auth.bearer import bearer_of
from doma.core.errors import BadCredential, Forbidden, NotFound, Unauthenticated
from doma.doors.root_call import Session
from doma.doors.root_connection import RootConnection
from doma.net.listener import may_be_plain
from doma.net.xroot_errors import BAD_REQUEST, NO_MEMORY, TLS_REQUIRED, refusal
from doma.net.xroot_frames import (
    P_AUTH,
    P_LOGIN,
    P_PROTOCOL,
    PROTOCOL_ANSWER,
    VERSION,
    Ask,
    Code,
    Server,
)
from doma.net.xroot_text import ztn_token

MOST_STREAMS = 15
"""Connections that may be bound to a session."""
ROUNDS = 3
"""Failed authentications after which a connection is closed …"""
PENALTY = 2.0
"""… this many seconds later."""
SECURITY = b"&P=ztn,0:16384:&P=host"
"""A token if the client has one; without one it is nobody, and may still read what is public."""

_numbers = count(1)


async def set_up(connection: RootConnection, stream: int, code: int, body: bytes, data: bytes) -> None:
    """Answer a request that changes the connection itself; no other is taken meanwhile.

    Raises:
        DomaError: to be answered.
    """
    if code == Code.PROTOCOL:
        await _protocol(connection, stream, body)
    elif code == Code.BIND:
        _bind(connection, stream, body)
    else:
        try:
            await (_login if code == Code.LOGIN else _auth)(connection, stream, body, data)
        except (Unauthenticated, BadCredential) as e:
            connection.failures += 1
            if connection.failures < ROUNDS:
                raise
            await asyncio.sleep(PENALTY)
            connection.end(stream, e)


async def _protocol(connection: RootConnection, stream: int, body: bytes) -> None:
    _, asked, _ = P_PROTOCOL.unpack(body)
    door = connection.door
    flags, go = door.flags, False
    if door.tls is not None:
        flags |= Server.HAVE_TLS
        wanted = Ask.WANT_TLS
        if _must_be_secure(connection):
            flags |= Server.TLS_LOGIN
            wanted |= Ask.ABLE_TLS
        go = bool(asked & wanted) and not connection.tls and connection.session is None
    connection.answer(stream, PROTOCOL_ANSWER.pack(VERSION, flags | (Server.GOTO_TLS if go else 0)))
    if go and door.tls is not None:
        await connection.to_tls(door.tls)


def _must_be_secure(connection: RootConnection) -> bool:
    return not may_be_plain(connection.door.plain, connection.peer[0])


async def _login(connection: RootConnection, stream: int, body: bytes, data: bytes) -> None:
    if connection.session is not None:
        raise refusal(BAD_REQUEST, "login: this connection is logged in already")
    if _must_be_secure(connection) and not connection.tls:
        connection.end(
            stream, refusal(TLS_REQUIRED, "login: needs TLS here; use roots:// or a client with TLS")
        )
        return
    pid, name, _, _, _ = P_LOGIN.unpack(body)
    query = data.partition(b"\0")[0].decode("utf-8", "replace").lstrip("?&")
    said = dict(parse_qsl(query.replace("?", "&")))
    local = connection.transport.get_extra_info("sockname")
    session = Session(
        token_bytes(16),
        next(_numbers),
        connection.peer[0],
        (str(local[0]), int(local[1])),
        connection.tls,
        name=_word(name.partition(b"\0")[0].decode("latin-1")),
        pid=pid,
        app=_word(said.get("xrd.appname", "")),
        release=_word(said.get("xrd.rn", "")),
        info=_word(said.get("xrd.info", "")),
        ipv6=":" in connection.peer[0].removeprefix("::ffff:"),
        observer=connection.door.observer,
    )
    token = bearer_of(None, query, access_token=True)
    if token is not None:
        await _identify(connection, session, token)
    session.authenticated = token is not None or not connection.tls
    session.streams[0] = connection
    connection.session = session
    connection.door.sessions[session.id] = session
    connection.answer(stream, session.id + (b"" if session.authenticated else SECURITY))


async def _auth(connection: RootConnection, stream: int, body: bytes, data: bytes) -> None:
    session = connection.session
    if session is None or connection.path_id:
        raise refusal(BAD_REQUEST, "auth: log in first")
    (kind,) = P_AUTH.unpack(body)
    if kind == b"ztn\0":
        await _identify(connection, session, ztn_token(data))
    elif kind != b"host":
        raise BadCredential("auth: this server takes tokens (ztn); get one and use roots://")
    session.authenticated = True
    connection.answer(stream)


async def _identify(connection: RootConnection, session: Session, token: str) -> None:
    verifier = connection.door.site.verifier
    epoch = verifier.epoch
    session.identity = await verifier.verify(token, macaroons=True)
    session.token, session.epoch = token, epoch


def _bind(connection: RootConnection, stream: int, body: bytes) -> None:
    session = connection.door.sessions.get(body)
    if connection.session is not None:
        raise refusal(BAD_REQUEST, "bind: this connection is logged in already")
    if session is None:
        raise NotFound("bind: there is no such session; log in again")
    own = session.host == connection.peer[0] and session.authenticated
    if not own or (session.tls and not connection.tls):
        raise Forbidden("bind: this session is another host's, not authenticated, or under TLS")
    free = set(range(1, MOST_STREAMS + 1)) - session.streams.keys()
    if not free:
        raise refusal(NO_MEMORY, f"bind: a session has at most {MOST_STREAMS} further streams")
    connection.path_id = min(free)
    session.streams[connection.path_id] = connection
    connection.session = session
    connection.answer(stream, bytes([connection.path_id]))


def end_session(session: Session, sessions: Mapping[bytes, Session], wanted: bytes) -> None:
    """Close an older session of the same client: it has come again, and no longer uses its files."""
    old = sessions.get(wanted)
    if old is not None and old is not session:
        old.streams[0].cut()


def _word(text: str) -> str:
    """What a client says of itself, fit for a log: short and printable."""
    return "".join(c for c in text[:200] if c.isprintable())
