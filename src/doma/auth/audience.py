"""Which ``aud`` values mean us. Our own names are normalised once; a token's are compared as they are.

Source: WLCG Common JWT Profile 1.3 §"aud"; §4 of the token contract. Rucio and FTS ask for bare host names.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from doma.core.errors import ConfigError

WLCG_ANY = "https://wlcg.cern.ch/jwt/v1/any"
SCITOKENS_ANY = "ANY"

_DEFAULT = {"https": 443, "http": 80}


def accepted(names: Iterable[str]) -> frozenset[str]:
    """Every spelling of our names that a token may hold.

    Args:
        names: URLs, ``host``, ``host:port``; a URL with a path, or of a scheme other than http and https,
            stands for itself alone.

    Raises:
        ConfigError: a name is empty, holds blanks or has a port that is no number.

    >>> sorted(accepted(["https://se.example.org:8443/"]))[:2]
    ['https://se.example.org', 'https://se.example.org:8443']
    >>> sorted(accepted(["https://se.example.org:8443/"]))[2:]
    ['se.example.org', 'se.example.org:8443']
    """
    return frozenset(spelling for name in names for spelling in _spellings(name))


def _spellings(name: str) -> set[str]:
    bare = name.strip().removesuffix("/")
    if not bare or any(c.isspace() for c in bare):
        raise ConfigError(f"audience {name!r}: must be a host name, host:port or URL")
    try:
        url = urlsplit(bare if "://" in bare else f"https://{bare}")
        host, port = url.hostname, url.port
    except ValueError as e:
        raise ConfigError(f"audience {name!r}: {e}") from e
    default = _DEFAULT.get(url.scheme)
    if default is None or not host or url.path or url.query:
        return {bare}
    host = f"[{host}]" if ":" in host else host
    at = f"{host}:{port or default}"
    return {bare, host, at, f"{url.scheme}://{host}", f"{url.scheme}://{at}"}
