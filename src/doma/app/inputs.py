"""Inputs of column delivery: where they may lie, with what right they are read, which catalogues name any."""

import os
import time
from collections.abc import Callable, Collection, Container, Mapping
from urllib.parse import urlsplit

from doma.app.endpoints import caches
from doma.app.opened import Opened
from doma.auth.issuer import Issuer
from doma.columns import repo
from doma.columns.datasets import Datasets
from doma.columns.finder import Finder
from doma.columns.finder_catalogue import CatalogueFinder
from doma.columns.finder_opendata import OpenDataFinder
from doma.columns.finder_rucio import RucioFinder
from doma.columns.finder_xrootd import XrootdFinder
from doma.columns.model import Grant, TokenSource
from doma.columns.remote_places import Buckets, Road
from doma.core.config import Config
from doma.core.errors import ConfigError, DomaError
from doma.core.paths import covers, encode, normalise
from doma.core.url import Origin, origin_of
from doma.doors.endpoint import Endpoint
from doma.store.file import FileStore
from doma.store.memory import MemoryStore
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.s3_wire import address_of, credentials_of
from doma.store.tape import TapeStore

REUSE = 300.0
"""Seconds for which a token is given again."""
USERS = 1000


class Minter:
    """Rights that the system gives on somebody's behalf, never wider than what they had.

    Args:
        issuer: Signs.
        base: ``https://host:port`` of this server.
        buckets: Whose objects may be inputs.
        local: Endpoints of this server that show nobody the tokens they are shown; see :func:`local`.
        doors: Origins of other sites with a scan service that the configuration names. Each gets tokens of
            its own: good there alone, for one path, if it trusts our issuer.
    """

    def __init__(
        self,
        issuer: Issuer,
        base: str,
        buckets: Buckets,
        local: Container[str] = (),
        doors: Collection[str] = (),
    ) -> None:
        self._issuer, self._base, self._buckets, self._local = issuer, base, buckets, local
        self._doors = doors
        self._own = frozenset(own_origins(base))
        self._made: dict[tuple[str, str], tuple[float, str]] = {}

    async def token(self, owner: Grant, url: str) -> str:
        """A read token of a grant for an input of this server or of a door; empty for any other.

        For an object of a bucket that may be read: the signed URL that reads it.
        """
        if url.startswith("s3://"):
            return self._buckets.signed(url, time.time())
        origin = _origin(url)
        if owner.issuer != self._issuer.url or not owner.scopes or origin not in {*self._own, *self._doors}:
            return ""
        subject, scopes = owner.subject, " ".join(owner.scopes)
        endpoint, path = _place(url)
        if origin not in self._own:
            scopes = _narrow(owner, path)
            return self._issuer.issue(subject=subject, scopes=scopes, audience=(origin,)) if scopes else ""
        if endpoint not in self._local:
            # A cache shows its origin the token that it was shown: it must be good for nothing else.
            scopes = _narrow(owner, path)
            return self._issue(_bearer(subject), scopes) if scopes else ""
        # A session at a root:// server is shared by the files that one token reads.
        now, (made, token) = time.monotonic(), self._made.get((subject, scopes), (0.0, ""))
        if not token or now - made > min(REUSE, self._issuer.lifetime / 4):
            if len(self._made) > USERS:
                self._made.clear()
            token = self._issue(subject, scopes)
            self._made[subject, scopes] = now, token
        return token

    def _issue(self, subject: str, scopes: str) -> str:
        return self._issuer.issue(subject=subject, scopes=scopes, audience=(self._base,))

    def sign(self, owner: str, path: str, expires: float) -> str:
        """A token that reads one path of the results and nothing else."""
        return self._issuer.issue(
            subject=_bearer(owner.rpartition("#")[2]),
            scopes=f"storage.read:{encode(path)}",
            audience=(self._base,),
            lifetime=max(1.0, expires - time.time()),
            alg="ES256",
        )


def _bearer(subject: str) -> str:
    """Who shows a token that others get to see: not the user, in whose name they could ask services else."""
    return f"bearer of {subject}"


