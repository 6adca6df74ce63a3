"""The public keys of trusted issuers: held in process, or fetched and cached in memory and on disk.

A request waits for the network only when there is no key for it, and then all wait for the same fetch. As
long as usable keys are there, an issuer that is away is nobody's problem.

Source: §2 of the token contract.
"""

import asyncio
import hashlib
import json
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from doma.auth.compact import Compact, PublicKey, keys_of
from doma.auth.discovery import context, fetch_jwks
from doma.auth.files import make_private_dir, read_private, write_private
from doma.auth.scopes import shown
from doma.core.config import Issuer
from doma.core.errors import ConfigError, InvalidToken, IssuerUnavailable, StorageFull

log = logging.getLogger(__name__)

REFRESH = 6 * 3600.0
"""Seconds after which keys are fetched again in the background."""
USABLE = 2 * 86400.0
"""Seconds that keys may be used while their issuer cannot be reached."""
PAUSE = 60.0
"""Seconds between fetches for an unknown ``kid``, and after a failed one."""

Jwks = Mapping[str, Any]
Keys = dict[tuple[str, str], PublicKey]


class KeySource(Protocol):
    """Where the keys of one issuer come from."""

    async def find(self, token: Compact) -> PublicKey:
        """The key that the token names.

        Raises:
            InvalidToken: the issuer has no such key.
            IssuerUnavailable: there are no usable keys, and the issuer cannot be reached.
        """

    async def close(self) -> None:
        """End what is under way. Idempotent."""


class LocalKeys:
    """The keys of an issuer in this process.

    Args:
        issuer: Whose.
        source: Its JWK set, or a function that gives the current one.
        dropped: Called when a key that was there has gone or changed.
    """

    def __init__(
        self, issuer: Issuer, source: Jwks | Callable[[], Jwks], dropped: Callable[[], None]
    ) -> None:
        self._issuer = issuer
        self._source = source if callable(source) else lambda: source
        self._dropped = dropped
        self._jwks: Jwks = {}
        self._keys: Keys = {}

    async def find(self, token: Compact) -> PublicKey:
        jwks = self._source()
        if jwks != self._jwks:
            try:
                keys = keys_of(jwks)
            except ValueError as e:
                raise ConfigError(f"issuer {self._issuer.issuer}: {e}") from e
            self._jwks, gone = jwks, _gone(self._keys, keys)
            self._keys = keys
            if gone:
                self._dropped()
        return _pick(token, self._keys, self._issuer) or _unknown(token, self._issuer)

    async def close(self) -> None:
        """Nothing is under way."""


