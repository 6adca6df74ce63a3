"""URLs of endpoints: how clients spell them, when two mean the same server, what may be shown.

Source: RFC 3986; RFC 6454 §4 (origin); §1 of the storage contract (``davs`` is a spelling of ``https``).
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from doma.core.errors import BadRequest

SPELLINGS = {"dav": "http", "davs": "https", "s3s": "https", "webdav": "http", "webdavs": "https"}
PORTS = {"http": 80, "https": 443, "root": 1094, "roots": 1094, "xroot": 1094, "grpc": 80, "grpc+tls": 443}

_SECRET = {
    "authz", "access_token", "refresh_token", "id_token", "token", "macaroon", "ticket", "code", "password",
    "client_secret", "client_assertion", "sig",
} | {
    f"{prefix}{name}"
    for prefix in ("", "x-amz-", "x-goog-")
    for name in ("signature", "credential", "security-token")
}  # fmt: skip
_MASK = "***"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: what a credential may be sent to and a connection can be kept to.

    >>> origin_of("davs://SE.example.org/a") == origin_of("https://se.example.org:443/b")
    True
    """

    scheme: str
    host: str
    """Lower case, without the brackets of an IPv6 literal."""
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == PORTS[self.scheme] else f":{self.port}")


def https(url: str) -> str:
    """The URL with its scheme as HTTP spells it; others are left alone.

    >>> https("davs://a.org:8443/x"), https("root://a.org//x")
    ('https://a.org:8443/x', 'root://a.org//x')
    """
    scheme, mark, rest = url.partition("://")
    return SPELLINGS.get(scheme.lower(), scheme) + mark + rest


def origin_of(url: str) -> Origin:
    """Where a URL leads to.

    Raises:
        BadRequest: no scheme that we know, no host, a port that is none, or user info in it.
    """
    try:
        parts = urlsplit(https(url))
        port = parts.port
    except ValueError as e:
        raise BadRequest(f"{redacted(url)}: this is no URL: {_reason(e)}") from e
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise BadRequest(f"{redacted(url)}: the scheme must be one of {', '.join(sorted(PORTS))} or davs")
    if not parts.hostname or any(c.isspace() for c in parts.hostname):
        raise BadRequest(f"{redacted(url)}: the URL names no host")
    if "@" in parts.netloc:
        raise BadRequest(f"{redacted(url)}: a URL with user name or password is not accepted; use a token")
    return Origin(scheme, parts.hostname.lower(), PORTS[scheme] if port is None else port)


def joined(base: str, path: str) -> str:
    """The URL of a percent-encoded absolute path below a base URL, whose query stays behind.

    >>> joined("https://a.org/se/?x=1", "/run/f.root")
    'https://a.org/se/run/f.root?x=1'
    """
    front, question, query = base.partition("?")
    return front.rstrip("/") + path + question + query


def redacted(url: str) -> str:
    """The URL as it may stand in a message or log: no password, no token.

    >>> redacted("https://me:hush@a.org/f?authz=Bearer%20abc&x=1")
    'https://***@a.org/f?authz=***&x=1'
    """
    front, question, query = url.partition("?")
    scheme, mark, rest = front.partition("://")
    host, slash, path = rest.partition("/")
    if mark and "@" in host:
        front = f"{scheme}://{_MASK}@{host.rpartition('@')[2]}{slash}{path}"
    if question:
        pairs = parse_qsl(query, keep_blank_values=True)
        if any(name.lower() in _SECRET for name, _ in pairs):
            kept = [(name, _MASK if name.lower() in _SECRET else value) for name, value in pairs]
            query = urlencode(kept, safe="*/:")
    return front + question + query


def _reason(e: ValueError) -> str:
    return "the port must be a number below 65536" if "port" in str(e).lower() else "its host is malformed"