def _place(url: str) -> tuple[str, str]:
    """Endpoint and canonical path of a URL of this server, however it is written; empty: it has none.

    >>> _place("root://a.org//%63ache/https://b.org/f?x"), _place("https://a.org/cache/../site/f")
    (('cache', '/https:/b.org/f'), ('', ''))
    """
    try:
        path = normalise("/" + urlsplit(url).path.lstrip("/"))
    except DomaError:
        return "", ""
    endpoint, _, rest = path[1:].partition("/")
    return endpoint, f"/{rest}" if rest else ""


def _narrow(owner: Grant, path: str) -> str:
    """The right to read one path of an endpoint, if a grant has it; else empty."""
    areas = (scope.partition(":")[2] or "/" for scope in owner.scopes)
    return f"storage.read:{encode(path)}" if path and any(covers(area, path) for area in areas) else ""


def local(endpoints: Mapping[str, Endpoint]) -> frozenset[str]:
    """The endpoints whose stores show nobody the tokens they are shown; caches and proxies do."""
    plain = (FileStore, MemoryStore, S3Store, TapeStore)
    return frozenset(name for name, e in endpoints.items() if isinstance(e.store, plain))


def own_origins(base: str) -> tuple[str, ...]:
    """This server as the origin of inputs, by every protocol of its port."""
    origin = origin_of(base)
    return tuple(str(Origin(s, origin.host, origin.port)) for s in ("https", "root", "roots"))


def allowed(config: Config, base: str) -> tuple[str, ...]:
    """Origins that may be read although they lie in a private network.

    Raises:
        ConfigError: one of those that the configuration names is no origin.
    """
    named = [word if word == "file://" else _named(word) for word in config.columns.inputs]
    cache = config.columns.cache
    around = [_named(cache)] if "://" in cache else []
    buckets = [address_of(bucket).endpoint for bucket in config.columns.buckets]
    return tuple(dict.fromkeys([base, *own_origins(base), *named, *around, *buckets]))


def road_of(config: Config, opened: Opened, doors: Mapping[str, str]) -> Road:
    """The way to inputs; ``doors`` are scan services by origin, and may grow.

    Raises:
        ConfigError: the cache is neither an endpoint nor a URL.
    """
    own, cache = own_origins(opened.base), config.columns.cache
    if "://" in cache:
        return Road(own, cache, config.columns.cache_for, doors)
    if cache not in caches(opened.site.endpoints):
        # the default names one that a site need not have
        if cache not in {"", "cache"}:
            raise ConfigError(f"columns.cache: {cache!r} is no caching endpoint of this server")
        return Road(own, doors=doors)
    return Road(own, f"{opened.base}/{cache}", config.cache.allow, doors)


def buckets_of(config: Config) -> Buckets:
    """The buckets whose objects may be inputs. Raises ConfigError."""
    keys: dict[str, Credentials | None] = {}
    for address in config.columns.buckets:
        found = config.s3.buckets.get(urlsplit(address).netloc)
        if found is None or not found.access_key:
            keys[address] = credentials_of(os.environ)
            continue
        secret, token = found.secret_key.get_secret_value(), found.session_token.get_secret_value()
        keys[address] = Credentials(found.access_key, secret, token)
    return Buckets(keys)


def make_datasets(
    config: Config, opened: Opened, tokens: TokenSource, *, clock: Callable[[], float] = time.time
) -> Datasets:
    """Datasets with the catalogues that the configuration offers. Raises ConfigError."""
    section = config.datasets
    finders: list[Finder] = [CatalogueFinder(opened.db, section)]
    if section.xrootd:
        finders.append(XrootdFinder(opened.files.ca, allowed(config, opened.base), tokens.token))
    if section.opendata:
        finders.append(OpenDataFinder(section))
    if section.rucio:
        finders.append(RucioFinder(section, clock))
    return Datasets(opened.db, finders, section, repo.settled, clock=clock)


def _named(url: str) -> str:
    try:
        return str(origin_of(url))
    except DomaError as e:
        raise ConfigError(f"columns: {e.message}") from e


def _origin(url: str) -> str:
    try:
        return str(origin_of(url))
    except DomaError:
        return ""
