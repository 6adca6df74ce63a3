"""Who may see the pages of operators: who runs the system, or a token with the scope ``doma.admin``.

``/metrics`` holds numbers only: any user of this machine may read it, as Prometheus on the same host has no
token. The status page names files and people: it is for the user whose process this is (and root), told by
the owner of the other end of the loopback connection, as the kernel lists it.

Behind a proxy on the same host everybody would come from loopback, so a request that says it was forwarded
does not count as local.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from starlette.requests import Request

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity
from doma.auth.verifier import Verifier
from doma.core.errors import Forbidden, Unauthenticated

ADMIN = "doma.admin"

Peer = Callable[[Request], int | None]
"""Gives the user id at the other end of a connection."""

_LOOPBACK = ("0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F")
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 as the kernel writes them."""

_OWN = {"localhost", os.uname().nodename.lower()}
"""Names of this machine."""

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


async def identity_of(request: Request, verifier: Verifier) -> Identity | None:
    """Who asks; None without a token.

    Raises:
        BadRequest, InvalidToken, IssuerUnavailable: the token is no good.
    """
    token = bearer_of(request.headers.get("authorization"), request.url.query)
    return None if token is None else await verifier.verify(token)


async def must_be_known(request: Request, verifier: Verifier) -> Identity:
    """Who asks; raises Unauthenticated without a token."""
    identity = await identity_of(request, verifier)
    if identity is None:
        raise Unauthenticated(
            f"{request.url.path}: a token is needed; send it as 'Authorization: Bearer ...'"
        )
    return identity


async def must_be_operator(request: Request, verifier: Verifier, peer: Peer | None = None) -> float:
    """Return for who may see the page; gives the Unix time until which that holds.

    Args:
        request: The request.
        verifier: Of the token, if there is one.
        peer: Tells the owner of a local connection: then it must be who runs this process; None: any local
            user will do.

    Raises:
        Unauthenticated: without a token, from elsewhere or from another user. Forbidden: a token that is
            nobody's of those.
    """
    identity = await identity_of(request, verifier)
    if identity is not None and ADMIN in identity.scopes:
        return identity.expires
    if is_local(request) and (peer is None or peer(request) in {os.geteuid(), 0}):
        return float("inf")
    if identity is None:
        raise Unauthenticated(
            f"{request.url.path}: is for the user who runs this system, on its machine;"
            f" anybody else needs a token with {ADMIN}, as in ?authz=TOKEN"
        )
    raise Forbidden(f"{request.url.path}: the token lacks the scope {ADMIN}", scope=ADMIN)


def owner_of_peer(request: Request) -> int | None:
    """The user id at the client's end of a loopback connection; None if the kernel does not list it.

    Source: proc(5), ``/proc/net/tcp``: hexadecimal address:port, state 01 is established, then the uid.
    """
    client, server = request.client, request.scope.get("server")
    if client is None or not server or not server[1]:
        return None
    ends = f"{client.port:04X}", f"{server[1]:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                field = line.split()
                ports = field[1].rpartition(":")[2], field[2].rpartition(":")[2]
                if ports == ends and field[3] == "01" and field[1].rpartition(":")[0] in _LOOPBACK:
                    return int(field[7])
    return None


def is_own(request: Request, peer: Peer = owner_of_peer) -> bool:
    """Whether a program of who runs this process asks: no page in a browser, which anybody may have made.

    Not every browser says where a page is from; :func:`is_local` looks at the name that it asked for.
    """
    foreign = "origin" in request.headers or "sec-fetch-site" in request.headers
    return not foreign and is_local(request) and peer(request) in {os.geteuid(), 0}


def is_local(request: Request) -> bool:
    """Whether the request was made on this machine, by its own name, and by nobody's proxy.

    A name of somebody else's may lead here as well, and our pages would be the other page's own (DNS
    rebinding): without TLS, which wants our certificate for that name, only our own names count.
    """
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    host = request.url.hostname or ""
    ours = request.url.scheme == "https" or host in _OWN or _is_loopback(host)
    return ours and _is_loopback(request.client.host)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
