"""Endpoints from the configuration: a store each, under its policy."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from doma.app.home import Home
from doma.auth.gate import Gate
from doma.auth.policy import gate_of
from doma.cache.origins import Origins, guard_of
from doma.cache.store import CacheStore
from doma.cache.viewer import CacheView
from doma.core import config
from doma.core.errors import ConfigError
from doma.core.events import Emit
from doma.db.engine import Database
from doma.doors.endpoint import Endpoint
from doma.store.file import FileStore
from doma.store.http import HttpStore
from doma.store.http_trust import Authorities
from doma.store.memory import MemoryStore
from doma.store.protocol import Store
from doma.store.quota import Quota
from doma.store.s3 import S3Store
from doma.store.s3_signature import Credentials
from doma.store.s3_wire import credentials_of
from doma.store.xrootd import XrootdStore

RESERVED = frozenset(
    {
        ".well-known",
        "api",
        "docs",
        "events",
        "health",
        "metrics",
        "openapi.json",
        "pelican",
        "servicex",
        "token",
    }
    | {"redoc", "requests", "static", "transformation-request"}
)
"""First path components that belong to services."""

SHAREABLE = ("file:", "tape+file:", "http:", "https:", "s3:", "root:", "roots:")
"""Stores that keep nothing in a process: any number of processes may serve them. Of caches they serve what is
surely current; see :mod:`doma.cache.viewer`."""


def build_endpoints(
    home: Home,
    settings: config.Config,
    roles: frozenset[str],
    data: Path | None,
    base: str,
    ca_file: Sequence[Path],
    issuers: Sequence[config.Issuer],
    emit: Emit,
    *,
    db: Database,
    shared: bool = False,
) -> dict[str, Endpoint]:
    """All endpoints of this process by name.

    Args:
        home: Holds the folders of the default endpoints.
        settings: Sections ``endpoints`` and ``cache`` matter.
        roles: ``storage`` and ``cache`` bring the default endpoints ``site`` and ``cache``, ``columns``
            brings ``results``.
        data: Folder to serve read-only as ``data``.
        base: ``https://host:port`` of this server, the origin of the default cache.
        ca_file: Authorities of other servers besides the system's: our own, the grid's.
        issuers: Who is trusted, with their areas.
        emit: Takes the events of the caches.
        db: Where tape endpoints keep their rows.
        shared: Only those that several processes can serve at once.

    Raises:
        ConfigError: a reserved name or an address that no engine takes.
    """
    wanted = dict(settings.endpoints)
    if not wanted:
        if "storage" in roles:
            wanted["site"] = config.Endpoint(store=f"file://{home / 'site'}")
        if "cache" in roles:
            wanted["cache"] = config.Endpoint(store=f"cache+{base}/site", writable=False)
    prefixes = {issuer.issuer: issuer.prefixes for issuer in issuers}
    built: dict[str, Endpoint] = {}
    for name, section in wanted.items():
        if shared and not section.store.startswith((*SHAREABLE, "cache+")):
            continue
        if name in RESERVED | {settings.auth.vo} or not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"endpoints.{name}: this name is reserved or has other than letters, digits, - and _"
            )
        if section.store.startswith("tape+"):
            built[name] = Endpoint(
                name, _tape(name, section, db), gate_of(name, section, issuers), section.writable
            )
            continue
        if shared and section.store.startswith("cache+"):
            store: Store = CacheView(home / "cache" / name, section.store.removeprefix("cache+"))
        else:
            store = _store(name, section.store, home, settings, ca_file, emit, section)
        built[name] = Endpoint(name, store, gate_of(name, section, issuers), section.writable)
    if data is not None:
        built["data"] = Endpoint(
            "data", FileStore(data.absolute(), read_only=True), Gate(prefixes, name="data"), writable=False
        )
    if "columns" in roles:
        # results belong to whoever asked: a wide "storage.read:/" opens nothing here
        private = Gate(prefixes, wide=False, name="results")
        place = settings.columns.results
        kept = (
            _store("results", place, home, settings, ca_file, emit, config.Endpoint(store=place))
            if place
            else FileStore(home / "results")
        )
        built["results"] = Endpoint("results", kept, private, writable=False)
        if settings.columns.pool == "dask" and not settings.columns.dask.shared:
            # each Dask worker hands its result over under one name, by a token for that name alone
            alone = Gate(prefixes, wide=False, name="incoming")
            built["incoming"] = Endpoint("incoming", FileStore(home / "incoming"), alone)
    return built


def caches(endpoints: Mapping[str, Endpoint]) -> dict[str, CacheStore]:
    """The caching stores among the endpoints."""
    return {name: e.store for name, e in endpoints.items() if isinstance(e.store, CacheStore)}


def ailing(endpoints: Mapping[str, Endpoint]) -> dict[str, str]:
    """The caches that cannot keep anything now, as parts that ail."""
    resting = [name for name, cache in caches(endpoints).items() if cache.stats().resting]
    return {f"cache {name}": "its disk fails and rests: reads pass through" for name in resting}


def views(endpoints: Mapping[str, Endpoint]) -> dict[str, CacheView]:
    """The caches of another process among the endpoints."""
    return {name: e.store for name, e in endpoints.items() if isinstance(e.store, CacheView)}


def credit(endpoints: Mapping[str, Endpoint], viewed: Mapping[str, Any]) -> None:
    """Count what a worker has served of our caches."""
    for name, store in caches(endpoints).items():
        if name in viewed:
            store.credit(viewed[name]["hit"], viewed[name]["touched"])


def forwarding(endpoints: Mapping[str, Endpoint]) -> str:
    """The cache that a path means which begins with a URL: the one named ``cache``, else the first."""
    names = list(caches(endpoints))
    return "cache" if "cache" in names else names[0] if names else ""


def quota_of(section: config.Endpoint) -> Quota | None:
    """The limits of an endpoint's store."""
    limits = dict(section.quotas)
    if section.quota is not None:
        limits["/"] = section.quota
    return Quota(limits) if limits else None