class RemoteKeys:
    """The keys of an issuer behind https.

    Args:
        issuer: Whose.
        clock: Unix seconds.
        cache_dir: Where keys survive a restart; None: nowhere.
        dropped: Called when a key that was there has gone or changed.

    Raises:
        ConfigError: the URL is not https, or the CA file cannot be read.
    """

    def __init__(
        self, issuer: Issuer, clock: Callable[[], float], cache_dir: Path | None, dropped: Callable[[], None]
    ) -> None:
        if not _is_https(issuer.issuer):
            raise ConfigError(f"issuer {issuer.issuer}: must be an https URL without user and query")
        self._issuer = issuer
        self._clock = clock
        self._dropped = dropped
        name = hashlib.sha256(issuer.issuer.removesuffix("/").encode()).hexdigest()[:32]
        self._file = None if cache_dir is None else cache_dir / f"{name}.json"
        self._tls: ssl.SSLContext | None = context(issuer.ca_file) if issuer.ca_file else None
        self._keys: Keys = {}
        self._fetched = self._asked = self._failed = float("-inf")
        self._problem = ""
        self._loaded = self._file is None
        self._flight: asyncio.Task[None] | None = None

    async def find(self, token: Compact) -> PublicKey:
        if not self._loaded:
            await asyncio.to_thread(self._load)
        now = self._clock()
        if not self._usable(now):
            await self._join(self._begin(now))
            if not self._usable(self._clock()):
                raise IssuerUnavailable(
                    f"issuer {self._issuer.issuer}: its keys cannot be had: {self._problem}; try again later",
                    retry_after=30,
                )
            return _pick(token, self._keys, self._issuer) or _unknown(token, self._issuer)
        if now - self._fetched >= REFRESH:
            self._begin(now)
        key = _pick(token, self._keys, self._issuer)
        if key is None:
            if self._flight is None and not _within(PAUSE, now, self._asked):
                self._asked = now
                self._begin(now)
            await self._join(self._flight)
            key = _pick(token, self._keys, self._issuer)
        return key or _unknown(token, self._issuer)

    async def close(self) -> None:
        flight = self._flight
        if flight is not None:
            flight.cancel()
            await asyncio.wait([flight])

    def _usable(self, now: float) -> bool:
        return bool(self._keys) and abs(now - self._fetched) < USABLE

    def _begin(self, now: float) -> asyncio.Task[None] | None:
        """The fetch under way, a new one if there is none, or None shortly after a failure."""
        if self._flight is None and not _within(PAUSE, now, self._failed):
            self._flight = asyncio.create_task(self._run(), name=f"keys of {self._issuer.issuer}")
        return self._flight

    @staticmethod
    async def _join(flight: asyncio.Task[None] | None) -> None:
        """Wait for a fetch; whoever gives up waiting does not end it for the others."""
        if flight is not None:
            await asyncio.shield(flight)

    async def _run(self) -> None:
        """One fetch; its outcome is in the state, not in an exception."""
        try:
            if self._tls is None:
                self._tls = await asyncio.to_thread(context, self._issuer.ca_file)
            jwks = await fetch_jwks(self._issuer.issuer, self._tls)
            keys = _parsed(jwks)
            self._take(keys, self._clock())
            if self._file is not None:
                await asyncio.to_thread(self._store, self._file, jwks)
        except (IssuerUnavailable, ConfigError) as e:
            self._failed, self._problem = self._clock(), e.message
            log.warning("issuer %s: keys not fetched: %s", self._issuer.issuer, e.message)
        finally:
            self._flight = None

    def _take(self, keys: Keys, fetched: float) -> None:
        gone = _gone(self._keys, keys)
        self._keys, self._fetched = keys, fetched
        self._failed, self._problem = float("-inf"), ""
        if gone:
            log.info("issuer %s: a key has gone; tokens are verified anew", self._issuer.issuer)
            self._dropped()

    def _store(self, file: Path, jwks: Jwks) -> None:
        record = {"issuer": self._issuer.issuer, "fetched": self._fetched, "jwks": jwks}
        try:
            make_private_dir(file.parent)
            write_private(file, json.dumps(record).encode())
        except (ConfigError, StorageFull) as e:
            log.warning("issuer %s: keys not kept on disk: %s", self._issuer.issuer, e.message)

    def _load(self) -> None:
        """Take the keys that an earlier process left; what is no good is as if it were not there."""
        assert self._file is not None
        try:
            record = json.loads(read_private(self._file, 2 << 20) or b"{}")
            if record and record["issuer"] == self._issuer.issuer and not self._keys:
                keys, fetched = _parsed(record["jwks"]), float(record["fetched"])
                if 0 <= self._clock() - fetched < USABLE:
                    self._take(keys, fetched)
        except (ConfigError, IssuerUnavailable, ValueError, TypeError, KeyError, RecursionError) as e:
            log.warning("%s: kept keys are not used: %s", self._file, e)
        self._loaded = True


def _is_https(address: str) -> bool:
    try:
        url = urlsplit(address)
        return (
            url.scheme == "https" and bool(url.hostname) and not (url.query or url.fragment or url.username)
        )
    except ValueError:
        return False


def _pick(token: Compact, keys: Keys, issuer: Issuer) -> PublicKey | None:
    """The key that the token names; the single one of a SciTokens issuer needs no name (T3)."""
    if token.kid is not None:
        return keys.get((token.kid, token.alg))
    if issuer.profile != "scitokens" or len(keys) != 1:
        raise InvalidToken(f"token: kid is missing; {issuer.issuer} must name its key")
    return next((key for key in keys.values() if key.alg == token.alg), None)


def _unknown(token: Compact, issuer: Issuer) -> NoReturn:
    raise InvalidToken(
        f"token: kid {shown(token.kid or 'none')} is not a key of {issuer.issuer} for {token.alg}"
    )


def _parsed(jwks: Jwks) -> Keys:
    try:
        keys = keys_of(jwks)
    except ValueError as e:
        raise IssuerUnavailable(str(e)) from e
    if not keys:
        raise IssuerUnavailable("it publishes no RS256 or ES256 key")
    return keys


def _gone(old: Keys, new: Keys) -> bool:
    return any(new.get(name) != key for name, key in old.items())


def _within(span: float, now: float, then: float) -> bool:
    return 0 <= now - then < span
