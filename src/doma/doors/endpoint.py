"""An endpoint: a store behind doors, under a policy. Its name is the first path component of a URL."""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from doma.auth.bearer import bearer_of
from doma.auth.gate import Gate
from doma.auth.model import Identity, Verb, bearer
from doma.auth.verifier import Verifier
from doma.cache.readonly import ReadOnly
from doma.core.errors import DomaError, NotFound, Unauthenticated
from doma.core.events import Emit
from doma.core.paths import normalise
from doma.doors.reads import HttpReads
from doma.doors.usage import Usage
from doma.store.protocol import Store

if TYPE_CHECKING:
    from doma.store.tape_requests import StageRequests

_SCHEME = re.compile(r"(https?|x?roots?):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One store as the doors see it."""

    name: str
    store: Store
    gate: Gate
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Site:
    """What all doors of one server share."""

    verifier: Verifier
    endpoints: Mapping[str, Endpoint]
    emit: Emit = field(default=lambda event: None)
    name: str = "localhost"
    """Host name for ``WWW-Authenticate: Bearer realm=``."""
    doors: frozenset[tuple[str, int]] = frozenset()
    """Host and port of every way to this server: a COPY between two of them stays here (W71)."""

    third_party: Callable[[Any], Awaitable[None]] | None = None
    """Answers a COPY that names another server (:class:`doma.doors.tpc.ThirdParty`); None: 501."""
    usage: Usage | None = None
    """Sums up who has read how much; ``emit`` tells it of what was written."""
    forward: str = ""
    """The endpoint that a path means which begins with a URL (``/root:/host/f``): a cache; empty: none."""
    reads: HttpReads | None = None
    """Joins reads over HTTP to open files, for the monitoring."""
    stages: "StageRequests | None" = None
    """Takes what root:// clients want staged."""
    pin: float = 24 * 3600.0
    """Seconds for which that is kept on disk."""
    query_token: bool = False
    """Whether ``access_token=`` in a query names a token, as ``authz=`` does."""

    def find(self, path: str) -> tuple[Endpoint, str]:
        """The endpoint of a canonical URL path and the path within it: ``/site/a`` is ``site``, ``/a``.

        ``/root://host//f`` is ``/root:/host/f`` of :attr:`forward`: clients of an XCache ask so.

        Raises:
            NotFound: no endpoint of that name.
        """
        name, _, rest = path[1:].partition("/")
        endpoint = self.endpoints.get(name)
        if endpoint is None and self.forward and _SCHEME.fullmatch(name):
            return self.endpoints[self.forward], path
        if endpoint is None:
            known = ", ".join(sorted(self.endpoints)) or "none"
            raise NotFound(f"{path}: there is no endpoint {name!r} here; endpoints: {known}")
        return endpoint, "/" + rest

    async def identify(self, authorization: str | None, query: str) -> Identity | None:
        """Who asks, by a token or a macaroon in the header or the query; None: nobody says.

        A token is kept as the caller's own (:data:`doma.auth.model.bearer`), for an origin to take; a
        macaroon is not, since it is for this server alone.

        Raises:
            BadCredential, InvalidToken, IssuerUnavailable: there is one, and it is no good.
        """
        token = bearer_of(authorization, query, access_token=self.query_token)
        if token is None:
            return None
        identity = await self.verifier.verify(token, macaroons=True)
        if not identity.only:
            bearer.set(token)
        return identity

    async def identify_reader(
        self, endpoint: Endpoint, path: str, authorization: str | None, query: str
    ) -> Identity | None:
        """Who wants to read; a token that is no good does no harm at a cache where none is needed.

        ``pelicanfs`` says ``Bearer None`` when it has none (cache contract §8).

        Raises:
            BadCredential, InvalidToken, IssuerUnavailable: as :meth:`identify`.
        """
        try:
            return await self.identify(authorization, query)
        except Unauthenticated:
            if not (isinstance(endpoint.store, ReadOnly) and endpoint.gate.may(None, Verb.READ, path)):
                raise
            return None

    def name_in_full(self, error: DomaError, target: str) -> None:
        """Put the endpoint's name before the path that an error begins with.

        Stores and gates know a path within its endpoint; people know it with the endpoint's name.

        Args:
            error: What is about to be answered.
            target: The request's path as on the wire.
        """
        with suppress(DomaError):
            endpoint, path = self.find(normalise(target))
            if error.message.startswith(f"{path}:"):
                error.message = f"/{endpoint.name}{error.message}"
