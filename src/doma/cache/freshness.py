"""How long a cached object may be served without asking its origin: pure decisions.

Source: RFC 9111 §4.2 (freshness), §5.2.2 (response directives), RFC 8246; cases F1-F4, F10 and F14 of the
cache contract.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

FOREVER = 2.0**31
"""What an overflowing delta-seconds means (RFC 9111 §1.2.2)."""

STEADY = 300.0
"""Explicit lifetimes below this are kept to the second; longer ones end up to 10 % earlier (jitter)."""

_ITEM = re.compile(r'\s*([^\s=,;"]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s,]*))?\s*(?:,|$)')


class Control(StrEnum):
    """What the client allows for this request."""

    NORMAL = "normal"
    REFRESH = "refresh"
    """``Cache-Control: no-cache``, a root:// open with refresh: ask the origin now (F12)."""
    ONLY_IF_CACHED = "only-if-cached"
    """Answer from the cache or not at all; never touch the origin (F13)."""


control: ContextVar[Control] = ContextVar("cache_control", default=Control.NORMAL)
"""Set by a door (see :func:`requested`) before it calls the store; read once, at open or stat."""


PATIENCE = 60.0
"""Seconds that a client waits for bytes if it does not say: what ``pelican`` does."""

patience: ContextVar[float] = ContextVar("cache_patience", default=PATIENCE)
"""Seconds that the client waits for an open or a read; set by a door like :data:`control`."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{0,9})?)(h|ms|m|us|µs|ns|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def patience_of(headers: Mapping[str, str]) -> float:
    """Seconds after which an answer comes too late, by ``X-Pelican-Timeout`` (names in lower case).

    A tenth is taken off, so that the client hears why before it gives up (O5). Nonsense is ignored.

    >>> patience_of({"x-pelican-timeout": "10s"}), patience_of({"x-pelican-timeout": "1m30.5s"})
    (9.0, 81.45)
    """
    text = headers.get("x-pelican-timeout", "").strip()
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        return PATIENCE * 0.9
    total = sum(float(number) * _UNITS[unit] for number, unit in found)
    return min(max(0.9 * total, 0.05), 3600.0)


def requested(headers: Mapping[str, str]) -> Control:
    """What a client's request headers (names in lower case) allow; for doors, to set :data:`control`.

    >>> requested({"cache-control": "Only-If-Cached"}).value, requested({"pragma": "no-cache"}).value
    ('only-if-cached', 'refresh')
    """
    words = {part.partition("=")[0].strip().lower() for part in headers.get("cache-control", "").split(",")}
    if "only-if-cached" in words or headers.get("x-pelican-nodownload", "").lower() == "true":
        return Control.ONLY_IF_CACHED
    forced = "no-cache" in words or (
        "cache-control" not in headers and "no-cache" in headers.get("pragma", "")
    )
    return Control.REFRESH if forced else Control.NORMAL


@dataclass(frozen=True, slots=True)
class Directives:
    """What an origin's ``Cache-Control`` says, as far as a shared cache minds it."""

    lifetime: float | None = None
    """Seconds of freshness; None: nothing was said."""
    store: bool = True
    """False for ``no-store`` and ``private``."""
    check: bool = False
    """``no-cache``: validate before every use."""
    strict: bool = False
    """``must-revalidate``, ``proxy-revalidate``, ``s-maxage``: never serve stale."""


def parse(header: str) -> Directives:
    """The directives of a ``Cache-Control`` value; what is unknown or malformed is ignored.

    ``s-maxage`` wins over ``max-age``; of repeated ones the shortest counts; a negative or malformed number
    means stale at once.

    >>> parse('Public, MAX-AGE="60", s-maxage=10').lifetime
    10.0
    >>> parse("max-age=-5").lifetime, parse("max-age=99999999999999999999").lifetime
    (0.0, 2147483648.0)
    """
    found: dict[str, float] = {}
    names: set[str] = set()
    at = 0
    while at < len(header):
        item = _ITEM.match(header, at)
        if item is None:
            comma = header.find(",", at)
            at = len(header) if comma < 0 else comma + 1
            continue
        at = max(item.end(), at + 1)
        name, value = item.group(1).lower(), item.group(2)
        names.add(name)
        if name in {"max-age", "s-maxage"}:
            found[name] = min(_seconds(value), found.get(name, FOREVER))
    lifetime = found.get("s-maxage", found.get("max-age"))
    return Directives(
        lifetime=lifetime,
        store=not names & {"no-store", "private"},
        check="no-cache" in names,
        strict=bool(names & {"must-revalidate", "proxy-revalidate", "s-maxage"}),
    )


def fresh_until(said: Directives, validated: float, age: float, default: float, key: str) -> float:
    """The instant at which an object has to be validated again.

    Args:
        said: The origin's directives.
        validated: When it was last validated, Unix seconds.
        age: Seconds it had already spent in other caches by then (the origin's ``Age``).
        default: Lifetime when the origin said nothing, seconds.
        key: Names the object: spreads the expiry of many objects that came together (F17). The default
            lifetime moves by ±10 %; an explicit one is a promise and can only get shorter.
    """
    if said.check:
        return validated
    luck = int.from_bytes(sha256(f"{key} {validated}".encode()).digest()[:4]) / 2**32
    if said.lifetime is None:
        return validated + default * (0.9 + 0.2 * luck)
    life = said.lifetime if said.lifetime < STEADY else said.lifetime * (1 - 0.1 * luck)
    return validated + max(0.0, life - age)


def may_serve_stale(said: Directives, now: float, expired: float, limit: float) -> bool:
    """Whether an expired object may be served while its origin cannot be reached (F10)."""
    return not (said.check or said.strict) and now - expired <= limit


def _seconds(value: str | None) -> float:
    text = (value or "").strip().strip('"')
    if not text.isascii() or not text.isdigit():
        return 0.0
    return FOREVER if len(text) > 10 else min(FOREVER, float(text))


@contextmanager
def as_asked(headers: Mapping[str, str]) -> Iterator[None]:
    """Set :data:`control` and :data:`patience` for one request, by its headers (names in lower case)."""
    freshness, waits = control.set(requested(headers)), patience.set(patience_of(headers))
    try:
        yield
    finally:
        patience.reset(waits)
        control.reset(freshness)
