"""Tokens verified once and then known: the one place where a token becomes an identity.

The order of the checks is the security: form, algorithm, issuer against our list, key of that issuer,
signature; only then are claims believed. A verdict is remembered by the SHA-256 of the whole token, until
it expires or for 5 minutes, so a thousand requests with one token cost one signature check.

Source: WLCG Common JWT Profile 1.3, RFC 7519, RFC 8725; rules T1-T11 and §1-§4 of the token contract.
"""

import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from doma.auth.audience import accepted
from doma.auth.claims import identity_of
from doma.auth.compact import MAX_TOKEN, check_signature, parse
from doma.auth.macaroon import Macaroons
from doma.auth.model import Identity
from doma.auth.scopes import shown
from doma.auth.trust import Jwks, KeySource, LocalKeys, RemoteKeys
from doma.core.config import Issuer
from doma.core.errors import ConfigError, InvalidToken

REMEMBER = 300.0
"""Seconds for which a verdict holds at most."""
MAX_KNOWN = 10_000
MAX_KNOWN_BYTES = 16 << 20
"""Bytes of all tokens whose verdicts are remembered."""
MAX_SKEW = 300.0


class Verifier:
    """Verifies tokens of the configured issuers for this server.

    Args:
        issuers: Who is trusted.
        audiences: Our names: URLs, ``host``, ``host:port``.
        local: Issuer URL to its JWK set, or to a function that gives the current one: no HTTP is used.
        clock: Unix seconds.
        skew: Seconds that ``nbf`` and ``iat`` may lie in the future, at most 300.
        cache_dir: Where fetched keys survive a restart; None: nowhere.
        revoked: ``jti`` of tokens that are void, random ones of our own issuers; see :meth:`drop`.
        macaroons: Judges our own macaroons; None: they are refused.

    Raises:
        ConfigError: an issuer is listed twice, is not https, or is local but not listed; bad audience,
            CA file or skew.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        audiences: Sequence[str],
        *,
        local: Mapping[str, Jwks | Callable[[], Jwks]] | None = None,
        clock: Callable[[], float] = time.time,
        skew: float = 60.0,
        cache_dir: Path | None = None,
        revoked: Container[str] = frozenset(),
        macaroons: Macaroons | None = None,
    ) -> None:
        if not 0 <= skew <= MAX_SKEW:
            raise ConfigError(f"clock_skew {skew:g}: must lie between 0 and {MAX_SKEW:g} seconds")
        self.epoch = 0
        """Grows whenever remembered verdicts are dropped; a memo made at another epoch is void."""
        self._audiences = accepted(audiences)
        self._clock = clock
        self._skew = skew
        self._revoked = revoked
        self.macaroons = macaroons
        self._trusted: dict[str, tuple[Issuer, KeySource]] = {}
        self._known: dict[bytes, tuple[Identity, float, int]] = {}
        self._known_bytes = 0
        held = {url.removesuffix("/"): source for url, source in (local or {}).items()}
        for issuer in issuers:
            name = issuer.issuer.removesuffix("/")
            if name in self._trusted:
                raise ConfigError(f"issuer {issuer.issuer}: is listed twice; remove one")
            dropped = partial(self.forget, name)
            keys: KeySource = (
                LocalKeys(issuer, held[name], dropped)
                if name in held
                else RemoteKeys(issuer, clock, cache_dir, dropped)
            )
            self._trusted[name] = (issuer, keys)
        for name in held.keys() - self._trusted.keys():
            raise ConfigError(f"issuer {name}: has local keys but is not among the trusted issuers")

    def known(self, token: str) -> Identity | None:
        """The identity of a token that was verified before and is still good; no I/O, microseconds."""
        if len(token) > MAX_TOKEN:
            return None
        found = self._known.get(_digest(token))
        if found is None or self._clock() >= found[1]:
            return None
        return found[0]

    async def verify(self, token: str, *, macaroons: bool = False) -> Identity:
        """The identity that a token stands for.

        Args:
            token: As the client sent it.
            macaroons: Whether a macaroon will do: only where a gate then decides on a path of its endpoint.

        Raises:
            InvalidToken: a check failed; the message says which and what was expected, never the token.
            IssuerUnavailable: the keys of its issuer, which is trusted, cannot be had.
        """
        found = self.known(token)
        if found is None and self.macaroons is not None and "." not in token:
            now = self._clock()
            found = self._valid(self.macaroons.verify(token, now))
            self._remember(token, found, min(found.expires, now + REMEMBER))
        if found is not None:
            if found.only and not macaroons:
                raise InvalidToken("macaroon: opens files only; send a token here")
            return found
        parts = parse(token)
        trusted = self._trusted.get(parts.issuer.removesuffix("/"))
        if trusted is None:
            raise InvalidToken(f"token: its issuer {shown(parts.issuer)} is not trusted here")
        issuer, keys = trusted
        check_signature(parts, await keys.find(parts))
        now = self._clock()
        identity = identity_of(parts.claims, issuer, self._audiences, now, self._skew)
        self._valid(identity)
        self._remember(token, identity, min(identity.expires, now + REMEMBER))
        return identity

    def voided(self, identity: Identity) -> bool:
        """Whether an identity's token was revoked after it was verified."""
        return identity.jti in self._revoked

    def _valid(self, identity: Identity) -> Identity:
        if self.voided(identity):
            raise InvalidToken(f"token: {identity.jti} of {identity.subject} was revoked; get a new one")
        return identity

    def drop(self, revoked: Collection[str]) -> None:
        """Drop the verdicts on tokens that were revoked meanwhile; from the event loop only.

        Args:
            revoked: Their ``jti``.
        """
        self._drop_all(lambda identity: identity.jti in revoked)

    def forget(self, issuer: str = "") -> None:
        """Drop the verdicts on an issuer's tokens: its keys have changed.

        Args:
            issuer: Without a slash at its end; others' verdicts stay, so that none makes them cost anew.
                Empty: all are dropped.
        """
        self._drop_all(lambda identity: issuer in {"", identity.issuer.removesuffix("/")})

    async def close(self) -> None:
        """End fetches under way. Idempotent."""
        for _, keys in self._trusted.values():
            await keys.close()

    def _remember(self, token: str, identity: Identity, until: float) -> None:
        self._drop(digest := _digest(token))
        self._known[digest] = (identity, until, len(token))
        self._known_bytes += len(token)
        while len(self._known) > MAX_KNOWN or self._known_bytes > MAX_KNOWN_BYTES:
            self._drop(next(iter(self._known)))

    def _drop_all(self, void: Callable[[Identity], bool]) -> None:
        for digest in [digest for digest, (identity, _, _) in self._known.items() if void(identity)]:
            self._drop(digest)
        # also where none was found: a session may hold one whose verdict had to make room
        self.epoch += 1

    def _drop(self, digest: bytes) -> None:
        _, _, size = self._known.pop(digest, (None, 0.0, 0))
        self._known_bytes -= size


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
