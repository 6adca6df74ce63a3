"""Where cached bytes come from: one default origin, and those that a client may name in the path.

The cache keeps the default origin's own paths, so that names and token scopes are the same at both. The
forwarding form ``/https:/host[:port]/path``, ``/root:/host[:port]//path`` (``//`` arrives collapsed, or not)
reaches any origin that ``cache.allow`` names.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from urllib.parse import unquote

from doma.auth.model import bearer
from doma.cache.record import key_of
from doma.cache.replicas import Replica
from doma.core.errors import DomaError, Forbidden, TooManyRequests
from doma.core.paths import checked
from doma.store.http_trust import RemoteGuard
from doma.store.protocol import Stat, Store

log = logging.getLogger(__name__)

_FORWARD = re.compile(r"/(https?|x?roots?):/+([^/]*)(/.*)?", re.DOTALL | re.IGNORECASE)
_FORWARDS = re.compile(r"/(http|x?root)s?:/", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")
_PORTS = {"http": ":80", "https": ":443", "root": ":1094", "roots": ":1094"}
MOST = 256
"""Origins that clients may have named at one time."""
IDLE = 600.0
"""Seconds for which nobody names an origin before it is given up for another one."""
_MIRRORS = 4
"""Replicas of one object that its origin may name."""
_PLACES = 4096
"""Paths whose place is kept worked out."""


@dataclass(frozen=True, slots=True)
class Place:
    """One object: under which path it is asked for here, and where it lives."""

    shown: str
    """Path in the cache."""
    origin: str
    store: Store
    path: str
    """Path at the origin."""
    named: bool
    """Whether the client named the origin: then this site's policy knows nothing of what is there."""
    key: str
    """The object's name on disk."""
    replicas: tuple[Replica, ...]
    """Where it lives, the first one at ``origin``."""
    mirror: Callable[[str], Replica | None] = field(default=lambda url: None, compare=False)
    """The replica at a URL that an origin names; None: this site does not go there."""
    mirrors: list[Replica] = field(default_factory=list, compare=False)
    """Further replicas, as an origin says: they are asked for bytes alone, and compared before."""

    @property
    def everywhere(self) -> tuple[Replica, ...]:
        """The replicas, and behind them the mirrors."""
        return (*self.replicas, *self.mirrors)

    def learn(self, urls: Sequence[str]) -> None:
        """Take note of where an origin says that the same file is; of nothing said, nothing is learned."""
        if urls:
            found = {r.name: r for url in urls if (r := self.mirror(url)) is not None}
            own = {r.name for r in self.replicas}
            self.mirrors[:] = [r for name, r in found.items() if name not in own][:_MIRRORS]

    def replica(self, name: str) -> Replica:
        """The replica at an origin; the first one if there is none."""
        return next((r for r in self.replicas if r.name == name), self.replicas[0])

    def here(self, stat: Stat) -> Stat:
        """What the origin says, under the cache's own path."""
        tail = stat.path.removeprefix(self.path.rstrip("/"))
        path = self.shown.rstrip("/") + tail if stat.path != self.path else self.shown
        return Stat(path or "/", stat.size, stat.version, stat.modified, stat.is_dir, stat.checksums)

    async def children(self) -> AsyncIterator[Stat]:
        """The origin's listing, under the cache's own paths."""
        async for stat in self.store.list(self.path):
            yield self.here(stat)


