"""Who may see the pages of operators: this machine, or a token with the scope ``doma.admin``.

Loopback needs no token, as Prometheus on the same host has none; behind a proxy on the same host everybody
would come from loopback, so a request that says it was forwarded does not count as local.
"""

from ipaddress import ip_address

from starlette.requests import Request

from doma.auth.bearer import bearer_of
from doma.auth.model import Identity
from doma.auth.verifier import Verifier
from doma.core.errors import Forbidden, Unauthenticated

ADMIN = "doma.admin"

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


async def must_be_operator(request: Request, verifier: Verifier) -> float:
    """Return for this machine and for operators; gives the Unix time until which that holds.

    Raises:
        Unauthenticated: from elsewhere without a token. Forbidden: the token is nobody's of those.
    """
    identity = await identity_of(request, verifier)
    if identity is not None and ADMIN in identity.scopes:
        return identity.expires
    if is_local(request):
        return float("inf")
    if identity is None:
        raise Unauthenticated(f"{request.url.path}: from another machine a token with {ADMIN} is needed")
    raise Forbidden(f"{request.url.path}: the token lacks the scope {ADMIN}", scope=ADMIN)


def is_local(request: Request) -> bool:
    """Whether the request was made on this machine and by nobody's proxy."""
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
