"""Version 4 signatures: what both sides of S3 compute, the engine to ask with and the door to compare with.

Source: AWS "Signature Version 4 for S3".
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from time import gmtime, strftime
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY = sha256(b"").hexdigest()
LONGEST = 7 * 24 * 3600
"""Seconds that a query signature may live."""

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it stands on the wire."""

    method: str
    path: str
    """Encoded, without query."""
    query: Pairs
    """Decoded once, in order; a ``+`` is a ``+``."""
    headers: Mapping[str, str]
    """Names in lower case; repeated ones joined by commas."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Date, region and service that a version 4 key is derived for."""

    date: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"

    def key(self, secret: str) -> bytes:
        """The signing key."""
        key = f"AWS4{secret}".encode()
        for word in (self.date, self.region, self.service, "aws4_request"):
            key = hmac.digest(key, word.encode(), "sha256")
        return key


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key pair of some S3 service."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    """Session token."""


def signed(
    asked: Asked, payload: str, who: Credentials, *, now: float, region: str = "us-east-1"
) -> dict[str, str]:
    """The headers that sign a request.

    Args:
        asked: The request; ``host`` and every ``x-amz-`` header must be there.
        payload: SHA-256 of the body in hex, or :data:`UNSIGNED`.
        who: Whose keys.
        now: Unix seconds.
        region: Of the service.
    """
    stamp = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    scope = Scope(stamp[:8], region, "s3")
    added = {"x-amz-date": stamp, "x-amz-content-sha256": payload}
    if who.token:
        added["x-amz-security-token"] = who.token
    every = {**asked.headers, **added}
    names = sorted(name for name in every if name == "host" or name.startswith("x-amz-"))
    text = to_sign(
        canonical(Asked(asked.method, asked.path, asked.query, every), asked.path, names, payload),
        stamp,
        scope,
    )
    signature = hmac.digest(scope.key(who.secret_key), text, "sha256").hex()
    listed = ";".join(names)
    added["authorization"] = (
        f"{ALGORITHM} Credential={who.access_key}/{scope}, SignedHeaders={listed}, Signature={signature}"
    )
    return added


def presigned(
    method: str, url: str, who: Credentials, *, now: float, life: int, region: str = "us-east-1"
) -> str:
    """A URL that works without further credentials.

    Args:
        method: The only one that it is good for.
        url: ``https://host[:port]/bucket/key``, percent-encoded, without query.
        who: Whose right it carries.
        now: Unix seconds.
        life: Seconds, at most :data:`LONGEST`.
        region: As the server expects it; our own door takes any.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    stamp = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    scope = Scope(stamp[:8], region, "s3")
    query = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{who.access_key}/{scope}"),
        ("X-Amz-Date", stamp),
        ("X-Amz-Expires", str(life)),
        ("X-Amz-SignedHeaders", "host"),
    ]
    if who.token:
        query.append(("X-Amz-Security-Token", who.token))
    asked = Asked(method, slash + path, query, {"host": host})
    text = to_sign(canonical(asked, asked.path, ["host"], UNSIGNED), stamp, scope)
    signature = hmac.digest(scope.key(who.secret_key), text, "sha256").hex()
    return f"{scheme}://{host}{slash}{path}?{encoded_query(query)}&X-Amz-Signature={signature}"


def canonical(asked: Asked, path: str, names: Sequence[str], payload: str) -> str:
    """The canonical request of version 4."""
    headers = "".join(f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in names)
    signed = ";".join(names)
    query = encoded_query([pair for pair in asked.query if pair[0] != "X-Amz-Signature"])
    return f"{asked.method}\n{path}\n{query}\n{headers}\n{signed}\n{payload}"


def to_sign(request: str, stamp: str, scope: Scope) -> bytes:
    """The string to sign of version 4 for a canonical request."""
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}".encode()


def encoded_query(pairs: Pairs) -> str:
    """A query as it is signed, and as it should stand on the wire: sorted, percent-encoded."""
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)