class Origins:
    """The origins of one cache.

    Args:
        default: The store that plain paths mean.
        name: What to call it; a part of every key, so that a cache folder is not mixed between origins.
        open: Makes the store of an origin ``https://host[:port]`` or ``root://host[:port]``; None: no
            forwarding.
        allow: Globs over ``https://host[:port]`` that clients may name (``cache.allow``).
        others: More stores with the same files as ``default``, by name, in the order to be tried.
        mirror: As ``open``, for replicas that an origin names: its store shows nobody's token; None: none
            are used.
        clock: Seconds.
    """

    def __init__(
        self,
        default: Store,
        *,
        name: str = "default",
        open: Callable[[str], Store] | None = None,
        allow: tuple[str, ...] = (),
        others: Mapping[str, Store] | None = None,
        mirror: Callable[[str], Store] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.default = default
        self.spared: Callable[[str], bool] = lambda origin: False
        """Whether an origin can be given up, asked before it is; then nothing of it is kept in memory."""
        self._clock = clock
        self._used: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._others = dict(others or {})
        self.name = name
        self._open = open
        self._allow = tuple(glob.lower().rstrip("/") for glob in allow)
        self._named: dict[str, Store] = {}
        self._open_mirror = mirror
        self._mirrors: dict[str, Store] = {}
        self._places: dict[str, Place] = {}

    def place(self, path: str) -> Place:
        """Where a path of the cache lives.

        Raises:
            Forbidden: the path names an origin that ``cache.allow`` does not.
            TooManyRequests: clients have named too many origins.
        """
        place = self._places.get(path)
        if place is None:
            place = self._find(path)
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[path] = place
        if place.named:
            self._used[place.origin] = self._clock()
        return place

    def _find(self, path: str) -> Place:
        match = _FORWARD.fullmatch(path) if _FORWARDS.match(path) else None
        if match is None:
            own = {self.name: self.default, **self._others}
            replicas = tuple(Replica(name, store, path) for name, store in own.items())
            key = key_of(self.name, path)
            return Place(path, self.name, self.default, path, False, key, replicas, self._mirror)
        there = self._elsewhere(match, self._named, self._open)
        replicas, key = (there,), key_of(there.name, there.path)
        return Place(path, there.name, there.store, there.path, True, key, replicas, self._mirror)

    def _elsewhere(
        self, match: re.Match[str], stores: dict[str, Store], open: Callable[[str], Store] | None
    ) -> Replica:
        """What a client or an origin names. Raises Forbidden, TooManyRequests."""
        scheme, host, rest = match.group(1).lower(), match.group(2).lower(), match.group(3) or "/"
        scheme = scheme.removeprefix("x")
        base = f"{scheme}://{host.removesuffix(_PORTS[scheme])}"
        # Only a bare host and port get as far as the globs: no user part, no fragment, no brackets.
        known = _HOST.fullmatch(host) and any(fnmatchcase(base, glob) for glob in self._allow)
        if not known or open is None:
            raise Forbidden(
                f"{match.group()}: the origin {scheme}://{host[:100]} is not allowed here; "
                "add it to the key cache.allow",
                key="cache.allow",
            )
        store = stores.get(base)
        if store is None:
            if len(stores) >= MOST and not (stores is self._named and self._give_up()):
                raise TooManyRequests(f"{base}: more than {MOST} origins in use; try later", retry_after=60)
            store = stores[base] = open(base)
        return Replica(base, store, checked(rest))

    def _give_up(self) -> bool:
        """Give up the origin that was not named for longest and is not in use; False: there is none."""
        now = self._clock()
        for base in sorted(self._named, key=lambda base: self._used.get(base, now)):
            if now - self._used.get(base, now) < IDLE:
                break
            if self.spared(base):
                closing = asyncio.ensure_future(self._named.pop(base).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                del self._used[base]
                self._places = {path: place for path, place in self._places.items() if place.origin != base}
                return True
        return False

    def _mirror(self, url: str) -> Replica | None:
        match = _FORWARD.fullmatch(f"/{url}") if "?" not in url and "#" not in url else None
        try:
            path = unquote(match.group(3) or "/", errors="strict") if match is not None else ""
            if match is None or "%2f" in url.lower():
                return None
            found = self._elsewhere(match, self._mirrors, self._open_mirror)
            return Replica(found.name, found.store, checked(path))
        except (DomaError, UnicodeDecodeError) as e:
            log.info("a replica that an origin names is not used: %s", e)
            return None

    def label(self, origin: str) -> str:
        """The name of an origin in metrics; those that clients name have one together."""
        return origin if origin == self.name or origin in self._others else "forwarded"

    def shown(self, origin: str, path: str) -> str:
        """The path in the cache of what lies under a path at one of the origins."""
        if origin == self.name:
            return path
        scheme, _, host = origin.partition("://")
        return f"/{scheme}:/{host}{path}"

    async def close(self) -> None:
        """Close every origin's store."""
        for store in (self.default, *self._others.values(), *self._named.values(), *self._mirrors.values()):
            await store.close()
        await asyncio.gather(*self._closing)
        self._named.clear()
        self._mirrors.clear()
        self._places.clear()


def guard_of(globs: Iterable[str], allow: Iterable[str], deny: Iterable[str]) -> RemoteGuard:
    """Judges the addresses of origins that clients name, as those of third-party copies are (W70).

    Args:
        globs: ``cache.allow``; a host written there without a wildcard may be anywhere.
        allow: ``tpc.allow``.
        deny: ``tpc.deny``.

    Raises:
        ConfigError: a word is no network or host name.
    """
    hosts = (glob.lower().rstrip("/").partition("://")[2].partition(":")[0] for glob in globs)
    exact = [host for host in hosts if _HOST.fullmatch(host)]
    return RemoteGuard([*allow, *exact], deny, plain=True)


def caller() -> str:
    """Who asks, as a hash of the token (empty without one): names a token without keeping it."""
    token = bearer.get()
    return sha256(token.encode()).hexdigest() if token else ""