def _tape(name: str, section: config.Endpoint, db: Database) -> Store:
    from doma.store.tape import TapeStore

    url = urlsplit(section.store.removeprefix("tape+"))
    if url.scheme != "file" or url.netloc not in {"", "localhost"}:
        raise ConfigError(f"endpoints.{name}.store: {section.store!r}: write tape+file:///folder")
    if quota_of(section) is not None:
        raise ConfigError(f"endpoints.{name}: quotas are kept for file: and memory: stores only")
    return TapeStore(Path(unquote(url.path)), db, name, section.tape, fsync=section.fsync)


def token_of(file: str) -> Callable[[], Awaitable[str]] | None:
    """Gives the token in a file, read again when the file changes; None for no file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if not file:
        return None
    place = Path(file)
    kept = (-1, "")

    async def token() -> str:
        nonlocal kept
        try:
            changed = place.stat().st_mtime_ns  # noqa: ASYNC240 - a small local file, in microseconds
            if changed != kept[0]:
                kept = (changed, place.read_text().strip())  # noqa: ASYNC240
        except OSError as e:
            raise ConfigError(f"{file}: the token cannot be read ({e.strerror}); see token_file") from e
        return kept[1]

    return token


def bucket_store(address: str, section: config.S3, ca_file: Authorities) -> S3Store:
    """The store of ``s3://bucket…`` with the keys that the configuration, else the environment has for it.

    Raises:
        ConfigError: the address is no good.
    """
    found = section.buckets.get(urlsplit(address).netloc)
    if found is None or not found.access_key:
        return S3Store(address, credentials=credentials_of(os.environ), ca_file=ca_file)
    secret, token = found.secret_key.get_secret_value(), found.session_token.get_secret_value()
    return S3Store(address, credentials=Credentials(found.access_key, secret, token), ca_file=ca_file)


def _store(
    name: str,
    address: str,
    home: Home,
    settings: config.Config,
    ca_file: Sequence[Path],
    emit: Emit,
    section: config.Endpoint,
) -> Store:
    if address.startswith("cache+"):

        def inner(url: str) -> Store:
            return _store(name, url, home, settings, ca_file, emit, section)

        guard = guard_of(settings.cache.allow, settings.tpc.allow, settings.tpc.deny)

        def named(url: str, token: Callable[[], Awaitable[None]] | None = None) -> Store:
            if url.startswith("root"):
                return XrootdStore(f"{url}//", ca_file=ca_file, allow=guard, token=token)
            return HttpStore(url, ca_file=ca_file, allow=guard, token=token)

        async def nobody() -> None:
            """No token goes to whom only an origin has named."""

        fixed = address.removeprefix("cache+")
        origins = Origins(
            inner(fixed),
            name=fixed,
            open=named,
            allow=settings.cache.allow,
            mirror=lambda url: named(url, nobody),
            others={url: inner(url) for url in section.replicas},
        )
        return CacheStore(home / "cache" / name, origins, settings.cache, emit=emit)
    if section.replicas and not section.store.startswith("cache+"):
        raise ConfigError(f"endpoints.{name}.replicas: only a cache+… store has replicas")
    token = token_of(section.token_file)
    url = urlsplit(address)
    match url.scheme:
        case "file":
            return FileStore(Path(unquote(url.path)), fsync=section.fsync, quota=quota_of(section))
        case "memory":
            return MemoryStore(quota=quota_of(section))
        case _ if quota_of(section) is not None:
            raise ConfigError(f"endpoints.{name}: quotas are kept for file: and memory: stores only")
        case "http" | "https":
            return HttpStore(address, ca_file=ca_file, token=token)
        case "root" | "roots" | "xroot" | "xroots":
            return XrootdStore(address, ca_file=ca_file, token=token)
        case "s3":
            return bucket_store(address, settings.s3, ca_file)
        case _:
            raise ConfigError(
                f"endpoints.{name}.store: {address!r} is no address that is offered;"
                " write file:///folder, memory:, https://host/prefix, root://host//folder,"
                " s3://bucket/prefix or cache+https://host/prefix"
            )
