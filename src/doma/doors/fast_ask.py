"""Who asks for what, as far as that is known at once: a target's endpoint and path, a token's identity.

Source: dataplane.md §3.5 of the project's contracts.
"""

import re
from collections.abc import Callable
from functools import cache

from doma.auth.model import Identity
from doma.core.paths import MAX_DEPTH, normalise
from doma.doors.endpoint import Endpoint, Site
from doma.net.exchange import Request

TRUST = 30.0
"""Seconds for which a connection's last token needs no look at the verifier, unless its epoch changes."""

_CANONICAL = re.compile(rb"(?:/[A-Za-z0-9_~+=,@:-][A-Za-z0-9_~+=,@:.-]{0,59})+")
"""Paths that :func:`doma.core.paths.normalise` leaves as they are, if not too long or deep."""
_SHORT = 2048


class Unknown(Exception):
    """The quick side cannot say."""


class Asker:
    """Finds out who asks for what.

    Args:
        site: The endpoints.
        clock: Unix seconds.
    """

    def __init__(self, site: Site, clock: Callable[[], float]) -> None:
        self._site, self._clock = site, clock

    def aim(self, target: bytes) -> tuple[str, Endpoint, str]:
        """The path of a file as people know it, its endpoint, and the path there.

        Raises:
            Unknown: it is no plain path of a file.
            DomaError: it is no path, or there is no such endpoint.
        """
        if _CANONICAL.fullmatch(target) and len(target) < _SHORT and target.count(b"/") <= MAX_DEPTH:
            shown = target.decode("ascii")
        elif b"?" in target or target[-1:] == b"/" or not target.isascii():
            raise Unknown
        else:
            shown = normalise(target.decode("ascii"))
        endpoint, path = self._site.find(shown)
        return shown, endpoint, path

    def identity(self, request: Request) -> Identity | None:
        """Who asks; None: nobody says.

        Raises:
            Unknown: a token that was not seen before, or has expired.
        """
        credential = request.fields.get(b"authorization")
        if credential is None:
            return None
        verifier, memo, now = self._site.verifier, request.memo, self._clock()
        last = memo.get("token")
        if last is not None and last[0] == credential and last[1] == verifier.epoch and now < last[3]:
            identity: Identity = last[2]
        else:
            scheme, _, token = credential.partition(b" ")
            if scheme.lower() != b"bearer" or not token.isascii():
                raise Unknown
            known = verifier.known(token.strip().decode("ascii"))
            if known is None:
                raise Unknown
            identity = known
            memo["token"] = (credential, verifier.epoch, identity, now + TRUST)
        if now >= identity.expires:
            raise Unknown
        return identity


@cache
def offers(kind: type, what: type) -> bool:
    """Whether stores of a class do this, asked once: the question costs much of a small request."""
    return issubclass(kind, what)
