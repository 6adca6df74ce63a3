"""Where an input is read: at this site, through its cache, or far away; and with what right.

Source: servicex.md §6 of the project's contracts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import quote, unquote, urlsplit

from doma.core.errors import DomaError
from doma.core.paths import checked, covers
from doma.core.url import origin_of
from doma.store.s3_signature import Credentials, presigned
from doma.store.s3_wire import address_of

LIFE = 6 * 3600
"""Seconds that a signed URL of an object is good for: a file waits for its worker at times."""


@dataclass(frozen=True, slots=True)
class Road:
    """The way to inputs.

    >>> road = Road(own=("https://here.org",), cache="https://here.org/cache", through=("https://*",))
    >>> road.places(("root://a.org//f", "https://b.org/f", "https://here.org/site/f"))[:2]
    ('https://here.org/site/f', 'root://a.org//f')
    >>> road.places(("root://a.org//f", "https://b.org/f"))[:2]
    ('https://here.org/cache/https://b.org/f', 'root://a.org//f')
    """

    own: tuple[str, ...] = ()
    """Origins of this site: read directly, and first."""
    cache: str = ""
    """URL of the cache, ``https://host/cache``; empty: there is none."""
    through: tuple[str, ...] = ()
    """Globs over ``https://host[:port]``, ``root://host[:port]``: the origins that the cache serves."""
    doors: Mapping[str, str] = field(default_factory=dict)
    """Addresses of scan services by origin; the paths are the same. It may grow while services start."""

    def places(self, urls: Sequence[str]) -> tuple[str, ...]:
        """The URLs of one file in the order in which they are tried, the cache's in front of the others'."""
        own = [u for u in urls if _origin(u) in self.own]
        others = [u for u in urls if u not in own]
        cached = next((u for u in others if self._serves(u)), None)
        middle = [f"{self.cache.rstrip('/')}/{cached}"] if cached is not None and not own else []
        return (*own, *middle, *others)

    def beside(self, url: str) -> str:
        """The file at the scan service beside it; empty: there is none.

        >>> Road(doors={"https://a.org": "grpc+tls://a.org:9"}).beside("https://a.org/site/f.root")
        'grpc+tls://a.org:9/site/f.root'
        """
        door = self.doors.get(_origin(url))
        return f"{door}/{urlsplit(url).path.lstrip('/')}" if door else ""

    def _serves(self, url: str) -> bool:
        if not self.cache or "?" in url or url.startswith(self.cache):
            return False
        origin = _origin(url).replace("xroot", "root")
        return bool(origin) and any(fnmatchcase(origin, glob.rstrip("/")) for glob in self.through)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets whose objects may be inputs: a worker gets a signed URL of one object, never the keys.

    Args:
        keys: Keys by address, ``s3://bucket/prefix?endpoint=https://host&region=…``; None: read without.

    Raises:
        ConfigError: an address is none.
    """

    keys: Mapping[str, Credentials | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for address in self.keys:
            address_of(address)

    def signed(self, url: str, now: float) -> str:
        """The https URL that reads ``s3://bucket/key``; empty: nobody may read that."""
        bucket, _, key = url.removeprefix("s3://").partition("?")[0].partition("/")
        try:
            path = checked("/" + unquote(key))
        except DomaError:
            return ""
        for address, who in self.keys.items():
            place = address_of(address)
            if place.bucket != bucket or not covers("/" + place.prefix, path) or path == "/":
                continue
            plain = f"{place.endpoint}/{bucket}{quote(path, safe='/-_.~')}"
            if who is None:
                return plain
            return presigned("GET", plain, who, now=now, life=LIFE, region=place.region)
        return ""


def _origin(url: str) -> str:
    try:
        return str(origin_of(url))
    except DomaError:
        return ""
